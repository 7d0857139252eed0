"""Conditional fine-tuning: CCD's undistilled baseline (LDM-SR, ControlNet), CM's first stage, GD's last.

    python -m sdd_jax.main --config=configs/finetune.py --workdir=runs/finetune
    python -m sdd_jax.evaluate --workdir=runs/finetune --steps=4,50

| variant | what | hardware |
| --- | --- | --- |
| (none), embedded | super-resolution on the embedded teacher, ControlNet and UNet trained | two CPU cores |
| depth, edit, inpaint, canny | another condition; of images on disk, depth and edit need config.condition.path | |
| adapter | the adapter alone on a frozen UNet: ControlNet's own training | |
| mu, t2i | another adapter | |
| gd | the last stage of GD: on the student's 4 times, in x0 as it was distilled; set config.teacher.workdir | |
| sd15, sd21 | Stable Diffusion 1.5, 2.1 at 512 px on a folder: set config.data.path | accelerators |
| debug | any of them, shrunk to seconds | |

Variants combine with commas: `configs/finetune.py:depth,adapter`.

Optimiser, average, data, adapter and number of steps are those of the CCD config of the same condition. Edits lose 5%
of their instructions (InstructPix2Pix), so that guidance has an empty one to read.

400 steps take one core 13 minutes (results/ccd-table1.json), the 640 of `depth,adapter` 14 (results/ccd-tasks.json).
"""

import ml_collections

from sdd_jax.config import config_beside, variants_of

CONDITIONS = ("depth", "edit", "inpaint", "canny")
OF_CCD = ("adapter", "mu", "t2i", "sd15", "sd21", "debug")
VARIANTS = ("embedded", *CONDITIONS, "gd", *OF_CCD)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns `configs/ccd_sr.py`'s configuration for plain denoising, and `arg`'s variants."""
    names = variants_of(arg, VARIANTS, __file__)
    longer = ["tasks"] if set(CONDITIONS) & set(names) else []
    config = config_beside(__file__, "ccd_sr.py", [*longer, *(name for name in names if name in OF_CCD)])
    del config.init, config.lpips
    config.task = "finetune"
    config.teacher = ml_collections.ConfigDict({"workdir": ""})
    thresholds = (100.0, 200.0) if "sd15" in names or "sd21" in names else (40.0, 90.0)
    config.condition = ml_collections.ConfigDict({"task": "superres", "path": "", "thresholds": thresholds})
    config.objective = ml_collections.ConfigDict(
        {
            "train_unet": config.objective.train_unet,
            "grid_steps": 1000,
            "caption_dropout": 0.0,
            "hint_weight": config.objective.hint_weight,
        }
    )
    for name in CONDITIONS:
        if name in names:
            config.condition.task = name
            config.data.degradation = ""
    if "edit" in names:
        config.objective.caption_dropout = 0.05
    if "gd" in names:
        config.objective.update(grid_steps=4, weighting="truncated_snr")
    return config
