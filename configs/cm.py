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

Times are not measured yet.
"""

import ml_collections

from sdd_jax.config import variants_of

VARIANTS = ("embedded", "adapter", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    config = ml_collections.ConfigDict()
    config.task = "cm"
    config.teacher = ml_collections.ConfigDict({"workdir": ""})
    config.seed = 0
    config.steps = 400
    config.batch_size = 16
    config.ema = 0.95
    config.log_every = 20
    config.checkpoint_every = 100
    config.preview_every = 200
    config.optimizer = ml_collections.ConfigDict(
        {"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 1.0}
    )
    config.data = ml_collections.ConfigDict(
        {
            "source": "portraits",
            "path": "",
            "split": "train",
            "count": 6_000,
            "size": 64,
            "degradation": "",
            "captions": "random",
        }
    )
    config.objective = ml_collections.ConfigDict({"train_unet": True, "grid_steps": 50, "distance": "pseudo_huber"})
    if "adapter" in names:
        config.objective.train_unet = False
    if "sd15" in names or "sd21" in names:
        config.update(steps=20_000, batch_size=256, log_every=100, checkpoint_every=2000, preview_every=0)
        config.optimizer.update(learning_rate=8e-6, warmup_steps=1000)
        config.data.update(source="folder", size=512)
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
    return config
