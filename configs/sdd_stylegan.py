"""SDD (selective diffusion distillation) of a StyleGAN2 mapper: one edit of a generator's codes, as in the paper.

    python -m sdd_jax.main --config=configs/sdd_stylegan.py:white_hair --workdir=runs/style_white_hair
    python -m sdd_jax.evaluate --workdir=runs/style_white_hair

    python -m sdd_jax.main --config=configs/sdd_stylegan.py:sd15 --workdir=runs/ffhq_white_hair \
        --config.manipulator.generator=stylegan2-ffhq-config-f.pt --config.data.path=train_celeba_w+_codes.pt \
        --config.identity.path=model_ir_se50.pth

| variant | what | hardware, time |
| --- | --- | --- |
| white_hair | white hair or fur, the world's generator; also what no variant means | two CPU cores |
| angry | an angry face | two CPU cores |
| side_view | the head turned to the left: little L2; with faces all levels, no identity loss | two CPU cores |
| random | timesteps from the whole grid, as in plain SDS | as the edit |
| argmax | the best timestep alone | as the edit |
| clip | CLIP guidance of the same mapper (StyleCLIP), the paper's baseline | as the edit |
| stylespace | a mapper of StyleSpace without its ToRGB layers, in place of W+ | as the edit |
| sd15 | Stable Diffusion 1.5 and published faces (FFHQ, 1024 px), the release's settings | an accelerator |
| sd15_images | sd15 on a folder of faces, encoded by e4e, in place of codes | an accelerator |
| sd15_random | sd15 without files, on random weights: for `python -m sdd_jax.aot` and speed | none |
| debug | any of them, shrunk to seconds | |

Variants combine with commas: `configs/sdd_stylegan.py:sd15,angry`. `config.manipulator` and `config.data` are
described in `sdd_jax/jobs/sdd/style.py`; NVIDIA's generators want `config.manipulator.delta_scale=1.5`. With sd15 set
`config.manipulator.generator` (rosinality's .pt, or an exported ADA state dict), `config.data.path` (W+ codes
[count, 18, 512]; with sd15_images a folder, and `config.manipulator.encoder`, e4e_ffhq_encode.pt) and
`config.identity.path` (model_ir_se50.pth). The world's generator is its style/ (configs/pretrain_style.py).

The world's mapper starts as the identity edit, and its learning rate, CLIP guidance's too, is the one at which a
constant gradient moves 64-wide codes by about their own deviation in 600 steps (tests/test_sdd_style_rate.py); the
release's 5e-3, for 4000 steps and 512-wide codes, moves them by .01.
"""

import ml_collections

from sdd_jax.config import config_beside, variants_of

FACE_PROMPTS = {
    "white_hair": "white hair",
    "angry": "an angry face",
    "side_view": "a side view of a face",
}
L2 = {"white_hair": 0.3, "angry": 0.3, "side_view": 0.1}
CLIP_L2 = {"white_hair": 0.4, "angry": 0.4, "side_view": 0.4 / 3}
"""On the world, of SDD and of CLIP guidance; docs/sdd.md has what those of white hair were chosen by."""
FACES = ("sd15", "sd15_images", "sd15_random")
VARIANTS = (*FACE_PROMPTS, "random", "argmax", "clip", "stylespace", *FACES, "debug")
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns `configs/sdd_latent.py`'s configuration with a mapper as the manipulator, and `arg`'s variants."""
    names = variants_of(arg, VARIANTS, __file__)
    edit = next((name for name in names if name in FACE_PROMPTS), "white_hair")
    config = config_beside(__file__, "sdd_latent.py", [edit])
    config.update(steps=600, batch_size=4)
    config.optimizer = ml_collections.ConfigDict(
        {"name": "adamw", "learning_rate": 3e-2, "weight_decay": 2e-3, "clip_norm": 1.0}
    )
    config.manipulator = ml_collections.ConfigDict(
        {
            "kind": "stylegan",
            "generator": "portraits",
            "encoder": "",
            "mapping": "styles_without_rgb" if "stylespace" in names else "levels",
            "levels": ("coarse", "medium", "fine"),
            "mapper": "",
            "delta_scale": 0.1,
            "zero_start": True,
        }
    )
    config.data.truncation = 1.0
    config.objective.l2_weight = L2[edit]
    if set(FACES) & set(names):
        _faces(config, edit, names)
    if "random" in names:
        config.timesteps.rule = "all"
    if "argmax" in names:
        config.timesteps.rule = "argmax"
    if "sd15_random" in names:
        _random_weights(config)
    if "clip" in names:
        _clip_guidance(config, edit)
    if "debug" in names:
        config.update(steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
        if config.task == "sdd":
            config.timesteps.update(given=(500, 700), rule="")
    return config


def _faces(config: ml_collections.ConfigDict, edit: str, names: list[str]) -> None:
    """The release's: rate, random start, fine and medium levels, guidance 100, top 1024, weights 10, 1 and 4096 b."""
    config.model = SD15
    config.dtype = "bfloat16"
    config.update(steps=4_000, batch_size=2, ema=0.999, log_every=50, checkpoint_every=500, preview_every=500)
    config.optimizer.update(learning_rate=5e-3, clip_norm=None)
    config.manipulator.update(generator="", zero_start=False)
    if edit != "side_view" and "stylespace" not in names:
        config.manipulator.levels = ("medium", "fine")
    source = "folder" if "sd15_images" in names else "codes"
    config.data.update(source=source, size=256, prompt=FACE_PROMPTS[edit])
    config.objective.update(guidance=100.0, top_k=1024, sds_weight=8192.0, l2_weight=10.0)
    if edit != "side_view":
        config.identity.update(kind="arcface", path="")
        config.objective.identity_weight = 1.0


def _random_weights(config: ml_collections.ConfigDict) -> None:
    config.model = f"random:{SD15}"
    config.manipulator.generator = "random:1024"
    config.data.source = "sampled"
    if config.identity.kind == "arcface":
        config.identity.path = "random:"
    config.timesteps.update(given=(500,), rule="")


def _clip_guidance(config: ml_collections.ConfigDict, edit: str) -> None:
    """StyleCLIP's weights, with less L2 on the world. CLIP is the world's, or of a directory: set config.clip.path."""
    on_world = config.model == "portraits"
    identity = 0.1 if config.objective.identity_weight else 0.0
    config.task = "clip_guidance"
    del config.timesteps, config.search
    config.clip = ml_collections.ConfigDict({"kind": "world" if on_world else "clip", "path": "portraits"})
    weights = {"clip_weight": 1.0, "l2_weight": CLIP_L2[edit] if on_world else 0.8, "identity_weight": identity}
    config.objective = ml_collections.ConfigDict(weights)
