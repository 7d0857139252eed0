"""What a network predicts, and how one prediction becomes another.

With z = alpha x0 + sigma eps and v = alpha eps - sigma x0 (Salimans & Ho 2022), alpha^2 + sigma^2 = 1, the pair (x0,
eps) rotates into (z, v). Any one of x0, eps, v fixes the other two given z:

| given | x0 | eps | v |
| --- | --- | --- | --- |
| `eps` | (z - sigma eps) / alpha | eps | (eps - sigma z) / alpha |
| `v`   | alpha z - sigma v | sigma z + alpha v | v |
| `x0`  | x0 | (z - alpha x0) / sigma | (alpha z - x0) / sigma |

`eps` is ill-conditioned as alpha -> 0 (sigma/alpha = 13 at t = 980 of Stable Diffusion) and `x0` as sigma -> 0, so
every conversion runs in float32 whatever the network computes in; `x0` has no eps or v at CLEAN. `v` is good
everywhere.

SD 1.x and XL predict eps, SD 2.1-768 predicts v. A method chooses its `Prediction` once (`predictor(kind)`) and then
calls `.x0`, `.eps`, `.v`, so that no loss looks at a string.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.schedule import Level

Convert = Callable[[jax.Array, jax.Array, Level], jax.Array]


def _f32(convert: Convert) -> Convert:
    def in_float32(pred: jax.Array, z: jax.Array, level: Level) -> jax.Array:
        return convert(pred.astype(jnp.float32), z.astype(jnp.float32), level)

    return in_float32


class Prediction(NamedTuple):
    """One row of the table: functions (pred [b,h,w,c], z [b,h,w,c], Level) -> f32[b,h,w,c]."""

    x0: Convert
    eps: Convert
    v: Convert


_SAME = _f32(lambda pred, z, level: pred)

PREDICTIONS = {
    "eps": Prediction(
        x0=_f32(lambda eps, z, at: (z - at.sigma * eps) / at.alpha),
        eps=_SAME,
        v=_f32(lambda eps, z, at: (eps - at.sigma * z) / at.alpha),
    ),
    "v": Prediction(
        x0=_f32(lambda v, z, at: at.alpha * z - at.sigma * v),
        eps=_f32(lambda v, z, at: at.sigma * z + at.alpha * v),
        v=_SAME,
    ),
    "x0": Prediction(
        x0=_SAME,
        eps=_f32(lambda x0, z, at: (z - at.alpha * x0) / at.sigma),
        v=_f32(lambda x0, z, at: (at.alpha * z - x0) / at.sigma),
    ),
}


def predictor(kind: str) -> Prediction:
    """The conversions out of `kind`, 'eps', 'v' or 'x0'; ValueError for anything else."""
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}: a network predicts one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[kind]


def converter(source: str, target: str) -> Convert:
    """The function that turns a `source` prediction into a `target` one: (pred, z, level) -> f32[b,h,w,c]."""
    predictor(target)
    return getattr(predictor(source), target)


def to_x0(pred: jax.Array, z: jax.Array, level: Level, kind: str) -> jax.Array:
    """x0_hat f32[b,h,w,c] of a network that predicts `kind` at z."""
    return predictor(kind).x0(pred, z, level)


def to_eps(pred: jax.Array, z: jax.Array, level: Level, kind: str) -> jax.Array:
    """eps_hat f32[b,h,w,c] of a network that predicts `kind` at z."""
    return predictor(kind).eps(pred, z, level)


def to_v(pred: jax.Array, z: jax.Array, level: Level, kind: str) -> jax.Array:
    """v_hat f32[b,h,w,c] of a network that predicts `kind` at z."""
    return predictor(kind).v(pred, z, level)
