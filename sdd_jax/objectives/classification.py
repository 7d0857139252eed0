"""Attribute classification: one softmax per attribute over a shared convolutional tower.

    L = sum_a CE(softmax(logits_a(x')), label_a)

x' is the image after a random blend with its own 3x3 blur and a little Gaussian noise, so that the classifier also
reads VAE reconstructions and generated pictures, which are softer than renders.

Batch: `image` f32[b,H,W,3], `labels` i32[b, attributes]. Cost: 3 tower forwards.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from sdd_jax.models.towers import TowerConfig, apply_tower, init_tower, split_logits
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


def soften(rng: jax.Array, image: jax.Array, noise: float) -> jax.Array:
    """Blends each image of f32[b,H,W,c] with its blur by a random share and adds noise of a random deviation."""
    keys = jax.random.split(rng, 3)
    shape = (image.shape[0], 1, 1, 1)
    share = jax.random.uniform(keys[0], shape)
    deviation = jax.random.uniform(keys[1], shape, maxval=noise)
    kernel = jnp.array([0.25, 0.5, 0.25])
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = sum((kernel[i] * padded[:, i : i + image.shape[1]] for i in range(3)), start=jnp.zeros(()))
    blurred = sum((kernel[i] * rows[:, :, i : i + image.shape[2]] for i in range(3)), start=jnp.zeros(()))
    return (1 - share) * image + share * blurred + deviation * jax.random.normal(keys[2], image.shape)
