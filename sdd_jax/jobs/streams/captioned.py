"""Images and their captions as training batches, for methods that need nothing else: portraits, or files.

A batch of portraits is `moments` (encoded once) and the `input_ids` of a random caption; of files `image` and the
`input_ids` of its caption. Models with two text encoders get `input_ids_2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.records import PortraitSource, Record, Transform, text_ids, to_float
from sdd_jax.data.sources import ImageData, augmented, open_source
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.jobs.streams.portraits import PortraitData, stream_of
from sdd_jax.types import ModelBundle, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedPortraits:
    """Config of captioned portraits: the split, and how many of it (rendered and encoded once)."""

    source: str = "portraits"
    split: str = "train"
    count: int = 24_000

    def __post_init__(self) -> None:
        PortraitData(split=self.split, count=self.count)


CaptionedData = CaptionedPortraits | ImageData


def captioned_data(section: Mapping[str, Any]) -> CaptionedData:
    """Reads `config.data`: portraits where `source` is "portraits", else files as `data.sources` describes them."""
    if section.get("source") == "portraits":
        return validate(section, CaptionedPortraits, "config.data")
    return validate(section, ImageData, "config.data")


def title(data: CaptionedData) -> str:
    """The data's name for the log."""
    return data.source if isinstance(data, CaptionedPortraits) else f"{data.source} {data.path}"


def captioned_stream(
    config: ConfigDict, data: CaptionedData, model: ModelBundle, vae: Params
) -> Callable[[int], Iterator[HostBatch]]:
    """Returns start_step -> this process's batches; nothing is opened or encoded before it is called."""

    def stream(start_step: int) -> Iterator[HostBatch]:
        if isinstance(data, ImageData):
            return stream_of(config, open_source(data), augmented(data, _files(model)))(start_step)
        source = PortraitSource(data.split, data.count)
        return stream_of(config, source, _portraits(model, encoded_portraits(model, vae, source)))(start_step)

    return stream


def token_ids(model: ModelBundle, text: str) -> dict[str, np.ndarray]:
    """`input_ids` i32[n] of a text, and `input_ids_2` where the model has a second text encoder."""
    return text_ids(text, model.tokenize, model.tokenize_2)


def prompt_ids(model: ModelBundle, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """`input_ids` i32[b,n] of prompts, and `input_ids_2` where the model has a second text encoder."""
    ids = {"input_ids": model.tokenize(prompts)}
    return ids if model.tokenize_2 is None else {**ids, "input_ids_2": model.tokenize_2(prompts)}


def _portraits(model: ModelBundle, moments: np.ndarray) -> Transform:
    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = portraits.random_caption(portraits.portrait(record["index"]), rng)
        return {"moments": moments[record["position"]].astype(np.float32), **token_ids(model, text)}

    return transform


def _files(model: ModelBundle) -> Transform:
    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": to_float(record["image"]), **token_ids(model, record["caption"])}

    return transform
