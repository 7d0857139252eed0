"""GD: guided and progressive distillation of the text-to-image teacher, then fine-tuned on a condition.

    python -m sdd_jax.main --config=configs/gd.py --workdir=runs/gd8
    python -m sdd_jax.main --config=configs/gd.py:halve --workdir=runs/gd4 --config.teacher.workdir=runs/gd8
    python -m sdd_jax.main --config=configs/finetune.py:gd --workdir=runs/gd --config.teacher.workdir=runs/gd4
    python -m sdd_jax.evaluate --workdir=runs/gd --steps=4

| variant | what | hardware |
| --- | --- | --- |
| (none), embedded | the first round: the guided embedded teacher's 16 steps in 8 | two CPU cores |
| halve | a later round, 8 steps in 4: the teacher is the student before | two CPU cores |
| sd15, sd21 | Stable Diffusion 1.5, 2.1 at 512 px on a folder with captions: set config.data.path | accelerators |
| debug | any of them, shrunk to seconds | |

Further rounds set config.objective.grid_steps, the student's number of steps.

Times are not measured yet.
"""

import ml_collections

from sdd_jax.config import variants_of

VARIANTS = ("embedded", "halve", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    config = ml_collections.ConfigDict()
    config.task = "gd"
    config.model = "portraits"
    config.revision = ml_collections.config_dict.placeholder(str)
    config.dtype = "float32"
    config.teacher = ml_collections.ConfigDict({"workdir": ""})
    config.seed = 0
    config.steps = 300
    config.batch_size = 16
    config.ema = 0.98
    config.log_every = 20
    config.checkpoint_every = 100
    config.preview_every = 200
    config.optimizer = ml_collections.ConfigDict(
        {"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 1.0}
    )
    config.data = ml_collections.ConfigDict(
        {"source": "portraits", "path": "", "split": "train", "count": 6_000, "size": 64, "captions": "random"}
    )
    config.objective = ml_collections.ConfigDict({"grid_steps": 8, "substeps": 2, "guidance_scale": 3.0})
    if "sd15" in names or "sd21" in names:
        _stable_diffusion(config, "sd21" in names)
    if "halve" in names:
        config.objective.update(grid_steps=4, guidance_scale=1.0)
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
    return config


def _stable_diffusion(config: ml_collections.ConfigDict, is_21: bool) -> None:
    config.model = "stabilityai/stable-diffusion-2-1-base" if is_21 else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.dtype = "bfloat16"
    config.update(steps=20_000, batch_size=256, ema=0.9999, log_every=100, checkpoint_every=2000, preview_every=0)
    config.optimizer.update(learning_rate=1e-5, warmup_steps=1000)
    config.objective.guidance_scale = 7.5
    config.data.update(source="folder", size=512)
