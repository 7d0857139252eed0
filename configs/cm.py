"""CM: consistency distillation of a fine-tuned conditional run, CCD's two-stage baseline.

    python -m sdd_jax.main --config=configs/finetune.py --workdir=runs/finetune
    python -m sdd_jax.main --config=configs/cm.py --workdir=runs/cm --config.teacher.workdir=runs/finetune
    python -m sdd_jax.evaluate --workdir=runs/cm

Model, adapter and condition are the fine-tuned run's.

| variant | what | hardware |
| --- | --- | --- |
| (none), embedded | a run on portraits | two CPU cores |
| adapter | the adapter alone is distilled | |
| sd15, sd21 | a run of configs/finetune.py:sd15 or sd21: set config.data.path | accelerators |
| debug | any of them, shrunk to seconds | |

On the embedded world optimiser, average, data and number of steps are CCD's, after as many steps of fine-tuning: in
all, CM sees twice the samples that CCD sees. Stable Diffusion's variants have the rates of latent consistency models.

One core takes 19 minutes, after 13 of fine-tuning (results/ccd-table1.json).
"""

import ml_collections

from sdd_jax.config import config_beside, variants_of

VARIANTS = ("embedded", "adapter", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns `configs/ccd_sr.py`'s configuration for consistency distillation, and `arg`'s variants."""
    names = variants_of(arg, VARIANTS, __file__)
    config = config_beside(__file__, "ccd_sr.py", names)
    for key in ("model", "revision", "dtype", "init", "adapter", "condition", "lpips"):
        del config[key]
    config.task = "cm"
    config.teacher = ml_collections.ConfigDict({"workdir": ""})
    config.data.degradation = ""
    config.objective = ml_collections.ConfigDict(
        {"train_unet": config.objective.train_unet, "grid_steps": 50, "distance": "pseudo_huber"}
    )
    if "sd15" in names or "sd21" in names:
        config.ema = 0.95
        config.optimizer.update(learning_rate=8e-6, weight_decay=0.0)
        if "debug" not in names:
            config.steps = 20_000
    return config
