"""What the embedded world is measured with: its classifier, its CLIP and its nuisance regressor, on batches of images.

| reading | of an image | used for |
| --- | --- | --- |
| `labels` | the most likely value of each attribute | attribute accuracy |
| `embedding` | the CLIP image embedding, unit length | Frechet and CLIP-image distance, CLIP scores |
| `nuisance` | the continuous values, standardised | diversity of samples |
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.models.towers import TowerConfig, apply_tower, embed_image, split_logits
from sdd_jax.types import ModelBundle, Params

Tower = tuple[TowerConfig, Params]


class Readings(NamedTuple):
    """labels i32[n, attributes], embedding f32[n,e], nuisance f32[n,k]."""

    labels: np.ndarray
    embedding: np.ndarray
    nuisance: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruments:
    """The three towers and the number of values of each attribute, in the classifier's order."""

    classifier: Tower
    regressor: Tower
    clip: Tower
    sizes: tuple[int, ...]

    def read(self, images: np.ndarray, batch: int = 128) -> Readings:
        """Reads images f32[n,H,W,3] in [-1, 1], clipped to it first."""
        parts = in_batches(self._read, np.clip(images, -1.0, 1.0).astype(np.float32), batch)
        return Readings(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _read(self, images: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _read((self.classifier[0], self.regressor[0], self.clip[0]), self.sizes,
                     (self.classifier[1], self.regressor[1], self.clip[1]), images)  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(
    configs: tuple[TowerConfig, ...], sizes: tuple[int, ...], params: tuple[Params, ...], images: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits, _ = apply_tower(configs[0], params[0], images)
    labels = jnp.stack([part.argmax(-1) for part in split_logits(logits, sizes)], -1)
    nuisance, _ = apply_tower(configs[1], params[1], images)
    return labels, embed_image(configs[2], params[2], images), nuisance


def in_batches(
    function: Callable[..., Sequence[jax.Array]], rows: np.ndarray, batch: int
) -> list[tuple[np.ndarray, ...]]:
    """Applies `function` to equal batches of rows; the last is padded, so that one program serves all, and cut."""
    results = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), 0)]) if len(rows) > batch else part
        results.append(tuple(np.asarray(out)[: len(part)] for out in function(padded)))
    return results


def autoencoded(model: ModelBundle, vae: Params, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Images f32[n,H,W,3] through the autoencoder: what no method that works on its latents can beat."""
    run = jax.jit(lambda vae, x: (model.decode(vae, model.encode(vae, x)),))
    return np.concatenate([out for (out,) in in_batches(lambda x: run(vae, jnp.asarray(x)), images, batch)])
