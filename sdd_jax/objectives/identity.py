"""The identity loss of manipulators: 1 - cos(R(x'), R(x)), R a network that recognises individuals (ArcFace for faces).

The embedded world recognises by what makes its individuals: R is the regressor of the nuisance values (position, size,
shape of the head, light, ...), which no attribute touches but pose and species in part. Photographs of faces have
ArcFace's IR-SE50, the network of the papers.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from sdd_jax.models.irse import recognise
from sdd_jax.models.towers import TowerConfig, apply_tower, unit
from sdd_jax.types import Frozen


class Identity(Protocol):
    """R."""

    def embed(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """Returns unit embeddings f32[b,e] of images f32[b,H,W,3] in [-1, 1], differentiable in them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerIdentity:
    """A tower's outputs as R; its parameters are `frozen['identity']`. Images are scaled to the tower's size."""

    tower: TowerConfig

    def embed(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """See `Identity`."""
        side = self.tower.image_size
        if image.shape[1:3] != (side, side):
            image = jax.image.resize(image, (image.shape[0], side, side, 3), "bicubic")
        return unit(apply_tower(self.tower, frozen["identity"], image)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceIdentity:
    """ArcFace's IR-SE50 as R; its parameters are `frozen['identity']`. Faces lie as in FFHQ; see `models.irse`."""

    def embed(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """See `Identity`."""
        return recognise(frozen["identity"], image)


def identity_loss(identity: Identity, frozen: Frozen, edited: jax.Array, original: jax.Array) -> jax.Array:
    """1 - cosine per image, f32[b]; the original's embedding is a constant."""
    target = jax.lax.stop_gradient(identity.embed(frozen, original))
    return 1.0 - jnp.sum(identity.embed(frozen, edited) * target, axis=-1)
