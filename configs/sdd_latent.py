"""SDD (selective diffusion distillation): a one-pass manipulator of latents for one edit, at the timesteps HQS selects.

    python -m sdd_jax.main --config=configs/sdd_latent.py:white_hair --workdir=runs/sdd_white_hair
    python -m sdd_jax.evaluate --workdir=runs/sdd_white_hair

| variant | what | hardware, time |
| --- | --- | --- |
| white_hair | white hair or fur; also what no variant means | two CPU cores |
| angry | an angry face | two CPU cores |
| side_view | the head turned to the left | two CPU cores |
| random | timesteps from the whole grid, as in plain SDS | as the edit |
| argmax | the best timestep alone | as the edit |
| clip | CLIP guidance of the same manipulator (StyleCLIP), the paper's baseline | as the edit |
| sd15 | Stable Diffusion 1.5 at 512 px on a folder, set config.data.path; the release's guidance | an accelerator |
| sd21, sdxl | the same on Stable Diffusion 2.1, on SDXL at 1024 px | an accelerator |
| debug | any of them, shrunk to seconds | |

Variants combine with commas: `configs/sdd_latent.py:sd15,angry`. The prompt is a template, `config.data.prompt`
(`sdd_jax/data/prompts.py`). `config.timesteps.path` takes the hqs.json of `python -m sdd_jax.search`; without it the
search runs at the start, as `config.search` says, and is kept in the cache: the released code's gradients (no Jacobian,
|d|, w = 100) times training's weight sigma_t^2 (`search.weighted`), in the paper's score. Eq. 8 as it stands is
`search.jacobian=true`, `search.absolute=false`, `search.weighted=false`; `sdd-fig4` has the curves of both.

By count a training is 5F x 8 x 300 = 12 000 F, two and a half minutes of one core at 80 F/s; the search, 2F x 64 x 17
= 2 200 F with as many passes of the encoder and back, takes two or three, compiling the step one and a half. Trainings
that differ in the timesteps alone share what is compiled.
"""

import ml_collections

from sdd_jax.config import variants_of

PROMPTS = {
    "white_hair": "a photo of a {species} with white {coat}",
    "angry": "a photo of an angry {species}",
    "side_view": "a photo of a {species}, facing left",
}
FOLDER_PROMPTS = {
    "white_hair": "a photo of a person with white hair",
    "angry": "a photo of an angry person",
    "side_view": "a photo of a person, side view",
}
STABLE_DIFFUSION = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 512),
    "sd21": ("stabilityai/stable-diffusion-2-1-base", 512),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", 1024),
}
L2 = 0.6
CLIP_L2 = 0.4
"""On the world, of SDD and of CLIP guidance; docs/sdd.md has what larger and smaller weights trade."""
VARIANTS = ("white_hair", "angry", "side_view", "random", "argmax", "clip", "sd15", "sd21", "sdxl", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    edit = next((name for name in names if name in PROMPTS), "white_hair")
    config = ml_collections.ConfigDict()
    config.task = "sdd"
    config.model = "portraits"
    config.revision = ml_collections.config_dict.placeholder(str)
    config.dtype = "float32"
    config.seed = 0
    config.steps = 300
    config.batch_size = 8
    config.ema = 0.99
    config.log_every = 20
    config.checkpoint_every = 150
    config.preview_every = 150
    config.optimizer = ml_collections.ConfigDict(
        {"name": "muon", "learning_rate": 1e-3, "warmup_steps": 20, "weight_decay": 1e-2, "clip_norm": 1.0}
    )
    config.manipulator = ml_collections.ConfigDict({"output": "residual", "reencode": False})
    config.identity = ml_collections.ConfigDict({"kind": "none", "path": "portraits"})
    config.data = ml_collections.ConfigDict(
        {"source": "portraits", "path": "", "split": "train", "count": 6_000, "size": 64, "prompt": PROMPTS[edit]}
    )
    config.timesteps = ml_collections.ConfigDict({"path": "", "given": (), "rule": "", "weights": "uniform"})
    config.search = ml_collections.ConfigDict(
        {
            "jacobian": False,
            "pixels": True,
            "absolute": True,
            "weighted": True,
            "standardize": False,
            "temperature": 1.0,
            "guidance": 100.0,
            "first": 100,
            "last": 900,
            "stride": 50,
            "images": 64,
            "draws": 1,
            "seed": 0,
        }
    )
    config.objective = ml_collections.ConfigDict(
        {
            "guidance": 7.5,
            "top_k": ml_collections.config_dict.placeholder(int),
            "sds_weight": 1.0,
            "l2_weight": L2,
            "identity_weight": 0.0,
        }
    )
    for name in names:
        if name in STABLE_DIFFUSION:
            _stable_diffusion(config, *STABLE_DIFFUSION[name], FOLDER_PROMPTS[edit])
    if "random" in names:
        config.timesteps.rule = "all"
    if "argmax" in names:
        config.timesteps.rule = "argmax"
    if "clip" in names:
        _clip_guidance(config)
    if "debug" in names:
        config.update(steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
        if config.task == "sdd":
            config.timesteps.update(given=(500, 700), rule="")
    return config


def _stable_diffusion(config: ml_collections.ConfigDict, model: str, size: int, prompt: str) -> None:
    config.model = model
    config.dtype = "bfloat16"
    config.update(steps=4_000, batch_size=8, ema=0.999, log_every=50, checkpoint_every=500, preview_every=500)
    config.optimizer.update(name="adamw", learning_rate=2e-5, warmup_steps=100)
    config.data.update(source="folder", size=size, prompt=prompt)
    config.objective.update(guidance=100.0, top_k=1024, l2_weight=2.0)


def _clip_guidance(config: ml_collections.ConfigDict) -> None:
    """StyleCLIP's weights, with less L2 on the world. CLIP is the world's, or of a directory: set config.clip.path."""
    on_world = config.model == "portraits"
    config.task = "clip_guidance"
    del config.timesteps, config.search
    config.clip = ml_collections.ConfigDict({"kind": "world" if on_world else "clip", "path": "portraits"})
    weights = {"clip_weight": 1.0, "l2_weight": CLIP_L2 if on_world else 0.8, "identity_weight": 0.0}
    config.objective = ml_collections.ConfigDict(weights)
