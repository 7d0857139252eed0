"""Few-step, controllable Stable Diffusion in JAX: CCD, iCD, DDS and SDD in one code base.

`sdd_jax.load(name)` and `sdd_jax.save(bundle, params, out_dir)` read and write models in diffusers format; they are
imported on first use, so that `import sdd_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdd_jax.models.load import load
    from sdd_jax.models.save import save

__all__ = ["load", "save"]


def __getattr__(name: str) -> Any:
    modules = {"load": "sdd_jax.models.load", "save": "sdd_jax.models.save"}
    if name not in modules:
        raise AttributeError(f"module 'sdd_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)
