"""The measures of a protocol: functions (items, pictures) -> numbers per sample, each from a network's weights.

| columns | of the result with | from |
| --- | --- | --- |
| `psnr`, `ssim` | the reference picture | nothing |
| `psnr_outside`, `lpips_outside` | the reference, where PIE-bench's mask says nothing should change | as psnr, lpips |
| `lpips` | the reference | LPIPS's backbone and linear weights |
| `dinov2` | the reference, cosine | a DINOv2 directory |
| `clip_t` | its prompt, cosine | a CLIP directory |
| `clip_i`, `clip_d` | the source picture; the direction from source to target prompt | the same |
| `image_reward` | its prompt | ImageReward's weights and BERT's vocabulary |

A picture is uint8 [H,W,3]: what is saved is what is measured. References are brought to a result's size by stretching,
as iCD's evaluation does (the published benchmarks are square). Outside the mask means both pictures are set to black
inside it; psnr_outside is over the remaining pixels alone. A value that does not exist (no direction, equal pictures'
PSNR) is nan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from sdd_jax.data.decode import read_picture
from sdd_jax.evals.clip_score import cosine, directional_similarity
from sdd_jax.evals.image_metrics import masked_psnr, psnr, ssim
from sdd_jax.evals.preprocess import DINOV2, IMAGE_REWARD, prepared, unit_range
from sdd_jax.evals.protocols.benchmarks import Item, decode_mask
from sdd_jax.evals.streaming import ShardedApply
from sdd_jax.models.dinov2 import embed_image, load_dinov2
from sdd_jax.models.imagereward import PUBLISHED, image_reward, load_image_reward, prompt_tokenizer
from sdd_jax.models.lpips import load_lpips, lpips

Picture = np.ndarray
Values = dict[str, np.ndarray]
Measure = Callable[[Sequence[Item], Sequence[Picture]], Values]


class Embedder(NamedTuple):
    """images: pictures -> f[n,e]. texts: texts -> f[n,e], in the same space."""

    images: Callable[[Iterable[Picture]], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]


def read_stretched(path: Path, size: tuple[int, ...]) -> Picture:
    """An image file stretched to (height, width), uint8 [H,W,3]."""
    picture, (height, width) = read_picture(path), size
    return np.asarray(
        picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.BICUBIC)
    )


def references(items: Sequence[Item], pictures: Sequence[Picture]) -> list[Picture]:
    """Each item's reference at the size of its picture; ValueError for an item without one."""
    return [read_stretched(_required(item), picture.shape[:2]) for item, picture in zip(items, pictures, strict=True)]


def fidelity(items: Sequence[Item], pictures: Sequence[Picture]) -> Values:
    """psnr and ssim, and psnr_outside where there are masks."""
    pairs = [
        (unit_range(a)[None], unit_range(b)[None]) for a, b in zip(pictures, references(items, pictures), strict=True)
    ]
    values = {"psnr": _numbers(psnr, pairs), "ssim": _numbers(ssim, pairs)}
    if any(item.mask for item in items):
        outside = [_outside(item, picture) for item, picture in zip(items, pictures, strict=True)]
        triples = [(*pair, keep[None]) for pair, keep in zip(pairs, outside, strict=True)]
        values["psnr_outside"] = _numbers(masked_psnr, triples)
    return values


def lpips_measure(name: str, backbone: str | Path, linear: str | Path, *, batch: int = 16) -> Measure:
    """LPIPS over "alex" or "vgg", of pictures of any sizes; errors as `load_lpips`."""
    params = load_lpips(name, backbone, linear)
    network = ShardedApply(lambda params, pair: lpips(params, pair[0], pair[1], name), params, batch=batch)

    def measure(items: Sequence[Item], pictures: Sequence[Picture]) -> Values:
        pairs = list(zip(pictures, references(items, pictures), strict=True))
        values = {"lpips": _by_size(network, [(unit_range(a), unit_range(b)) for a, b in pairs])}
        if any(item.mask for item in items):
            kept = [_outside(item, picture) for item, picture in zip(items, pictures, strict=True)]
            hidden = [
                ((unit_range(a) + 1) * keep - 1, (unit_range(b) + 1) * keep - 1)
                for (a, b), keep in zip(pairs, kept, strict=True)
            ]
            values["lpips_outside"] = _by_size(network, hidden)
        return values

    return measure


def dinov2_measure(directory: str | Path, *, batch: int = 16) -> Measure:
    """Cosine of DINOv2's class tokens of result and reference; errors as `load_dinov2`."""
    config, params = load_dinov2(directory)
    network = ShardedApply(lambda params, pixels: embed_image(config, params, pixels), params, batch=batch)
    prepare = DINOV2.to_size(min(224, config.image_size // config.patch_size * config.patch_size))

    def measure(items: Sequence[Item], pictures: Sequence[Picture]) -> Values:
        found, truth = (network.all(prepared(x, prepare)) for x in (pictures, references(items, pictures)))
        return {"dinov2": cosine(found, truth)}

    return measure


def text_image_measure(embedder: Embedder, prefix: str = "clip") -> Measure:
    """Similarity to the prompt; where there is a source picture and prompt, to those too."""

    def measure(items: Sequence[Item], pictures: Sequence[Picture]) -> Values:
        found, target = embedder.images(pictures), embedder.texts([item.target for item in items])
        values = {f"{prefix}_t": cosine(found, target)}
        if all(item.image is not None and item.source for item in items):
            before = embedder.images(
                [read_stretched(_required(item), p.shape[:2]) for item, p in zip(items, pictures, strict=True)]
            )
            source = embedder.texts([item.source for item in items])
            values[f"{prefix}_i"] = cosine(found, before)
            if any(item.source != item.target for item in items):
                values[f"{prefix}_d"] = directional_similarity(before, found, source, target)
        return values

    return measure


def image_reward_measure(weights: str | Path, vocabulary: str | Path, *, batch: int = 16) -> Measure:
    """ImageReward of result and prompt; errors as `load_image_reward` and `prompt_tokenizer`."""
    params, tokenize = load_image_reward(weights), prompt_tokenizer(vocabulary)

    def rewards(params: dict, row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return image_reward(PUBLISHED, params, *row)

    network = ShardedApply(rewards, params, batch=batch)

    def measure(items: Sequence[Item], pictures: Sequence[Picture]) -> Values:
        ids, mask = tokenize([item.target for item in items])
        return {"image_reward": network.all(zip(prepared(pictures, IMAGE_REWARD), ids, mask, strict=True))}

    return measure


def _by_size(network: ShardedApply, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The outputs f[n] of pairs of pictures in their order; those of one size are a batch, and a compiled program."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, (picture, _) in enumerate(pairs):
        places.setdefault(picture.shape, []).append(i)
    found = np.empty(len(pairs))
    for where in places.values():
        found[where] = network.all(pairs[i] for i in where)
    return found


def _required(item: Item) -> Path:
    path = item.reference or item.image
    if path is None:
        raise ValueError(f"sample {item.id} has no picture to compare with")
    return path


def _outside(item: Item, picture: Picture) -> np.ndarray:
    if item.mask is None:
        return np.ones((*picture.shape[:2], 1), np.float32)
    if picture.shape[0] != picture.shape[1]:
        raise ValueError(f"sample {item.id}: a mask is of a square picture, the result is {picture.shape[:2]}")
    return 1.0 - decode_mask(item.mask, picture.shape[0])


def _numbers(measure: Callable[..., jax.Array], rows: Iterable[tuple[np.ndarray, ...]]) -> np.ndarray:
    values = np.array([float(measure(*row)[0]) for row in rows])
    return np.where(np.isfinite(values), values, np.nan)
