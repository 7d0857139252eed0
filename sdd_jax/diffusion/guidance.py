"""Classifier-free guidance, when to apply it, and how to embed its scale.

    pred = uncond + w (cond - uncond)            w = 1 is off                            (1)

References count differently: DDS writes (1 + omega) with w = 1 + omega, iCD's code w_code = w - 1; both are converted
where they enter. (1) is linear and the conversions between eps, v and x0 are affine in the prediction with weights
that do not depend on it, so guiding any of the three guides all.

Order. Both branches run as one forward of 2B samples stacked [cond, uncond] and are split in the same order, here and
nowhere else. (A released script stacks [cond, uncond] and unpacks (uncond, cond): its guidance points away from the
prompt.)

Dynamic guidance switches w off where it harms. With u = t/T:

| function | w(t) |
| --- | --- |
| `step_guidance` (iCD) | w where u <= tau, else 1 |
| `ramp_guidance` (CADS, Sadat et al. 2024) | 1 + g (w - 1), g falling linearly from 1 at u = tau1 to 0 at u = tau2 |
| `interval_guidance` (Kynkaanniemi et al. 2024) | w where low <= u <= high, else 1 |

Guidance embedding (iCD, LCM). A guidance-distilled student reads w from a sinusoid of size 512,

    [sin(x f_i), cos(x f_i)],  x = 1000 (w - 1),  f_i = 10000^(-i/255),  i = 0 .. 255        (2)

Its squared norm is always 256, and w = 1 is 256 zeros and 256 ones, not a zero vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def per_sample(w: jax.Array | float, ndim: int) -> jax.Array:
    """w scalar or [b], as a float32 scalar or [b,1,...] that broadcasts against an array of `ndim` dimensions."""
    w = jnp.asarray(w, jnp.float32)
    return w.reshape(w.shape + (1,) * (ndim - 1)) if w.ndim else w


def guide(cond: jax.Array, uncond: jax.Array, w: jax.Array | float) -> jax.Array:
    """uncond + w (cond - uncond) (eq. 1); w scalar or [b]. [b,h,w,c] -> f32[b,h,w,c]."""
    cond, uncond = cond.astype(jnp.float32), uncond.astype(jnp.float32)
    return uncond + per_sample(w, cond.ndim) * (cond - uncond)


def repeat_batch(tree: Any, times: int = 2) -> Any:
    """Stacks `times` copies of every array of `tree` along the batch; scalars and what is no array pass unchanged."""
    return jax.tree.map(lambda a: jnp.concatenate([a] * times) if getattr(a, "ndim", 0) else a, tree)


def guided(
    denoise: Callable[..., jax.Array], null_context: jax.Array, null_added_cond: Any = None
) -> Callable[..., jax.Array]:
    """Wraps a denoiser so that it answers with guidance, at the cost of one forward of 2B samples (2F).

    denoise(z [b,h,w,c], t int[b], context [b,n,d], **conditions) -> prediction [b,h,w,c].
    null_context: the context of no prompt, or of a negative one, [1,n,d] or [b,n,d].
    null_added_cond: what stands for `added_cond` (SDXL's pooled text and sizes) in the second half; None uses it twice.

    Returns guided_denoise(z, t, context, w, **conditions) -> f32[b,h,w,c], w scalar or [b]. All other conditions
    (adapter residuals, guidance embeddings) are given for B samples and serve both halves.
    """

    def guided_denoise(
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        w: jax.Array | float,
        *,
        added_cond: Any = None,
        **conditions: Any,
    ) -> jax.Array:
        null = jnp.broadcast_to(null_context, context.shape).astype(context.dtype)
        conditions = repeat_batch(conditions)
        if added_cond is not None:
            null_added = added_cond if null_added_cond is None else null_added_cond
            conditions["added_cond"] = jax.tree.map(
                lambda a, n: jnp.concatenate([a, jnp.broadcast_to(n, a.shape).astype(a.dtype)]), added_cond, null_added
            )
        pred = denoise(repeat_batch(z), repeat_batch(t), jnp.concatenate([context, null]), **conditions)
        cond, uncond = jnp.split(pred, 2)
        return guide(cond, uncond, w)

    return guided_denoise


# Times are integers, thresholds decimal fractions: a margin below one timestep keeps 779 <= .779 x 1000 in float32.
_MARGIN = 1e-3


def interval_guidance(t: jax.Array, w: jax.Array | float, low: float, high: float, T: int = 1000) -> jax.Array:
    """f32 as t: w where low <= t/T <= high, else 1. t int[b] or scalar, w scalar or as t."""
    inside = (t >= low * T - _MARGIN) & (t <= high * T + _MARGIN)
    return jnp.where(inside, jnp.asarray(w, jnp.float32), 1.0)


def step_guidance(t: jax.Array, w: jax.Array | float, tau: float, T: int = 1000) -> jax.Array:
    """f32 as t: w where t/T <= tau, else 1 (iCD's dynamic guidance). t int[b] or scalar, w scalar or as t."""
    return interval_guidance(t, w, 0.0, tau, T)


def ramp_guidance(t: jax.Array, w: jax.Array | float, tau1: float, tau2: float, T: int = 1000) -> jax.Array:
    """f32 as t: w up to t/T = tau1, 1 from tau2 on, linear between (CADS). ValueError unless tau1 < tau2."""
    if not tau1 < tau2:
        raise ValueError(f"a guidance ramp needs tau1 < tau2, got {tau1} and {tau2}; use step_guidance for a jump")
    strength = jnp.clip((tau2 - jnp.asarray(t, jnp.float32) / T) / (tau2 - tau1), 0.0, 1.0)
    return 1.0 + strength * (jnp.asarray(w, jnp.float32) - 1.0)


def guidance_embedding(w: jax.Array, dim: int = 512) -> jax.Array:
    """The sinusoid of a guidance scale (eq. 2): w f32[b], 1 is off -> f32[b,dim]. ValueError for an odd dim."""
    if dim % 2:
        raise ValueError(f"a guidance embedding holds sine and cosine halves: dim must be even, got {dim}")
    half = dim // 2
    frequencies = np.exp(-np.arange(half) * np.log(10000.0) / (half - 1)).astype(np.float32)
    angles = (1000.0 * (jnp.asarray(w, jnp.float32) - 1.0))[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
