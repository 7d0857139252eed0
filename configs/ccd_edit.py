"""CCD instructed editing: "make it smile", the picture through the adapter, the instruction as the text.

    python -m sdd_jax.main --config=configs/ccd_edit.py --workdir=runs/ccd_edit
    python -m sdd_jax.evaluate --workdir=runs/ccd_edit
    python -m sdd_jax.sample --workdir=runs/ccd_edit --control=img.png --prompt="make it smile" --steps=4 --out=out.png

| variant | what | hardware |
| --- | --- | --- |
| (none), embedded | the embedded teacher at 64 px on exact counterfactual pairs | two CPU cores |
| adapter | the ControlNet alone on a frozen UNet (sec. 4.4) | two CPU cores |
| mu | the mu-mixing adapter of eq. 10 | two CPU cores |
| t2i | a T2I-Adapter; with `adapter`, alone on a frozen UNet | two CPU cores |
| sd15, sd21 | Stable Diffusion 1.5, 2.1 at 512 px on pairs: config.data.path, config.condition.path | accelerators |
| debug | any of them, shrunk to seconds | |

Variants combine with commas: `configs/ccd_edit.py:sd15,adapter`.

640 steps: as many of configs/ccd_depth.py take one core 25 minutes.
"""

import ml_collections

from sdd_jax.config import config_beside, variants_of

VARIANTS = ("embedded", "adapter", "mu", "t2i", "sd15", "sd21", "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns `configs/ccd_sr.py:tasks`'s configuration on pairs of pictures, and `arg`'s variants."""
    names = variants_of(arg, VARIANTS, __file__)
    config = config_beside(__file__, "ccd_sr.py", ["tasks", *names])
    config.condition = ml_collections.ConfigDict({"task": "edit", "path": ""})
    config.data.degradation = ""
    return config
