"""How well an image comes back from its noise, and how much like noise that is.

| metric | better | what |
| --- | --- | --- |
| psnr, ssim | higher | of the reconstruction against the image |
| mse | lower | mean square error, images in [-1, 1] |
| clip_distance | lower | 1 - cosine of the CLIP image embeddings |
| lpips | lower | where its weights are given (`models.lpips`) |
| nll | lower | of the noise under a standard normal, nats per value; 1.419 for true noise |
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.evals.frechet import cosine_distance
from sdd_jax.evals.image_metrics import psnr, ssim
from sdd_jax.evals.instruments import Instruments
from sdd_jax.models.lpips import lpips
from sdd_jax.types import Params

COLUMNS = ("psnr", "ssim", "mse", "clip_distance", "nll")


def inversion_metrics(
    instruments: Instruments,
    outputs: np.ndarray,
    images: np.ndarray,
    noise: np.ndarray,
    lpips_params: Params | None = None,
) -> dict[str, float]:
    """The table above for reconstructions `outputs` f32[n,H,W,3] of `images` through `noise` f32[n,h,w,c]."""
    outputs = np.clip(outputs, -1.0, 1.0)
    pair = jnp.asarray(outputs), jnp.asarray(images)
    read, truth = instruments.read(outputs), instruments.read(images)
    metrics = {
        "psnr": float(np.mean(psnr(*pair))),
        "ssim": float(np.mean(ssim(*pair))),
        "mse": float(np.mean(np.square(outputs - images))),
        "clip_distance": float(np.mean(cosine_distance(read.embedding, truth.embedding))),
        "nll": normal_nll(noise),
    }
    if lpips_params is not None:
        metrics["lpips"] = float(np.mean(jax.jit(lpips)(lpips_params, *pair)))
    return metrics


def normal_nll(z: np.ndarray) -> float:
    """The negative log-likelihood of values under N(0, 1), nats per value."""
    return float(0.5 * np.mean(np.square(np.asarray(z, np.float64))) + 0.5 * math.log(2 * math.pi))
