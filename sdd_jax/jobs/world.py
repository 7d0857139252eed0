"""The embedded world's directory: where its networks are, and the streams of portraits that jobs train on.

tokenizer/ text_encoder/ vae/ unet/ scheduler/ model_index.json     a Stable Diffusion, as diffusers reads it
clip/ classifier/ regressor/                                        its instruments: towers
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.pipeline import HostBatch, Source, make_stream
from sdd_jax.data.records import PortraitSource, Transform
from sdd_jax.evals.instruments import Instruments
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.models.towers import TowerConfig, load_tower
from sdd_jax.types import Params

SIZES = tuple(len(values) for values in portraits.VOCABULARY.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortraitData:
    """Config of the portraits stream: split, number of pictures (rendered once and kept), counterfactual negatives."""

    split: str = "train"
    count: int = 24_000
    negatives: int = 0

    def __post_init__(self) -> None:
        available = len(portraits.split_indices(self.split))
        if not 0 < self.count <= available:
            raise ValueError(f"count={self.count} pictures; the split {self.split!r} has 1..{available}")


def world_directory(name: str) -> Path:
    """The directory that `config.world` means: "portraits" is the one shipped with the package."""
    return PORTRAITS if name == "portraits" else Path(name)


def tower_config(config: ConfigDict, outputs: int | None = None) -> TowerConfig:
    """Reads `config.tower`, with the number of outputs that the task fixes."""
    section = dict(config.tower)
    if outputs is not None:
        section["outputs"] = outputs
    return validate(section, TowerConfig, "config.tower")


def read_tower(world: Path, name: str) -> tuple[TowerConfig, Params, dict[str, Any]]:
    """Loads the tower `name` of a world; the error of a missing one says which job makes it."""
    directory = world / name
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{directory} has no weights: train them with --config=configs/pretrain_portraits.py:{name} and export them"
        )
    return load_tower(directory)


def read_instruments(world: Path) -> Instruments:
    """Loads the classifier, the regressor and the CLIP of a world."""
    classifier, regressor, clip = (read_tower(world, name)[:2] for name in ("classifier", "regressor", "clip"))
    return Instruments(classifier=classifier, regressor=regressor, clip=clip, sizes=SIZES)


def stream_of(config: ConfigDict, source: Source, transform: Transform) -> Callable[[int], Iterator[HostBatch]]:
    """Returns start_step -> this process's batches of a source."""

    def stream(start_step: int) -> Iterator[HostBatch]:
        return make_stream(
            source,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.workers,
        )

    return stream


def portrait_stream(config: ConfigDict, transform: Transform) -> Callable[[int], Iterator[HostBatch]]:
    """Returns start_step -> this process's batches of portraits; pictures are rendered when it is first called."""
    data = validate(config.data, PortraitData, "config.data")

    def stream(start_step: int) -> Iterator[HostBatch]:
        return stream_of(config, PortraitSource(data.split, data.count), transform)(start_step)

    return stream


def tree_hash(params: Mapping[str, Any]) -> str:
    """A hash of a parameter tree's paths and values, for fingerprints and cache keys."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
