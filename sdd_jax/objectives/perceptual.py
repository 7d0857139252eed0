"""Distance of two images in the feature maps of a tower, which losses of autoencoders add to their pixel terms."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sdd_jax.models.towers import TowerConfig, apply_tower
from sdd_jax.types import Params


def feature_distance(tower: TowerConfig, params: Params, a: jax.Array, b: jax.Array, maps: int) -> jax.Array:
    """Mean over the first `maps` maps phi_l of mean |phi_l(a) - phi_l(b)|^2, of images f32[b,H,W,3] in [-1, 1]."""
    _, maps_a = apply_tower(tower, params, a)
    _, maps_b = apply_tower(tower, params, b)
    pairs = list(zip(maps_a, maps_b, strict=True))[:maps]
    return jnp.mean(jnp.stack([jnp.mean((x - y) ** 2) for x, y in pairs]))
