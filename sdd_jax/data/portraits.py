"""Portraits: a procedural world of captioned faces with exact ground truth for every edit (numpy only).

A portrait is (attributes, nuisance). Both are drawn from its index with a counter-based generator (Philox keyed by the
index), so picture i is the same on every machine, in every process and in any order. The picture is

    image = draw(attributes, nuisance),        counterfactual = draw(attributes with one value changed, nuisance)

so the same individual exists with and without each attribute, and the target of every edit is known exactly.

| attribute  | values, in the order of the classifier's labels | what draws it |
| ---------- | ------------------------------------------------ | ------------- |
| species    | human cat dog lion bear squirrel | silhouette (ears, mane, tail, hair), muzzle, nose |
| hair       | black brown blond red white grey | hair of humans, fur of animals |
| expression | neutral smiling angry surprised | brows, eyes and mouth |
| accessory  | none glasses hat | round blue frames; a brimmed purple hat with a yellow band |
| pose       | front left right | the head's yaw; left = the nose points to the picture's left |
| background | sky field wall night | behind the bust |
| weather    | clear snowing | flakes before everything; they touch neither depth nor masks |

Nuisance is continuous: position, scale, head shape, feature spacing, shade, light, background gradient, texture phase.

Coordinates: pixels, x to the right and y downwards. The head is an ellipsoid of half-axes (R ax, R ay, R ax); a feature
at (u, v) on its front (units of the half-axes, u to the right, v downwards) has z = sqrt(1 - u^2 - v^2) + lift, and a
yaw of theta moves it to

    x = cx + R ax (u cos theta + z sin theta),        y = cy + R ay v                                      (1)

so near features (nose, muzzle) move more than the outline: parallax, as in a photograph.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sdd_jax.data import portraits_parts
from sdd_jax.data.portraits_draw import PARTS, SIZE, edges
from sdd_jax.data.portraits_text import (
    VOCABULARY,
    all_words,
    caption,
    caption_corpus,
    instruction,
    parse_caption,
    random_caption,
)

__all__ = [
    "PARTS",
    "SIZE",
    "SPLITS",
    "VOCABULARY",
    "Attributes",
    "Nuisance",
    "Portrait",
    "Rendered",
    "all_words",
    "caption",
    "caption_corpus",
    "counterfactual",
    "edges",
    "image",
    "instruction",
    "labels",
    "parse_caption",
    "portrait",
    "random_caption",
    "render",
    "split_indices",
]

SPLITS: dict[str, range] = {"train": range(0, 2_000_000), "heldout": range(4_000_000, 4_010_000)}


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """One value of `VOCABULARY` for each attribute."""

    species: str
    hair: str
    expression: str
    accessory: str
    pose: str
    background: str
    weather: str

    def __post_init__(self) -> None:
        for name, values in VOCABULARY.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a portrait's; use one of {', '.join(values)}")


@dataclass(frozen=True, kw_only=True)
class Nuisance:
    """What varies between individuals and carries no label. Ranges are uniform; see `portrait`."""

    x: float  # head's centre to the right of the picture's, pixels
    y: float  # and below its usual height
    scale: float  # head's size, about 1
    aspect: float  # width over height, about 1
    taper: float  # how much the jaw narrows
    eye_spacing: float  # about 1
    eye_height: float  # of the head's half-height, about 0
    shade: float  # brightness of hair or fur, about 1
    skin: float  # human skin from light (0) to dark (1)
    length: float  # hair's length, mane's and tail's size, 0 to 1
    side: float  # where the tail and the moon are, -1 left to 1 right
    light: float  # direction of the light, radians from straight above, positive to the right
    turn: float  # added yaw, radians
    gradient: float  # background's gradient, -1 to 1
    hue: float  # background's and clothes' tint, -1 to 1
    texture: float  # phase of clouds, bricks, stars and flakes, 0 to 1


RANGES: dict[str, tuple[float, float]] = {
    "x": (-3.0, 3.0),
    "y": (-1.5, 1.5),
    "scale": (0.93, 1.06),
    "aspect": (0.94, 1.07),
    "taper": (0.02, 0.16),
    "eye_spacing": (0.92, 1.08),
    "eye_height": (-0.04, 0.04),
    "shade": (0.93, 1.05),
    "skin": (0.0, 1.0),
    "length": (0.0, 1.0),
    "side": (-1.0, 1.0),
    "light": (-1.2, 1.2),
    "turn": (-0.05, 0.05),
    "gradient": (-1.0, 1.0),
    "hue": (-1.0, 1.0),
    "texture": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """An individual: its index, labelled attributes and unlabelled nuisance."""

    index: int
    attributes: Attributes
    nuisance: Nuisance


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """image uint8 [64, 64, 3]; depth f32 [64, 64] in [0, 1], nearer is larger; masks: part -> f32 [64, 64] in [0, 1].

    The masks, one for each of `PARTS`, do not overlap, and leave out skin, nose, brows and clothes. `hair` is hair of
    humans and fur of animals (body and tail too); snow is in none and hides none.
    """

    image: np.ndarray
    depth: np.ndarray
    masks: dict[str, np.ndarray]


def portrait(index: int) -> Portrait:
    """The portrait of an index: attributes uniform and independent, nuisance uniform in `RANGES`."""
    if index < 0:
        raise ValueError(f"portrait index {index} is negative; use one of split_indices('train') or ('heldout')")
    draws = np.random.Generator(np.random.Philox(key=int(index))).random(len(VOCABULARY) + len(RANGES)).tolist()
    chosen = {name: values[int(d * len(values))] for (name, values), d in zip(VOCABULARY.items(), draws, strict=False)}
    rest = draws[len(VOCABULARY) :]
    nuisance = {name: low + (high - low) * d for (name, (low, high)), d in zip(RANGES.items(), rest, strict=True)}
    return Portrait(index=int(index), attributes=Attributes(**chosen), nuisance=Nuisance(**nuisance))


def split_indices(split: str) -> range:
    """Indices of a split; 'train' and 'heldout' never overlap."""
    if split not in SPLITS:
        raise ValueError(f"portraits have no split {split!r}; use one of {', '.join(SPLITS)}")
    return SPLITS[split]


def counterfactual(portrait: Portrait, attribute: str, value: str) -> Portrait:
    """The same individual with one attribute changed; everything else, nuisance included, stays."""
    if attribute not in VOCABULARY:
        raise ValueError(f"portraits have no attribute {attribute!r}; use one of {', '.join(VOCABULARY)}")
    return dataclasses.replace(portrait, attributes=dataclasses.replace(portrait.attributes, **{attribute: value}))


def labels(attributes: Attributes) -> np.ndarray:
    """int32 [7]: the index of each attribute's value, in the order of `VOCABULARY`."""
    return np.array([values.index(getattr(attributes, name)) for name, values in VOCABULARY.items()], np.int32)


def render(portrait: Portrait) -> Rendered:
    """Image, depth and part masks of a portrait."""
    canvas = portraits_parts.draw(portrait.attributes, portrait.nuisance, truth=True)
    assert canvas.depth is not None and canvas.masks is not None
    masks = {name: np.clip(canvas.masks[i], 0, 1) for i, name in enumerate(PARTS)}
    return Rendered(image=canvas.pixels(), depth=np.clip(canvas.depth, 0, 1), masks=masks)


def image(portrait_or_index: Portrait | int) -> np.ndarray:
    """uint8 [64, 64, 3]: the picture alone, at about half the cost of `render`."""
    p = portrait_or_index if isinstance(portrait_or_index, Portrait) else portrait(portrait_or_index)
    return portraits_parts.draw(p.attributes, p.nuisance).pixels()
