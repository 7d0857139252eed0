"""Edits with known answers: held-out portraits and the same individuals with one attribute changed.

An edit is "attribute=value" (`accessory=hat`). Its pairs are the first held-out portraits, or a later block of as many,
that do not have the value already: source image and canonical caption, and the counterfactual's. The mask is where the
two pictures differ, widened by `MARGIN` pixels, for a latent is four wide.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.records import to_float

EDITS = ("hair=white", "hair=black", "expression=smiling", "expression=angry", "accessory=glasses", "accessory=hat",
         "species=lion", "species=cat", "weather=snowing")  # fmt: skip
MARGIN = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditPairs:
    """n pairs, in the order of the edits.

    edits: the edit of each pair. source, target: captions. image, counterfactual: f32[n,64,64,3] in [-1, 1]. mask:
    f32[n,64,64,1], 1 where they differ. attribute, value: i32[n], places in `VOCABULARY`. labels: i32[n,7] of the
    source. index: i64[n], the portraits'.
    """

    edits: tuple[str, ...]
    source: tuple[str, ...]
    target: tuple[str, ...]
    image: np.ndarray
    counterfactual: np.ndarray
    mask: np.ndarray
    attribute: np.ndarray
    value: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def parse_edit(edit: str) -> tuple[str, str]:
    """(attribute, value) of "attribute=value"; ValueError for any other."""
    attribute, _, value = edit.partition("=")
    if value not in portraits.VOCABULARY.get(attribute, ()):
        known = "; ".join(f"{name}: {', '.join(values)}" for name, values in portraits.VOCABULARY.items())
        raise ValueError(f"{edit!r} is no edit of a portrait: give attribute=value, of {known}")
    return attribute, value


def edit_pairs(edits: Sequence[str] = EDITS, count: int = 16, block: int = 0) -> EditPairs:
    """The `block`-th `count` pairs of each edit, 0 first; ValueError for an edit that is none, or a count below 1."""
    if count < 1 or not edits:
        raise ValueError(f"{count} pairs of {len(edits)} edits: ask for at least one of each")
    found: list[tuple[str, portraits.Portrait, portraits.Portrait]] = []
    for edit in edits:
        attribute, value = parse_edit(edit)
        chosen = (portraits.portrait(i) for i in portraits.split_indices("heldout"))
        fitting = (one for one in chosen if getattr(one.attributes, attribute) != value)
        found += [
            (edit, source, portraits.counterfactual(source, attribute, value))
            for source in itertools.islice(fitting, block * count, (block + 1) * count)
        ]
    asked = [parse_edit(edit) for edit, _, _ in found]
    before = np.stack([portraits.image(source) for _, source, _ in found])
    after = np.stack([portraits.image(target) for _, _, target in found])
    return EditPairs(
        edits=tuple(edit for edit, _, _ in found),
        source=tuple(portraits.caption(source.attributes) for _, source, _ in found),
        target=tuple(portraits.caption(target.attributes) for _, _, target in found),
        image=to_float(before),
        counterfactual=to_float(after),
        mask=np.stack([difference_mask(a, b) for a, b in zip(before, after, strict=True)]),
        attribute=np.asarray([list(portraits.VOCABULARY).index(attribute) for attribute, _ in asked]),
        value=np.asarray([portraits.VOCABULARY[attribute].index(value) for attribute, value in asked]),
        labels=np.stack([portraits.labels(source.attributes) for _, source, _ in found]),
        index=np.asarray([source.index for _, source, _ in found]),
    )


def difference_mask(a: np.ndarray, b: np.ndarray, margin: int = MARGIN) -> np.ndarray:
    """f32[h,w,1]: 1 within `margin` pixels of where uint8 images [h,w,3] differ."""
    differs = np.pad((a != b).any(-1), margin)
    windows = np.lib.stride_tricks.sliding_window_view(differs, (2 * margin + 1,) * 2)
    return np.asarray(windows.any((-1, -2)), np.float32)[..., None]
