"""Distances between predictions, and the boundary scalings of consistency models.

    l2             mean (a - b)^2
    pseudo_huber   mean sqrt(d^2 + c^2) - c,  d = a - b,  c = 0.001 (iCD)

Means run over all axes but the batch, in float32; each returns f32[b], which `weighted_mean` reduces, so that a
weight or a mask per sample has one place to enter. Pseudo-Huber is evaluated as d^2 / (sqrt(d^2 + c^2) + c), which
does not cancel for |d| << c.

Boundary scalings (Song et al. 2023, with the time scale k of LCM, Luo et al. 2023) tie a network F to the data at t =
0,

    f(z, t) = c_skip z + c_out F(z, t),   c_skip = s^2 / ((k t)^2 + s^2),   c_out = k t / sqrt((k t)^2 + s^2)

with s = sigma_data = 0.5 and k = 10: (1, 0) at t = 0, and (0, 1) within 1e-5 from t = 16 on. The s in front of the
c_out of Song et al. is not there: it would halve the output at every t that matters (one released CCD variant does).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def l2(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared difference per sample: two [b,...] -> f32[b]."""
    return _mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def pseudo_huber(a: jax.Array, b: jax.Array, c: float = 0.001) -> jax.Array:
    """Mean of sqrt(d^2 + c^2) - c per sample: quadratic below c, absolute above. Two [b,...] -> f32[b]."""
    squared = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))
    return _mean(squared / (jnp.sqrt(squared + c**2) + c))


def weighted_mean(values: jax.Array, weight: jax.Array | float = 1.0) -> jax.Array:
    """The mean over the batch of weight x values, both [b] (weight may be a scalar): a float32 scalar."""
    return jnp.mean(weight * values.astype(jnp.float32))


def boundary_scalings(t: jax.Array, k: float = 10.0, sigma_data: float = 0.5) -> tuple[jax.Array, jax.Array]:
    """(c_skip, c_out) of a consistency model at t int[b], each f32[b,1,1,1] (scalars for a scalar t)."""
    scaled = k * jnp.asarray(t, jnp.float32)
    scaled = scaled.reshape(scaled.shape + (1, 1, 1) if scaled.ndim else ())
    norm = jnp.square(scaled) + sigma_data**2
    return sigma_data**2 / norm, scaled / jnp.sqrt(norm)
