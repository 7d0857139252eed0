"""Whether a generated portrait obeys its condition, and is a portrait all the same.

| task | metric | better | what |
| --- | --- | --- | --- |
| canny | edges | higher | F1 of the output's edges against the given ones, within one pixel |
| depth | depth | higher | rank correlation of the depth read off the output with the given depth |
| inpaint | psnr_hidden | higher | PSNR against the truth where the picture was hidden |
| inpaint | known_error | 0 | largest difference from the given pixels where it was not, in 8-bit levels |
| edit | success | higher | share of outputs whose edited attribute reads as asked |
| edit | preserved | higher | share of all other attributes that read as they were |

and for all: psnr and ssim against the exact result, clip_distance to it, the Frechet distance (times 100) between CLIP
embeddings of outputs and truths, and `attributes`, the share that reads as the truth's.

What copies the condition shows: the picture before an edit has success 0, a hole left open a low psnr_hidden, and a
depth map or edges a low psnr and other attributes (though edges of edges agree: read that figure beside the others).

Depth is read by analysis and synthesis: the classifier's attributes and the regressor's nuisance values make a
portrait, whose rendered depth is the estimate. On true renders it shows what the instruments lose.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from sdd_jax.data import portraits
from sdd_jax.evals.frechet import cosine_distance, feature_stats, frechet_distance
from sdd_jax.evals.image_metrics import masked_psnr, psnr, ssim
from sdd_jax.evals.instruments import Instruments, Readings
from sdd_jax.images import to_uint8

SHARED = ("psnr", "ssim", "clip_distance", "frechet", "attributes")
OWN = {
    "canny": ("edges",),
    "depth": ("depth",),
    "inpaint": ("psnr_hidden", "known_error"),
    "edit": ("success", "preserved"),
    "none": (),
}
"""Metrics by task, beside the shared ones."""


def shared_metrics(
    instruments: Instruments, outputs: np.ndarray, truths: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, float], Readings]:
    """The metrics of every task for outputs f32[n,H,W,3] against truths, labels i32[n,a], and the outputs' readings."""
    outputs = np.clip(outputs, -1.0, 1.0)
    pair = jnp.asarray(outputs), jnp.asarray(truths)
    read, truth = instruments.read(outputs), instruments.read(truths)
    return {
        "psnr": float(np.mean(psnr(*pair))),
        "ssim": float(np.mean(ssim(*pair))),
        "clip_distance": float(np.mean(cosine_distance(read.embedding, truth.embedding))),
        "frechet": 100 * frechet_distance(feature_stats([read.embedding]), feature_stats([truth.embedding])),
        "attributes": float(np.mean(read.labels == labels)),
    }, read


def edge_agreement(outputs: np.ndarray, edges: np.ndarray, thresholds: tuple[float, float]) -> float:
    """Mean F1 of outputs' f32[n,H,W,3] edges against `edges` bool[n,H,W]: one found within a pixel of the other."""
    scores = []
    for image, wanted in zip(to_uint8(outputs), edges, strict=True):
        found = portraits.edges(image, *thresholds) > 0
        if not found.any() or not wanted.any():
            scores.append(float(found.any() == wanted.any()))
            continue
        precision = float(np.mean(_grown(wanted)[found]))
        recall = float(np.mean(_grown(found)[wanted]))
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return float(np.mean(scores))


def _grown(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


def read_depth_maps(readings: Readings) -> np.ndarray:
    """f32[n,64,64]: the depth of the portraits that have the attributes and nuisance values read."""
    maps = []
    for labels, nuisance in zip(readings.labels, readings.nuisance, strict=True):
        attributes = {
            name: values[int(label)] for (name, values), label in zip(portraits.VOCABULARY.items(), labels, strict=True)
        }
        ranges = zip(portraits.RANGES.items(), nuisance, strict=True)
        values = {
            name: float(np.clip(low + (high - low) * (value / 12**0.5 + 0.5), low, high))
            for (name, (low, high)), value in ranges
        }
        read = portraits.Portrait(
            index=0, attributes=portraits.Attributes(**attributes), nuisance=portraits.Nuisance(**values)
        )
        maps.append(portraits.render(read).depth)
    return np.stack(maps)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over images of Spearman's correlation of two [n,H,W], ties at their mean rank; 0 for a constant image."""
    ranks = [[rankdata(image.ravel()) for image in images] for images in (a, b)]
    found = []
    for x, y in zip(*ranks, strict=True):
        x, y = x - x.mean(), y - y.mean()
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        found.append(float(x @ y) / norm if norm else 0.0)
    return float(np.mean(found))


def inpainting_metrics(outputs: np.ndarray, truths: np.ndarray, conditions: np.ndarray) -> dict[str, float]:
    """psnr_hidden and known_error of outputs f32[n,H,W,3] for conditions f32[n,H,W,4]."""
    hidden = conditions[..., 3:] > 0
    clipped = jnp.asarray(np.clip(outputs, -1.0, 1.0))
    inside = masked_psnr(clipped, jnp.asarray(truths), jnp.asarray(hidden, jnp.float32))
    outside = np.abs(to_uint8(outputs).astype(int) - to_uint8(conditions[..., :3]).astype(int)) * ~hidden
    return {"psnr_hidden": float(np.mean(inside)), "known_error": float(outside.max())}


def edit_scores(read: np.ndarray, labels: np.ndarray, edited: np.ndarray) -> dict[str, float]:
    """success and preserved of labels read i32[n,a] against the exact result's, with the edited attribute i[n]."""
    right = read == labels
    chosen = np.arange(labels.shape[1])[None] == edited[:, None]
    return {"success": float(right[chosen].mean()), "preserved": float(right[~chosen].mean())}
