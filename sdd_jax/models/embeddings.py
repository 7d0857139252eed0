"""Sinusoidal features of scalars and the two-layer perceptron that embeds them.

    omega_i = 10000^(-i / (dim/2 - freq_shift)),   features(t) = [sin(t omega), cos(t omega)]

swapped to [cos, sin] where `flip_sin_to_cos` (every Stable Diffusion). Source: Ho et al. 2020, "Denoising Diffusion
Probabilistic Models", appendix B; field names are diffusers'.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sdd_jax.models.layers import Dense


def sinusoidal_features(
    t: jax.Array, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0, max_period: float = 10000
) -> jax.Array:
    """Features float32 `[n, dim]` of scalars `[n]`; an odd `dim` is padded with a zero."""
    half = dim // 2
    omega = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angle = t.astype(jnp.float32)[:, None] * omega[None]
    parts = [jnp.cos(angle), jnp.sin(angle)] if flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
    return jnp.pad(jnp.concatenate(parts, -1), ((0, 0), (0, dim % 2)))


class TimestepEmbedding(nn.Module):
    """`[b, i] -> [b, features]`: linear, SiLU, linear.

    cond_proj_dim: where set, `timestep_cond` `[b, cond_proj_dim]` (a guidance embedding) is projected without bias and
    added to the input, as in latent consistency models; None stands for zeros.
    """

    features: int
    cond_proj_dim: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, timestep_cond: jax.Array | None = None) -> jax.Array:
        x = x.astype(self.dtype)
        if self.cond_proj_dim is not None:
            if timestep_cond is None:
                timestep_cond = jnp.zeros((x.shape[0], self.cond_proj_dim), self.dtype)
            x = x + Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")(timestep_cond)
        elif timestep_cond is not None:
            raise ValueError("timestep_cond was given to a model whose config has no time_cond_proj_dim; drop it")
        x = nn.silu(Dense(self.features, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.features, dtype=self.dtype, name="linear_2")(x)
