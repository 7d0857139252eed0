"""Image conditions and their targets: depth, edges, instructed edits, inpainting, of portraits and of images on disk.

| task | condition, in [-1, 1] | target | prompt |
| --- | --- | --- | --- |
| depth | depth in three equal channels, nearer is larger | the picture | its caption |
| canny | Canny's edges in three equal channels, 1 on edges | the picture | its caption |
| inpaint | the picture, grey where hidden, and a fourth channel: 1 where hidden, else -1 | the picture | its caption |
| edit | the picture before the edit | the picture after it | the instruction |
| none | no condition | the picture | its caption |

Portraits know their depth, and each edit's exact result: the picture is the target and its counterfactual, which has
another value of one attribute, the source, so that precomputed latents of the pictures serve every task. Images on disk
have Canny's edges and masks made as they are read; their depth, or the pictures before an edit, are files of the same
relative name in a second directory, or members of the same sample in tar shards, read with them (`sources.Partners`).

Masks are unions of up to three boxes and strokes, or one half of the picture; 10 to 60% of it is hidden. Of portraits
one mask in four is a part as the renderer draws it, of 1 to 60%: hair, eyes, mouth, accessory or background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdd_jax.data import portraits
from sdd_jax.data.cache import CHUNK, cached_array, renderer_hash
from sdd_jax.data.decode import read_plane
from sdd_jax.data.records import Record, Tokenize, Transform, text_ids, to_float
from sdd_jax.data.restoration import caption_of

THRESHOLDS = (40.0, 90.0)
HIDDEN = (0.1, 0.6)
PARTS_SHARE = 0.25
"""Of the masks of portraits, those that are a part of the picture."""


class Conditioned(NamedTuple):
    """condition f32[H,W,c] in [-1, 1] or None; prompt: in place of the picture's caption, or None."""

    condition: np.ndarray | None
    prompt: str | None = None


Condition = Callable[[Record, np.random.Generator], Conditioned]
Caption = Callable[[Record, np.random.Generator], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit whose result is a portrait: the portrait before it, the attribute, its old and new value, the words."""

    source: portraits.Portrait
    attribute: str
    old: str
    new: str
    instruction: str


def conditioned_rows(
    tokenize: Tokenize,
    make: Condition,
    caption: Caption,
    moments: np.ndarray | None = None,
    tokenize_2: Tokenize | None = None,
) -> Transform:
    """Rows of `condition` (where the task has one), `text_ids`, and `image` f32[H,W,3].

    With `moments` f[n,h,w,2c] of the very pictures they stand in for `image`.
    """

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        made = make(record, rng)
        prompt = caption(record, rng) if made.prompt is None else made.prompt
        row = text_ids(prompt, tokenize, tokenize_2)
        if made.condition is not None:
            row["condition"] = made.condition
        if moments is None:
            return {**row, "image": to_float(record["image"])}
        return {**row, "moments": moments[record["position"]].astype(np.float32)}

    return transform


def portrait_caption(captions: str) -> Caption:
    """The prompts of portraits: `captions` is "random", "full" or "none"."""
    return lambda record, rng: caption_of(record["index"], captions, rng)


def file_caption(record: Record, rng: np.random.Generator) -> str:
    """The caption that an image on disk came with, or ''."""
    return record["caption"]


def no_condition(record: Record, rng: np.random.Generator) -> Conditioned:
    """The prompt is all there is."""
    return Conditioned(None)


def canny(thresholds: tuple[float, float] = THRESHOLDS) -> Condition:
    """Edges of any picture; thresholds: low and high, on Sobel's magnitude of 8-bit grey levels."""

    def make(record: Record, rng: np.random.Generator) -> Conditioned:
        return Conditioned(edge_image(record["image"], thresholds))

    return make


def edge_image(image: np.ndarray, thresholds: tuple[float, float] = THRESHOLDS) -> np.ndarray:
    """Canny's edges of uint8 [H,W,3] as f32[H,W,3]: 1 on edges, -1 elsewhere."""
    return three_channels(to_float(portraits.edges(image, *thresholds)))


def three_channels(plane: np.ndarray) -> np.ndarray:
    """f32[H,W] -> f32[H,W,3], three times the same."""
    return np.repeat(plane[..., None], 3, axis=-1)


def inpainting(record: Record, rng: np.random.Generator) -> Conditioned:
    """A picture with a random part hidden."""
    return Conditioned(masked_image(record["image"], random_mask(record["image"].shape[:2], rng)))


def portrait_inpainting(record: Record, rng: np.random.Generator) -> Conditioned:
    """A portrait with something at random hidden, or one of its parts."""
    is_part = rng.random() < PARTS_SHARE
    mask = part_mask(record["index"], rng) if is_part else random_mask(record["image"].shape[:2], rng)
    return Conditioned(masked_image(record["image"], mask))


def part_mask(index: int, rng: np.random.Generator) -> np.ndarray:
    """bool [64,64], True wherever a part of a portrait shows: of the parts that it has, and that leave enough, any."""
    masks = [mask > 0 for mask in portraits.render(portraits.portrait(index)).masks.values()]
    shown = [mask for mask in masks if 0 < mask.mean() <= HIDDEN[1]]
    return shown[int(rng.integers(len(shown)))]


def masked_image(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3], bool [H,W] (True: hidden) -> the condition f32[H,W,4]."""
    hidden = mask[..., None]
    return np.concatenate([np.where(hidden, np.float32(0), to_float(image)), np.where(hidden, 1, -1)], -1).astype("f4")


def random_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """bool [H,W], True where hidden: one half of the picture, or up to three boxes and strokes."""
    height, width = size
    y, x = (np.arange(side, dtype=np.float32) + 0.5 for side in size)
    y, x = y[:, None] / height, x[None] / width
    while True:
        if rng.random() < 0.15:
            side = (x < 0.5) if rng.random() < 0.5 else (y < 0.5)
            return np.broadcast_to(side if rng.random() < 0.5 else ~side, size).copy()
        mask = np.zeros(size, bool)
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.5:
                (cx, cy), (a, b) = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.3, 2)
                mask |= (np.abs(x - cx) < a) & (np.abs(y - cy) < b)
            else:
                (x0, y0, x1, y1), radius = rng.uniform(0.05, 0.95, 4), rng.uniform(0.05, 0.12)
                along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-6)
                along = np.clip(along, 0, 1)
                mask |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) < radius
        if HIDDEN[0] <= mask.mean() <= HIDDEN[1]:
            return mask


def composite(images: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Puts the known pixels of inpainting conditions f32[b,H,W,4] back into images f32[b,H,W,3]."""
    return np.where(conditions[..., 3:] > 0, images, conditions[..., :3])


def draw_edit(index: int, rng: np.random.Generator) -> Edit:
    """An edit that ends in the portrait `index`: attribute and old value are uniform."""
    portrait = portraits.portrait(index)
    names = list(portraits.VOCABULARY)
    attribute = names[int(rng.integers(len(names)))]
    new = getattr(portrait.attributes, attribute)
    others = [value for value in portraits.VOCABULARY[attribute] if value != new]
    old = others[int(rng.integers(len(others)))]
    source = portraits.counterfactual(portrait, attribute, old)
    words = portraits.instruction(attribute, new, source.attributes.species, previous=old, rng=rng)
    return Edit(source=source, attribute=attribute, old=old, new=new, instruction=words)


def portrait_edit(record: Record, rng: np.random.Generator) -> Conditioned:
    """The portrait before a random edit, and the instruction."""
    edit = draw_edit(record["index"], rng)
    return Conditioned(to_float(portraits.image(edit.source)), edit.instruction)


def portrait_depth(maps: np.ndarray | None = None) -> Condition:
    """The depth of portraits, from `maps` uint8 [n,64,64] of `rendered_depth`, else rendered."""

    def make(record: Record, rng: np.random.Generator) -> Conditioned:
        plane = depth_of(record["index"]) if maps is None else np.asarray(maps[record["position"]])
        return Conditioned(three_channels(to_float(plane)))

    return make


def depth_of(index: int) -> np.ndarray:
    """A portrait's depth, uint8 [64,64], nearer is larger."""
    return np.round(255 * portraits.render(portraits.portrait(index)).depth).astype(np.uint8)


def rendered_depth(split: str, count: int) -> np.ndarray:
    """The depth of the first `count` portraits of a split, uint8 [count,64,64], rendered once and kept on disk."""
    indices = portraits.split_indices(split)[:count]

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(indices), CHUNK):
            yield np.stack([depth_of(i) for i in indices[start : start + CHUNK]])

    shape = (len(indices), portraits.SIZE, portraits.SIZE)
    return cached_array(f"depth-{split}", renderer_hash(), shape, "uint8", chunks)


def file_depth(record: Record, rng: np.random.Generator) -> Conditioned:
    """The depth that an image on disk came with: `partner` f32[H,W] of `read_depth`."""
    return Conditioned(three_channels(record["partner"]))


def file_edit(record: Record, rng: np.random.Generator) -> Conditioned:
    """The image before the edit, `partner` u8[H,W,3] of `read_image`; the caption is the instruction."""
    return Conditioned(to_float(record["partner"]))


def read_depth(data: str | Path | bytes, size: int, name: str = "", *, stretched: bool = False) -> np.ndarray:
    """Reads a depth map of any bit depth as f32 [size,size] in [-1, 1], its least value -1 and its largest 1.

    Shorter side scaled to `size`, centre cropped, and errors as `read_image`; `stretched`: both sides scaled instead.
    """
    values = read_plane(data, name)
    if values.ndim != 2:
        raise ValueError(f"{name or data!s} has {values.ndim} axes: a depth map is one plane")
    scale = size / min(values.shape)
    shape = (max(size, round(values.shape[1] * scale)), max(size, round(values.shape[0] * scale)))
    shape = (size, size) if stretched else shape
    values = np.asarray(Image.fromarray(values, mode="F").resize(shape, Image.Resampling.BILINEAR))
    top, left = (values.shape[0] - size) // 2, (values.shape[1] - size) // 2
    values = values[top : top + size, left : left + size]
    low, high = float(values.min()), float(values.max())
    scaled = 2 * ((values - low) / (high - low)) - 1 if high > low else np.zeros_like(values)
    return scaled.astype(np.float32)
