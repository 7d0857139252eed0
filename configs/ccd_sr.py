"""CCD super-resolution (x4, real-world degradation): a few-step restorer distilled from a text-to-image teacher.

    python -m sdd_jax.main --config=configs/ccd_sr.py --workdir=runs/ccd_sr
    python -m sdd_jax.evaluate --workdir=runs/ccd_sr

| variant | what | hardware, time |
| --- | --- | --- |
| (none), embedded | the embedded teacher at 64 px, ControlNet and UNet trained | two CPU cores, 9:28 min |
| tasks | 640 steps, as the other conditions are trained | |
| long | 3400 steps, one t a sample: sharp portraits of the right individual | two CPU cores, 62 min |
| adapter | the ControlNet alone on a frozen UNet (sec. 4.4) | one CPU core, 12 min |
| mu | the mu-mixing adapter of eq. 10 | |
| t2i | a T2I-Adapter; with `adapter`, alone on a frozen UNet | |
| sd15, sd21 | Stable Diffusion 1.5, 2.1 at 512 px on a folder: set config.data.path | one accelerator or more |
| v5e | with sd15 or sd21, of 16 chips of TPU v5e: 16 samples each, in four microbatches | v5e:4x4 |
| debug | any of them, shrunk to seconds, with AdamW | |

Variants combine with commas: `configs/ccd_sr.py:sd15,adapter`. Measured on 128 held-out portraits:

| 4 steps of | Frechet | CLIP distance | attributes | identity | PSNR |
| --- | --- | --- | --- | --- | --- |
| bicubic | 47 | 0.37 | 0.79 | 0.94 | 16.2 |
| (none) | 5.8 | 0.09 | 0.97 | 0.66 | 16.5 |
| long | 2.0 | 0.04 | 0.99 | 0.91 | 18.9 |
"""

import ml_collections

from sdd_jax.config import variants_of

VARIANTS = ("embedded", "tasks", "long", "adapter", "mu", "t2i", "sd15", "sd21", "v5e", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    config = ml_collections.ConfigDict()
    config.task = "ccd"
    config.model = "portraits"
    config.revision = ml_collections.config_dict.placeholder(str)
    config.dtype = "float32"
    config.init = "teacher"
    config.seed = 0
    config.steps = 400
    config.batch_size = 16
    config.ema = 0.98
    config.log_every = 20
    config.checkpoint_every = 100
    config.preview_every = 200
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "muon",
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_steps": 20,
            "weight_decay": 1e-2,
            "clip_norm": 1.0,
        }
    )
    config.adapter = ml_collections.ConfigDict({"kind": "controlnet", "embedding_channels": (16, 32, 64)})
    config.condition = ml_collections.ConfigDict({"task": "superres"})
    config.data = ml_collections.ConfigDict(
        {
            "source": "portraits",
            "path": "",
            "split": "train",
            "count": 6_000,
            "size": 64,
            "degradation": "portraits",
            "captions": "random",
        }
    )
    config.objective = ml_collections.ConfigDict(
        {
            "train_unet": True,
            "grid_steps": 50,
            "shared_time": True,
            "predictor": "prev",
            "ode_model": "online",
            "x_space": "latent",
            "eps_distance": "l2",
            "eps_space": "eps",
            "eps_weight": 1.0,
            "x_weight": 1.0,
            "hint_weight": 1.0,
            "boundary_scaling": False,
            "guidance": (),
        }
    )
    config.lpips = ml_collections.ConfigDict({"network": "vgg", "backbone": "", "linear": ""})
    if "tasks" in names:
        config.steps = 640
    if "long" in names:
        config.update(steps=3400, ema=0.99, checkpoint_every=300, preview_every=600)
        config.objective.shared_time = False
        config.data.count = 24_000
    if "sd15" in names or "sd21" in names:
        _stable_diffusion(config, "sd21" in names)
    if "v5e" in names:
        config.update(remat="block", accumulate=4, mesh=ml_collections.ConfigDict({"fsdp": 16}))
    if "adapter" in names:
        config.objective.train_unet = False
    for kind in ("mu", "t2i"):
        if kind in names:
            config.adapter.kind = kind
            config.objective.hint_weight = 0.0
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
        config.optimizer.name = "adamw"  # compiles faster
    return config


def _stable_diffusion(config: ml_collections.ConfigDict, is_21: bool) -> None:
    config.model = "stabilityai/stable-diffusion-2-1-base" if is_21 else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.dtype = "bfloat16"
    config.update(steps=100_000, batch_size=256, ema=0.9999, log_every=100, checkpoint_every=2000, preview_every=0)
    config.optimizer.update(name="adamw", learning_rate=1e-5, schedule="constant", warmup_steps=1000)
    config.adapter.embedding_channels = (16, 32, 96, 256)
    config.objective.hint_weight = 0.0
    config.data.update(source="folder", size=512, degradation="real_esrgan")
