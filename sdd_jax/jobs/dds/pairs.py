"""Held-out portraits and the exact answers to their edits, chosen for DDS's evaluation and tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.edit_pairs import EDITS, EditPairs, difference_mask, parse_edit
from sdd_jax.data.records import to_float
from sdd_jax.jobs.dds.data import TranslationTask, matching_indices


def distinct_pairs(edits: Sequence[str] = EDITS, count: int = 8) -> EditPairs:
    """`count` pairs of each edit, every pair of a portrait of its own: as many individuals as pairs.

    Held-out portraits in their order; each goes to the edit that has fewest so far, of those whose value it lacks.

    Raises:
        ValueError: an edit that is none, no edit, a count below 1, or too few portraits.
    """
    asked = [parse_edit(edit) for edit in edits]
    if count < 1 or not asked:
        raise ValueError(f"{count} pairs of {len(asked)} edits: ask for at least one of each")
    chosen: list[list[portraits.Portrait]] = [[] for _ in asked]
    for one in map(portraits.portrait, portraits.split_indices("heldout")):
        fitting = [
            found
            for found, (attribute, value) in zip(chosen, asked, strict=True)
            if len(found) < count and getattr(one.attributes, attribute) != value
        ]
        if fitting:
            min(fitting, key=len).append(one)
        if all(len(found) == count for found in chosen):
            return joined([pairs_of(found, *edit) for found, edit in zip(chosen, asked, strict=True)])
    raise ValueError(f"{count} pairs of each of {len(asked)} edits are more than there are held-out portraits")


def task_pairs(task: TranslationTask, only: str, count: int) -> EditPairs:
    """`count` held-out portraits of `only` that a task changes, with their exact answers."""
    attribute, value = next(iter(portraits.parse_caption(task.target).items()))
    candidates = map(portraits.portrait, matching_indices("heldout", only))
    fitting = (one for one in candidates if getattr(one.attributes, attribute) != value)
    chosen = list(itertools.islice(fitting, count))
    if len(chosen) < count:
        raise ValueError(
            f"{len(chosen)} held-out portraits of {only or 'any kind'!r} lack {value!r}, {count} were asked for"
        )
    return pairs_of(chosen, attribute, value)


def pairs_of(chosen: Sequence[portraits.Portrait], attribute: str, value: str) -> EditPairs:
    """Portraits and what they are with one attribute changed."""
    answers = [portraits.counterfactual(one, attribute, value) for one in chosen]
    pictures = [(portraits.image(one), portraits.image(other)) for one, other in zip(chosen, answers, strict=True)]
    count, place = len(chosen), list(portraits.VOCABULARY).index(attribute)
    return EditPairs(
        edits=(f"{attribute}={value}",) * count,
        source=tuple(portraits.caption(one.attributes) for one in chosen),
        target=tuple(portraits.caption(one.attributes) for one in answers),
        image=np.stack([to_float(before) for before, _ in pictures]),
        counterfactual=np.stack([to_float(after) for _, after in pictures]),
        mask=np.stack([difference_mask(*pair) for pair in pictures]),
        attribute=np.full(count, place),
        value=np.full(count, portraits.VOCABULARY[attribute].index(value)),
        labels=np.stack([portraits.labels(one.attributes) for one in chosen]),
        index=np.asarray([one.index for one in chosen]),
    )


def joined(parts: Sequence[EditPairs]) -> EditPairs:
    """Several sets of pairs as one."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(EditPairs):
        values = [getattr(part, field.name) for part in parts]
        found[field.name] = sum(values, ()) if isinstance(values[0], tuple) else np.concatenate(values)
    return EditPairs(**found)


def part_of(pairs: EditPairs, which: slice) -> EditPairs:
    """Some of the pairs."""
    return EditPairs(**{field.name: getattr(pairs, field.name)[which] for field in dataclasses.fields(EditPairs)})


def batch_size(count: int, limit: int) -> int:
    """The largest batch up to `limit`, and above half of it, that divides `count`: one program; else `limit`."""
    return next((size for size in range(limit, limit // 2, -1) if count % size == 0), limit)
