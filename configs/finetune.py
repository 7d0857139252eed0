"""Conditional fine-tuning: CCD's undistilled baseline (LDM-SR, ControlNet), CM's first stage, GD's last.

    python -m sdd_jax.main --config=configs/finetune.py --workdir=runs/finetune
    python -m sdd_jax.evaluate --workdir=runs/finetune --steps=4,50

| variant | what | hardware |
| --- | --- | --- |
| (none), embedded | super-resolution on the embedded teacher, ControlNet and UNet trained | two CPU cores |
| depth, edit, inpaint, canny | another condition; of a folder, depth and edit need config.condition.path | |
| adapter | the adapter alone on a frozen UNet: ControlNet's own training | |
| mu, t2i | another adapter | |
| gd | the last stage of GD: trained on the student's 4 times; set config.teacher.workdir to its run | |
| sd15, sd21 | Stable Diffusion 1.5, 2.1 at 512 px on a folder: set config.data.path | accelerators |
| debug | any of them, shrunk to seconds | |

Variants combine with commas: `configs/finetune.py:depth,adapter`.

Times are not measured yet.
"""

import ml_collections

from sdd_jax.config import variants_of

CONDITIONS = ("depth", "edit", "inpaint", "canny")
VARIANTS = ("embedded", *CONDITIONS, "adapter", "mu", "t2i", "gd", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    config = ml_collections.ConfigDict()
    config.task = "finetune"
    config.model = "portraits"
    config.revision = ml_collections.config_dict.placeholder(str)
    config.dtype = "float32"
    config.teacher = ml_collections.ConfigDict({"workdir": ""})
    config.seed = 0
    config.steps = 400
    config.batch_size = 16
    config.ema = 0.98
    config.log_every = 20
    config.checkpoint_every = 100
    config.preview_every = 200
    config.optimizer = ml_collections.ConfigDict(
        {"name": "adamw", "learning_rate": 5e-4, "warmup_steps": 20, "weight_decay": 1e-2, "clip_norm": 1.0}
    )
    config.adapter = ml_collections.ConfigDict({"kind": "controlnet", "embedding_channels": (16, 32, 64)})
    config.condition = ml_collections.ConfigDict({"task": "superres", "path": "", "thresholds": (40.0, 90.0)})
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
    config.objective = ml_collections.ConfigDict({"train_unet": True, "grid_steps": 1000, "caption_dropout": 0.0})
    if "sd15" in names or "sd21" in names:
        _stable_diffusion(config, "sd21" in names)
    for name in CONDITIONS:
        if name in names:
            config.condition.task = name
            config.data.degradation = ""
    if "adapter" in names:
        config.objective.train_unet = False
    for name in ("mu", "t2i"):
        if name in names:
            config.adapter.kind = name
    if "gd" in names:
        config.objective.grid_steps = 4
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
    return config


def _stable_diffusion(config: ml_collections.ConfigDict, is_21: bool) -> None:
    config.model = "stabilityai/stable-diffusion-2-1-base" if is_21 else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.dtype = "bfloat16"
    config.update(steps=100_000, batch_size=256, ema=0.9999, log_every=100, checkpoint_every=2000, preview_every=0)
    config.optimizer.update(learning_rate=1e-5, warmup_steps=1000)
    config.adapter.embedding_channels = (16, 32, 96, 256)
    config.condition.thresholds = (100.0, 200.0)
    config.data.update(source="folder", size=512, degradation="real_esrgan")
