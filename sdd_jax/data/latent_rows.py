"""What jobs read from precomputed latents: plain rows, and rows with a picture degraded anew at every step."""

from __future__ import annotations

import numpy as np

from sdd_jax.data.degrade import condition, degrade
from sdd_jax.data.degrade_spec import DegradeSpec
from sdd_jax.data.latent_records import TEXT, LatentRecords
from sdd_jax.data.records import Record, Transform


def text_to_image(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of a plain text-to-image job: `moments`, `context` (and `pooled`)."""
    return {name: record[name] for name in ("moments", *TEXT) if name in record}


def plain_latents(latents: LatentRecords) -> Transform:
    """`text_to_image`, for records of pictures as they are; ValueError for those of sharpened ones."""
    _check_sharpening(latents, None, "this job sharpens")
    return text_to_image


def degraded_latents(latents: LatentRecords, spec: DegradeSpec) -> Transform:
    """Rows of a super-resolution job: `condition`, degraded anew at every step, beside `moments` and `context`.

    Raises:
        ValueError: records without pictures, or encoded from pictures sharpened otherwise than `spec` does.
    """
    if "image" not in latents.manifest.arrays:
        raise ValueError(
            "these latents hold no pictures to draw conditions from: precompute with a config that has an adapter"
        )
    _check_sharpening(latents, spec, "config.data.degradation sharpens")

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        truth, low = degrade(record["image"], rng, spec)
        return {"condition": condition(low, truth.shape[0]), **text_to_image(record, rng)}

    return transform


def sharpening(spec: DegradeSpec | None) -> list[float] | None:
    """What a degradation does to the target picture before anything else: weight, window, threshold; None: nothing."""
    if spec is None or not spec.sharpen_weight:
        return None
    return [float(spec.sharpen_weight), float(spec.sharpen_window), float(spec.sharpen_threshold)]


def _check_sharpening(latents: LatentRecords, spec: DegradeSpec | None, who: str) -> None:
    made, wanted = latents.manifest.data["sharpening"], sharpening(spec)
    if made != wanted:
        raise ValueError(
            f"these latents are of pictures with sharpening {made}, {who} {wanted}: precompute with this job's config"
        )
