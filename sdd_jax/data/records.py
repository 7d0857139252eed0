"""Portraits as training records: what each job of the embedded world reads for one example.

A source gives `{"index": i, "image": uint8[64,64,3]}`; a transform `(record, rng) -> dict` makes a batch row of it. All
randomness comes from the `rng` that the stream hands over, so rows depend on the step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.cache import rendered_portraits

Record = dict[str, Any]
Transform = Callable[[Record, np.random.Generator], dict[str, np.ndarray]]
Tokenize = Callable[[Sequence[str]], np.ndarray]


class PortraitSource:
    """Random access to the first `count` portraits of a split; with `cached`, rendered once and read from disk."""

    def __init__(self, split: str, count: int, cached: bool = True) -> None:
        self.split = split
        self.indices = portraits.split_indices(split)[:count]
        self.images = rendered_portraits(split, count) if cached else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Record:
        index = self.indices[position]
        image = portraits.image(index) if self.images is None else np.asarray(self.images[position])
        return {"index": index, "position": position, "image": image}


def text_ids(text: str, tokenize: Tokenize, tokenize_2: Tokenize | None = None) -> dict[str, np.ndarray]:
    """`input_ids` i32[n] of a text, and `input_ids_2` where the model has a second text encoder (SDXL)."""
    ids = {"input_ids": tokenize([text])[0]}
    return ids if tokenize_2 is None else {**ids, "input_ids_2": tokenize_2([text])[0]}


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1.0


def nuisance_targets(index: int) -> np.ndarray:
    """The nuisance of a portrait, each value standardised by its uniform range: f32 [16], zero mean, unit variance."""
    nuisance = portraits.portrait(index).nuisance
    values = [(getattr(nuisance, name) - low) / (high - low) for name, (low, high) in portraits.RANGES.items()]
    return (np.asarray(values, np.float32) - 0.5) * np.float32(12**0.5)


def plain(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The picture alone: `image`."""
    return {"image": to_float(record["image"])}


def labelled(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`image` and attribute `labels` i32[7]."""
    attributes = portraits.portrait(record["index"]).attributes
    return {"image": to_float(record["image"]), "labels": portraits.labels(attributes)}


def measured(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`image` and standardised nuisance `targets` f32[16]."""
    return {"image": to_float(record["image"]), "targets": nuisance_targets(record["index"])}


def captioned(tokenize: Tokenize) -> Transform:
    """`image` and the `input_ids` of a random caption."""

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = portraits.random_caption(portraits.portrait(record["index"]), rng)
        return {"image": to_float(record["image"]), "input_ids": tokenize([text])[0]}

    return transform


def contrasted(tokenize: Tokenize, negatives: int) -> Transform:
    """`image`, `input_ids` of a random caption, `negative_ids` i32[k,n] of the same with one attribute changed."""

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        portrait = portraits.portrait(record["index"])
        seed = int(rng.integers(2**32))
        text = portraits.random_caption(portrait, np.random.default_rng(seed))
        named = list(portraits.parse_caption(text))
        texts = [text]
        for name in rng.choice(named, negatives):
            others = [v for v in portraits.VOCABULARY[name] if v != getattr(portrait.attributes, name)]
            changed = portraits.counterfactual(portrait, str(name), others[int(rng.integers(len(others)))])
            texts.append(portraits.random_caption(changed, np.random.default_rng(seed)))
        ids = tokenize(texts)
        return {"image": to_float(record["image"]), "input_ids": ids[0], "negative_ids": ids[1:]}

    return transform


def latents(moments: np.ndarray, tokenize: Tokenize) -> Transform:
    """Precomputed `moments` f32[h,w,2c] of the record's position, and the `input_ids` of a random caption."""

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = portraits.random_caption(portraits.portrait(record["index"]), rng)
        return {"moments": moments[record["position"]].astype(np.float32), "input_ids": tokenize([text])[0]}

    return transform
