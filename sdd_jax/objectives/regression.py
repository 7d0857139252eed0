"""Nuisance regression: reads the continuous facts of an image (position, scale, shades) off its pixels.

    L = mean_k (y_hat_k(x') - y_k)^2

with standardised targets; x' is the softened image (`softening`). Its use is a measure of diversity: the variance, over
generated samples, of what it reads. Batch: `image` f32[b,H,W,3], `targets` f32[b,k]. Cost: 3 tower forwards.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sdd_jax.models.towers import TowerConfig, apply_tower, init_tower
from sdd_jax.objectives.softening import soften
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """Fields: the tower, whose outputs are the regressed values; the noise's largest standard deviation."""

    tower: TowerConfig
    noise: float = 0.1

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns a fresh tower."""
        return init_tower(rng, self.tower)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean squared error of the standardised targets; on clean images it would be 1 - R^2."""
        predicted, _ = apply_tower(self.tower, params, soften(rng, batch["image"], self.noise))
        return jnp.mean((predicted - batch["targets"]) ** 2), {}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of every parameter."""
        return (Phase(self.loss),)
