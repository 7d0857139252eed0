"""Images and their captions as training batches, for methods that need nothing else: portraits, files, or latents.

A batch of portraits is `moments` (encoded once) and the `input_ids` of a random caption; of files `image` and the
`input_ids` of its caption, for models with two text encoders also `input_ids_2`; of latents that `precompute` made
`moments` and `context` (and `pooled`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.latent_records import LatentRecords
from sdd_jax.data.latent_rows import plain_latents
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.records import PortraitSource, Record, Tokenize, Transform, text_ids, to_float
from sdd_jax.data.sources import ImageData, ImageOptions, augmented, open_source
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedLatents(ImageOptions):
    """Config of what `precompute` made at `path`: its settings are those that it was made with.

    size: side of the pictures. captions: which of several. count: how many records there must be, 0 for any.
    """

    source: str = "latents"
    path: str
    size: int = 512
    captions: str = "random"
    count: int = 0

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("source='latents' needs a path: set config.data.path to what precompute wrote")
        self.check_unused(self.source)

    def open(self, model: ModelBundle, made_by: str) -> LatentRecords:
        """The records; `made_by`: the content hash of the model that the autoencoder and the text encoders are of.

        Raises:
            FileNotFoundError, ValueError: as `LatentRecords`; made with other settings.
        """
        records = LatentRecords(self.path, made_by, self.max_bad_share)
        side = records.manifest.arrays["moments"][0][0] * model.downsampling
        made = {"size": side, "captions": records.manifest.data["captions"], "count": len(records)}
        for name, value in made.items():
            wanted = getattr(self, name)
            if wanted != value and (name, wanted) != ("count", 0):
                raise ValueError(
                    f"the latents in {self.path} were made with {name}={value}, config.data.{name} is {wanted}: set it "
                    "to theirs, or precompute others"
                )
        return records


CaptionedData = CaptionedPortraits | CaptionedLatents | ImageData


def captioned_data(section: Mapping[str, Any]) -> CaptionedData:
    """Reads `config.data`: by its `source` portraits, latents, or else files as `data.sources` describes them."""
    if section.get("source") == "portraits":
        return validate(section, CaptionedPortraits, "config.data")
    if section.get("source") == "latents":
        return validate(section, CaptionedLatents, "config.data")
    return validate(section, ImageData, "config.data")


def title(data: CaptionedData) -> str:
    """The data's name for the log."""
    return data.source if isinstance(data, CaptionedPortraits) else f"{data.source} {data.path}"


def captioned_stream(
    config: ConfigDict, data: CaptionedData, model: ModelBundle, vae: Params, made_by: str
) -> Callable[[int], Iterator[HostBatch]]:
    """Returns start_step -> this process's batches; nothing is opened or encoded before it is called.

    Args:
        made_by: content hash of the model that the autoencoder and the text encoders are of.
    """

    def stream(start_step: int) -> Iterator[HostBatch]:
        if isinstance(data, CaptionedLatents):
            records = data.open(model, made_by)
            return stream_of(config, records, plain_latents(records))(start_step)
        tokenizers = model.tokenize, model.tokenize_2
        if isinstance(data, ImageData):
            return stream_of(config, open_source(data), augmented(data, _files(*tokenizers)))(start_step)
        source = PortraitSource(data.split, data.count)
        return stream_of(config, source, _portraits(encoded_portraits(model, vae, source), *tokenizers))(start_step)

    return stream


def token_ids(model: ModelBundle, text: str) -> dict[str, np.ndarray]:
    """`input_ids` i32[n] of a text, and `input_ids_2` where the model has a second text encoder."""
    return text_ids(text, model.tokenize, model.tokenize_2)


def prompt_ids(model: ModelBundle, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """`input_ids` i32[b,n] of prompts, and `input_ids_2` where the model has a second text encoder."""
    ids = {"input_ids": model.tokenize(prompts)}
    return ids if model.tokenize_2 is None else {**ids, "input_ids_2": model.tokenize_2(prompts)}


def _portraits(moments: np.ndarray, tokenize: Tokenize, tokenize_2: Tokenize | None) -> Transform:
    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = portraits.random_caption(portraits.portrait(record["index"]), rng)
        return {"moments": moments[record["position"]].astype(np.float32), **text_ids(text, tokenize, tokenize_2)}

    return transform


def _files(tokenize: Tokenize, tokenize_2: Tokenize | None) -> Transform:
    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": to_float(record["image"]), **text_ids(record["caption"], tokenize, tokenize_2)}

    return transform
