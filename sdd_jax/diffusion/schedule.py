"""Noise schedules: how much signal and how much noise a latent holds at a timestep.

Variance-preserving diffusion of latents x0 with noise eps ~ N(0, I), t = 0 .. T-1:

    alphas_cumprod[t] = prod_{i <= t} (1 - beta_i)                                  (1)  DDPM, eq. 4
    alpha_t = sqrt(alphas_cumprod[t])       sigma_t = sqrt(1 - alphas_cumprod[t])    (2)
    z_t = alpha_t x0 + sigma_t eps                                                   (3)
    SNR(t) = alpha_t^2 / sigma_t^2          lambda_t = log(alpha_t / sigma_t)        (4)

`sigma` is always (2), never the sigma/alpha of Karras et al.

| constructor | beta_t | used by |
| --- | --- | --- |
| `scaled_linear` | (linspace(sqrt(beta_start), sqrt(beta_end)))^2 | Stable Diffusion 1.x, 2.x, XL |
| `linear` | linspace(beta_start, beta_end) | DDPM |
| `squaredcos` | from alphas_cumprod ~ cos^2, beta <= 0.999 | improved DDPM |

All maths in this package takes a `Level` (alpha, sigma) and never a timestep, so that what lies beyond t = 0 is
written where it is chosen. Two answers are in use: `schedule.at(0)` is the lowest noise a network was trained on (SD:
sigma = .029), `CLEAN` is none at all. Samplers here end at CLEAN.

Tables are computed in float64 and stored in float32. Sources: Ho et al. 2020, Nichol & Dhariwal 2021, Rombach et al.
2022.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Level(NamedTuple):
    """A noise level: z = alpha x0 + sigma eps. Each f32[b,1,1,1], or a scalar where all samples share it."""

    alpha: jax.Array | float
    sigma: jax.Array | float


CLEAN = Level(1.0, 0.0)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["alphas_cumprod"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete noise schedule, a pytree of one leaf.

    alphas_cumprod: f32[T], strictly decreasing, in (0, 1). Use `from_alphas_cumprod` for a table read from outside.
    """

    alphas_cumprod: np.ndarray | jax.Array

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return int(self.alphas_cumprod.shape[0])

    def at(self, t: jax.Array | np.ndarray | int) -> Level:
        """The level of timestep t, int[b] -> [b,1,1,1] (int[] -> scalars); NaN outside 0..T-1, never a neighbour."""
        t = jnp.asarray(t)
        table = jnp.asarray(self.alphas_cumprod, jnp.float32)
        acp = table.at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        acp = acp.reshape(t.shape + (1, 1, 1) if t.ndim else ())
        return Level(jnp.sqrt(acp), jnp.sqrt(1.0 - acp))

    def at_boundary(self, s: jax.Array | np.ndarray | int) -> Level:
        """As `at`, but s = 0 means CLEAN: the convention of iCD's boundaries."""
        s = jnp.asarray(s)
        level = self.at(s)
        clean = (s == 0).reshape(jnp.shape(level.alpha))
        return Level(jnp.where(clean, CLEAN.alpha, level.alpha), jnp.where(clean, CLEAN.sigma, level.sigma))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: np.ndarray) -> Schedule:
        """Wraps a table [T]; ValueError unless it decreases strictly within (0, 1)."""
        table = np.asarray(alphas_cumprod, np.float64)
        if table.ndim != 1 or table.size == 0:
            raise ValueError(f"alphas_cumprod must be a table [T], got shape {table.shape}")
        if not (np.all(np.diff(table) < 0) and 0 < table[-1] and table[0] < 1):
            raise ValueError(
                "alphas_cumprod must decrease strictly within (0, 1), got "
                f"{table[0]:g} .. {table[-1]:g}; zero-terminal-SNR tables are not supported"
            )
        return cls(table.astype(np.float32))

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> Schedule:
        """The schedule of noise variances betas [T] (eq. 1)."""
        return cls.from_alphas_cumprod(np.cumprod(1.0 - np.asarray(betas, np.float64)))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, T: int = 1000) -> Schedule:
        """Stable Diffusion's schedule: sqrt(beta) is linear in t."""
        return cls.from_betas(np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), T) ** 2)

    @classmethod
    def linear(cls, beta_start: float = 0.0001, beta_end: float = 0.02, T: int = 1000) -> Schedule:
        """DDPM's schedule: beta is linear in t."""
        return cls.from_betas(np.linspace(beta_start, beta_end, T))

    @classmethod
    def squaredcos(cls, T: int = 1000, beta_max: float = 0.999) -> Schedule:
        """Improved DDPM's schedule: alphas_cumprod follows cos^2((u + .008)/1.008 pi/2), u = t/T."""
        bar = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(1.0 - bar[1:] / bar[:-1], beta_max))


def add_noise(x0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """z = alpha x0 + sigma eps (eq. 3), float32, the shape of x0."""
    return level.alpha * x0.astype(jnp.float32) + level.sigma * eps.astype(jnp.float32)


def half_log_snr(level: Level) -> jax.Array:
    """lambda = log(alpha / sigma) (eq. 4), the time of the DPM-Solvers; +inf at CLEAN."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def snr(level: Level) -> jax.Array:
    """alpha^2 / sigma^2 (eq. 4); inf at CLEAN."""
    return jnp.square(jnp.divide(level.alpha, level.sigma))


def truncated_snr(level: Level) -> jax.Array:
    """max(SNR, 1), f32[b]: the weight of x0's error that keeps the noisiest times (Salimans & Ho, 2022)."""
    return jnp.maximum(snr(level).reshape(-1), 1.0)
