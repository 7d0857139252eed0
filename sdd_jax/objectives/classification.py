"""Attribute classification: one softmax per attribute over a shared convolutional tower.

    L = sum_a CE(softmax(logits_a(x')), label_a)

x' is the softened image (`softening`).

Batch: `image` f32[b,H,W,3], `labels` i32[b, attributes]. Cost: 3 tower forwards.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from sdd_jax.models.towers import TowerConfig, apply_tower, init_tower, split_logits
from sdd_jax.objectives.softening import soften
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Fields: the tower, the number of values of each attribute, the noise's largest standard deviation."""

    tower: TowerConfig
    sizes: tuple[int, ...]
    noise: float = 0.1

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns a fresh tower."""
        return init_tower(rng, self.tower)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the summed cross-entropy, averaged over the batch, and the mean accuracy."""
        logits, _ = apply_tower(self.tower, params, soften(rng, batch["image"], self.noise))
        losses, hits = [], []
        for i, part in enumerate(split_logits(logits, self.sizes)):
            label = batch["labels"][:, i]
            losses.append(optax.softmax_cross_entropy_with_integer_labels(part, label).mean())
            hits.append((part.argmax(-1) == label).mean())
        return jnp.stack(losses).sum(), {"accuracy": jnp.stack(hits).mean()}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of every parameter."""
        return (Phase(self.loss),)
