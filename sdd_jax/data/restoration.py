"""Super-resolution records: a degraded picture beside its original, for portraits and for a folder of images."""

from __future__ import annotations

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.degrade import condition, degrade
from sdd_jax.data.degrade_spec import DegradeSpec
from sdd_jax.data.records import Record, Tokenize, Transform, text_ids


def caption_of(index: int, captions: str, rng: np.random.Generator) -> str:
    """The prompt of a portrait: `captions` is "random" (may leave attributes out), "full" or "none" (empty)."""
    portrait = portraits.portrait(index)
    if captions == "none":
        return ""
    return portraits.caption(portrait.attributes) if captions == "full" else portraits.random_caption(portrait, rng)


def degraded_portraits(
    tokenize: Tokenize,
    spec: DegradeSpec,
    captions: str,
    moments: np.ndarray | None = None,
    tokenize_2: Tokenize | None = None,
) -> Transform:
    """Rows of `condition` f32[64,64,3] (the degraded picture, bicubic to full size), `text_ids`, and `image`.

    With `moments` f[n,h,w,2c] of the very originals they stand in for `image`; the degradation must not sharpen then.
    """
    if moments is not None and spec.sharpen_weight:
        raise ValueError(
            "precomputed moments are of the originals; this degradation sharpens them first: use no moments"
        )

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        truth, low = degrade(record["image"], rng, spec)
        row = {
            "condition": condition(low, truth.shape[0]),
            **text_ids(caption_of(record["index"], captions, rng), tokenize, tokenize_2),
        }
        if moments is None:
            return {**row, "image": truth}
        return {**row, "moments": moments[record["position"]].astype(np.float32)}

    return transform


def degraded_images(tokenize: Tokenize, spec: DegradeSpec, tokenize_2: Tokenize | None = None) -> Transform:
    """Rows of `image` f32[H,W,3] (sharpened where the degradation does), `condition`, `text_ids` of its caption."""

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        truth, low = degrade(record["image"], rng, spec)
        ids = text_ids(record["caption"], tokenize, tokenize_2)
        return {"image": truth, "condition": condition(low, truth.shape[0]), **ids}

    return transform
