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

On the embedded world optimiser, average and data are CCD's. A round has half of CCD's steps: both rounds together see
as many samples as a run of CCD does, and so does the fine-tuning after them.

Both rounds and the fine-tuning after them take one core 28 minutes (results/ccd-table1.json).
"""

import ml_collections

from sdd_jax.config import config_beside, variants_of

VARIANTS = ("embedded", "halve", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns `configs/ccd_sr.py`'s configuration for progressive distillation, and `arg`'s variants."""
    names = variants_of(arg, VARIANTS, __file__)
    config = config_beside(__file__, "ccd_sr.py", [name for name in names if name != "halve"])
    for key in ("init", "adapter", "condition", "lpips"):
        del config[key]
    is_full_size = "sd15" in names or "sd21" in names
    config.task = "gd"
    config.teacher = ml_collections.ConfigDict({"workdir": ""})
    config.data.degradation = ""
    guidance = 7.5 if is_full_size else 3.0
    config.objective = ml_collections.ConfigDict({"grid_steps": 8, "substeps": 2, "guidance_scale": guidance})
    if "halve" in names:
        config.objective.update(grid_steps=4, guidance_scale=1.0)
    if "debug" not in names:
        config.steps = 20_000 if is_full_size else 200
    return config
