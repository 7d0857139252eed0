"""Prompt templates: one line that says the same edit of every image, each in its own words.

    "a photo of a {species} with white {coat}"      of a lion: "a photo of a lion with white fur"

Fields of a portrait are its attributes, each in the vocabulary's first phrase (`{expression}`, `{hair}`, `{accessory}`,
...), and `{coat}`, hair of humans and fur of animals. The one field of an image from a folder is `{caption}`, the text
of its file. A template without fields is a prompt: the same for all, as in SDD.

`prompted` makes training records of images and their filled prompts. What a filled template says beside the portrait's
own attributes is the edit it asks for (`edits_of`), so that the exact counterfactual is known.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.portraits_text import PHRASES
from sdd_jax.data.records import Record, Tokenize, Transform, text_ids, to_float

PORTRAIT_FIELDS = (*portraits.VOCABULARY, "coat")
FOLDER_FIELDS = ("caption",)


def check_template(template: str, fields: tuple[str, ...]) -> None:
    """Raises ValueError for an empty template, broken braces, or a field that is not one of `fields`."""
    if not template.strip():
        raise ValueError("the prompt is empty: say what the edited image shows")
    try:
        used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"prompt={template!r}: {error}; write {{{{ and }}}} for braces") from None
    for name in used:
        if name not in fields:
            raise ValueError(f"prompt={template!r} has a field {{{name}}}; use {', '.join(f'{{{f}}}' for f in fields)}")


def portrait_fields(attributes: portraits.Attributes) -> dict[str, str]:
    """The values of `PORTRAIT_FIELDS`."""
    fields = {name: PHRASES[name][getattr(attributes, name)][0] for name in portraits.VOCABULARY}
    return {**fields, "coat": "hair" if attributes.species == "human" else "fur"}


def fill(template: str, record: Mapping[str, Any]) -> str:
    """The prompt of a record of `PortraitSource` (it has an `index`) or of images on disk (it has a `caption`)."""
    if "caption" in record:
        return template.format(caption=record["caption"])
    return template.format(**portrait_fields(portraits.portrait(record["index"]).attributes))


def edits_of(template: str, attributes: portraits.Attributes) -> dict[str, str]:
    """The attributes, and their new values, that a template changes in a portrait; empty where it has them all."""
    said = portraits.parse_caption(template.format(**portrait_fields(attributes)))
    return {name: value for name, value in said.items() if value != getattr(attributes, name)}


def edit_of(template: str) -> str:
    """The one edit that a template asks for, "attribute=value", as `edit_pairs` takes it.

    Raises:
        ValueError: it changes nothing in any portrait, or more than one attribute.
    """
    looked_at = map(portraits.portrait, portraits.split_indices("heldout")[:100])
    asked = {edit for portrait in looked_at for edit in edits_of(template, portrait.attributes).items()}
    if len(asked) != 1:
        named = ", ".join(f"{name}={value}" for name, value in sorted(asked)) or "nothing"
        raise ValueError(f"prompt={template!r} changes {named}: counterfactuals are known for one attribute")
    ((attribute, value),) = asked
    return f"{attribute}={value}"


def literal(template: str) -> str:
    """What a template says of every image: its text without the fields, "a photo of a with white"."""
    parts = [text for text, _, _, _ in string.Formatter().parse(template)]
    return " ".join(" ".join(parts).split())


def prompted(
    tokenize: Tokenize, template: str, moments: np.ndarray | None = None, tokenize_2: Tokenize | None = None
) -> Transform:
    """Rows of `image` f32[H,W,3], or of `moments` f32[h,w,2c] in its place, and `text_ids` of the filled template.

    moments: precomputed, by the record's position. tokenize_2: of a second text encoder, for `input_ids_2`.
    """

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        row = text_ids(fill(template, record), tokenize, tokenize_2)
        if moments is None:
            return {**row, "image": to_float(record["image"])}
        return {**row, "moments": moments[record["position"]].astype(np.float32)}

    return transform
