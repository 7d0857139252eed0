"""How well images show what their captions say, and how much they are like the data.

| metric | better | what |
| --- | --- | --- |
| attributes | higher | share of the captions' attributes that the classifier reads off the images |
| clip_score | higher | cosine of the CLIP embeddings of image and caption |
| frechet | lower | Frechet distance between the CLIP embeddings of images and renders, times 100; biased at small n |
"""

from __future__ import annotations

import numpy as np

from sdd_jax.evals.clip_score import cosine
from sdd_jax.evals.frechet import feature_stats, frechet_distance
from sdd_jax.evals.instruments import Instruments

COLUMNS = ("attributes", "clip_score", "frechet")


def generation_metrics(
    instruments: Instruments, images: np.ndarray, labels: np.ndarray, captions: np.ndarray, renders: np.ndarray
) -> dict[str, float]:
    """The table above for `images` f32[n,H,W,3].

    Args:
        labels: i32[n,a], the captions' attributes. captions: their CLIP embeddings f32[n,e]. renders: f32[m,H,W,3].
    """
    read, real = instruments.read(images), instruments.read(renders)
    return {
        "attributes": float(np.mean(read.labels == labels)),
        "clip_score": float(np.mean(cosine(read.embedding, captions))),
        "frechet": 100 * frechet_distance(feature_stats([read.embedding]), feature_stats([real.embedding])),
    }
