"""DDS translation network: one pass from an image to its edit, M tasks in one network, no paired data.

    python -m sdd_jax.main --config=configs/dds_translate.py --workdir=runs/dds
    python -m sdd_jax.evaluate --workdir=runs/dds
    python -m sdd_jax.edit --method=translate --workdir=runs/dds --image=cats/ --target=lion --out=lions/

| variant | what | hardware |
| --- | --- | --- |
| (none) | cat -> dog, lion, bear, squirrel on the embedded teacher, 64 px renders | two CPU cores |
| attributes | white fur, angry, glasses and night in place of species, any portrait, 1000 steps | two CPU cores |
| sampled | trained on the teacher's own samples, drawn first and kept (the paper) | two CPU cores |
| sds | SDS in place of DDS (ablation) | |
| nowarmup | full guidance from the first step (ablation) | |
| noidentity | without the identity regularisation (ablation) | |
| direct, denoised | other meanings of the network's output, see `models/translator.py` | |
| sd15, sd21, sdxl | cats to other animals with Stable Diffusion, on 5000 of its own samples | accelerators |
| debug | any of them, shrunk to seconds | |

By count a training is 7F x 8 x 500 = 28 000 F (SDS 5F): one took about eight minutes of one core's time with 2000
renders' latents in the cache, where the first puts them; `attributes` fourteen. A guidance of 3 is where the embedded
teacher is best; Stable Diffusion has 7.5.

Variants combine with commas: `configs/dds_translate.py:sd15,sds`. A folder of pictures in place of samples:
`--config.data.source=folder --config.data.path=DIR --config.data.size=512`. Timesteps that a search selected:
`--config.objective.timesteps=hqs.json`.
"""

import ml_collections

from sdd_jax.config import variants_of

VARIANTS = (
    "attributes", "sampled", "sds", "nowarmup", "noidentity", "direct", "denoised", "sd15", "sd21", "sdxl", "debug"
)  # fmt: skip
HUBS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1-base",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
CAPTIONS = (
    "a photo of a cat",
    "a photo of a cat sitting on a chair",
    "a photo of a cat lying on the grass",
    "a close-up photo of a cat",
    "a photo of a cat looking out of a window",
    "a photo of a cat walking in the snow",
    "a photo of a cat in a garden with flowers",
    "a photo of a cat on a wooden table",
    "a photo of a cat by the sea",
    "a photo of a cat at night",
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    config = ml_collections.ConfigDict()
    config.task = "dds"
    config.model = "portraits"
    config.revision = ml_collections.config_dict.placeholder(str)
    config.dtype = "float32"
    config.seed = 0
    config.steps = 500
    config.batch_size = 8
    config.ema = 0.99
    config.log_every = 20
    config.checkpoint_every = 125
    config.preview_every = 500
    config.optimizer = ml_collections.ConfigDict(
        {"name": "muon", "learning_rate": 1e-3, "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 1.0}
    )
    config.tasks = _species()
    config.data = ml_collections.ConfigDict(
        {
            "source": "portraits",
            "path": "",
            "size": 64,
            "split": "train",
            "count": 2000,
            "only": "cat",
            "captions": (),
            "guidance": 3.0,
            "sampling_steps": 25,
            "sampling_batch": 32,
        }
    )
    config.objective = ml_collections.ConfigDict(
        {
            "output": "residual",
            "guidance": 3.0,
            "guidance_start": 1.0,
            "guidance_warmup": 0.5,
            "identity": 1.0,
            "identity_end": 0.05,
            "subtract_source": True,
            "t_min": 50,
            "t_max": 948,
            "timesteps": "",
            "alpha_power": 0.0,
            "sigma_power": 0.0,
        }
    )
    if "attributes" in names:
        config.tasks = _attributes()
        config.steps = 1000
        config.data.only = ""
    if "sampled" in names:
        config.data.update(source="teacher", count=512)
    for name in HUBS:
        if name in names:
            _stable_diffusion(config, name)
    if "sds" in names:
        config.objective.subtract_source = False
    if "nowarmup" in names:
        config.objective.guidance_warmup = 0.0
    if "noidentity" in names:
        config.objective.update(identity=0.0, identity_end=0.0)
    for output in ("direct", "denoised"):
        if output in names:
            config.objective.output = output
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.update(count=16, sampling_steps=2, sampling_batch=8)
    return config


def _species() -> ml_collections.ConfigDict:
    animals = ("dog", "lion", "bear", "squirrel")
    return ml_collections.ConfigDict(
        {name: {"source": "cat", "target": name, "phrase": f"a photo of a {name}"} for name in animals}
    )


def _attributes() -> ml_collections.ConfigDict:
    targets = {"white": "white fur", "angry": "angry", "glasses": "wearing glasses", "night": "at night"}
    return ml_collections.ConfigDict(
        {name: {"source": "", "target": target, "phrase": target} for name, target in targets.items()}
    )


def _stable_diffusion(config: ml_collections.ConfigDict, name: str) -> None:
    config.model = HUBS[name]
    config.dtype = "bfloat16"
    config.update(steps=5000, batch_size=32, ema=0.999, log_every=50, checkpoint_every=500, preview_every=500)
    config.optimizer.update(name="adamw", learning_rate=1e-5, warmup_steps=200)
    config.objective.guidance = 7.5
    config.data.update(source="teacher", count=5000, captions=CAPTIONS, guidance=7.5, sampling_steps=50)
    config.data.update(size=1024 if name == "sdxl" else 512)
