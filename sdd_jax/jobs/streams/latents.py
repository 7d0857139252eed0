"""Portraits encoded once: the posterior moments that training on the embedded world draws its latents from."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.cache import CHUNK, cached_array, renderer_hash
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.models.hub import tree_hash
from sdd_jax.types import ModelBundle, Params


def encoded_portraits(bundle: ModelBundle, vae: Params, source: PortraitSource) -> np.ndarray:
    """The posterior moments of a source's portraits, f16 [count, h, w, 2c], encoded once.

    Zeros of a model that has shapes and no weights (`sdd_jax.aot`).
    """
    encode = jax.jit(bundle.moments)
    size = portraits.SIZE // bundle.downsampling
    shape = (len(source), size, size, 2 * bundle.latent_channels)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(vae)):
        return np.zeros(shape, np.float16)

    def chunks() -> Iterator[np.ndarray]:
        batch = 100
        for start in range(0, len(source), CHUNK):
            stop = min(start + CHUNK, len(source))
            parts = [
                np.asarray(encode(vae, _padded(source, first, min(first + batch, stop), batch)))[: stop - first]
                for first in range(start, stop, batch)
            ]
            yield np.concatenate(parts).astype(np.float16)

    key = f"{renderer_hash()} {tree_hash(vae)}"
    return cached_array(f"moments-{source.split}", key, shape, "float16", chunks)


def _padded(source: PortraitSource, start: int, stop: int, batch: int) -> np.ndarray:
    images = np.stack([to_float(source[i]["image"]) for i in range(start, stop)])
    return np.concatenate([images, np.repeat(images[-1:], batch - len(images), 0)])
