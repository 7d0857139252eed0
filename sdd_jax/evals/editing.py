"""How well an edit does what it was asked, and nothing else, where the exact answer is known.

| metric | better | what |
| --- | --- | --- |
| success | higher | share of outputs of which the classifier reads the asked value |
| preservation | higher | share of the other attributes that it reads as they were |
| psnr | higher | dB against the counterfactual, the same individual drawn with the asked value |
| psnr_outside | higher | dB against the original, outside of what the counterfactual changes |
| clip_distance | lower | 1 - cosine of the CLIP image embeddings of output and counterfactual |

Returning the original scores 0 on success, and all on preservation and psnr_outside; the counterfactual through the
autoencoder is the most that a latent method can reach. Equal pictures count `CEILING` dB. Pictures that change
everywhere have no outside, and are left out of psnr_outside (nan if all do).
"""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np

from sdd_jax.evals.frechet import cosine_distance
from sdd_jax.evals.image_metrics import masked_psnr, psnr
from sdd_jax.evals.instruments import Instruments

CEILING = 60.0
COLUMNS = ("success", "preservation", "psnr", "psnr_outside", "clip_distance")


def edit_metrics(
    instruments: Instruments,
    outputs: np.ndarray,
    counterfactuals: np.ndarray,
    originals: np.ndarray,
    attribute_index: np.ndarray,
    target_value: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
) -> dict[str, float]:
    """The table above for `outputs` f32[n,H,W,3] in [-1, 1].

    Args:
        counterfactuals, originals: as outputs. masks: f32[n,H,W,1], 1 where they differ.
        attribute_index, target_value: i32[n], which attribute was to change, and to which value.
        labels: i32[n,a], the originals' attributes.
    """
    outputs = np.clip(outputs, -1.0, 1.0)
    read = instruments.read(outputs)
    rows = np.arange(len(outputs))
    others = np.ones(labels.shape, bool)
    others[rows, attribute_index] = False
    unchanged = jnp.asarray(1.0 - masks)
    outside = np.minimum(masked_psnr(jnp.asarray(outputs), jnp.asarray(originals), unchanged), CEILING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean_outside = float(np.nanmean(outside))
    distance = cosine_distance(read.embedding, instruments.read(counterfactuals).embedding)
    return {
        "success": float(np.mean(read.labels[rows, attribute_index] == target_value)),
        "preservation": float(np.mean((read.labels == labels)[others])),
        "psnr": float(np.mean(np.minimum(psnr(jnp.asarray(outputs), jnp.asarray(counterfactuals)), CEILING))),
        "psnr_outside": mean_outside,
        "clip_distance": float(np.mean(distance)),
    }
