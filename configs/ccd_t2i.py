"""CCD without a condition: text-to-image acceleration, the empty condition of the paper.

    python -m sdd_jax.main --config=configs/ccd_t2i.py --workdir=runs/ccd_t2i
    python -m sdd_jax.evaluate --workdir=runs/ccd_t2i
    python -m sdd_jax.sample --workdir=runs/ccd_t2i --prompt=... --steps=4 --out=out.png

| variant | what | hardware |
| --- | --- | --- |
| (none), embedded | the embedded teacher at 64 px, guided by one w in 1 .. 5 (CFG-aware) | two CPU cores |
| sd15, sd21 | Stable Diffusion 1.5, 2.1 at 512 px on a folder: set config.data.path | accelerators |
| debug | any of them, shrunk to seconds | |

Variants combine with commas: `configs/ccd_t2i.py:sd15,debug`.

400 steps of 8F a sample; the 400 of configs/ccd_sr.py, 5.8F each, take two idle cores 9:28 minutes.
"""

import ml_collections

from sdd_jax.config import config_beside, variants_of

VARIANTS = ("embedded", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns `configs/ccd_sr.py`'s configuration without a condition, and `arg`'s variants."""
    names = variants_of(arg, VARIANTS, __file__)
    config = config_beside(__file__, "ccd_sr.py", names)
    config.condition = ml_collections.ConfigDict({"task": "none"})
    config.adapter = ml_collections.ConfigDict({"kind": "none"})
    config.objective.guidance = (2.0, 14.0) if "sd15" in names or "sd21" in names else (1.0, 5.0)
    config.objective.hint_weight = 0.0
    config.data.degradation = ""
    return config
