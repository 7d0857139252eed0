"""The embedded world as a measure of protocols: its CLIP's embeddings of pictures and captions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdd_jax.data import portraits
from sdd_jax.evals.preprocess import AnyImage, Prepare, as_picture, prepared, unit_range
from sdd_jax.evals.protocols.measures import Embedder
from sdd_jax.evals.streaming import ShardedApply
from sdd_jax.jobs.world.directory import read_tower, world_directory
from sdd_jax.jobs.world.report import caption_embedder
from sdd_jax.models.load import load
from sdd_jax.models.towers import embed_image


class World(NamedTuple):
    """embedder: both sides of the world's CLIP. network, prepare: its image side, as `evals.fid` takes them."""

    embedder: Embedder
    network: ShardedApply
    prepare: Prepare


def load_world(name: str, batch: int) -> World:
    """Loads the CLIP of a world, "portraits" or a directory; errors as `read_tower` and `load`."""
    config, clip, _ = read_tower(world_directory(name), "clip")
    bundle, params = load(name)
    images = ShardedApply(lambda params, pixels: embed_image(config, params, pixels), clip, batch=batch)

    def embed_images(pictures: Iterable[AnyImage]) -> np.ndarray:
        return images.all(prepared(pictures, _prepare))

    return World(Embedder(embed_images, caption_embedder(bundle, params, clip)), images, _prepare)


def _prepare(image: AnyImage) -> np.ndarray:
    picture = as_picture(image)
    side = (portraits.SIZE, portraits.SIZE)
    return unit_range(picture if picture.size == side else picture.resize(side, Image.Resampling.BICUBIC))
