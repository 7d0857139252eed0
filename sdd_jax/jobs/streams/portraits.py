"""The streams of portraits that jobs train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.pipeline import HostBatch, Source, make_stream
from sdd_jax.data.records import PortraitSource, Transform


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
