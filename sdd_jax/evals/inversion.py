"""How well an image comes back from its noise, and how much like noise that is.

| metric | better | what |
| --- | --- | --- |
| psnr, ssim | higher | of the reconstruction against the image |
| mse | lower | mean square error, images in [-1, 1] |
| clip_distance | lower | 1 - cosine of the CLIP image embeddings |
| latent_mse | lower | mean square error of the clean latents |
| nll | lower | of the noise under a standard normal, nats per value; 1.419 for true noise |

The first four hold the autoencoder's own error too, and level off at it (`picture_metrics` of autoencoded images);
`latent_mse` is the way's alone.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from sdd_jax.evals.frechet import cosine_distance
from sdd_jax.evals.image_metrics import psnr, ssim
from sdd_jax.evals.instruments import Instruments


def inversion_metrics(
    instruments: Instruments,
    outputs: np.ndarray,
    images: np.ndarray,
    latents: np.ndarray,
    encoded: np.ndarray,
    noise: np.ndarray,
) -> dict[str, float]:
    """The table above for reconstructions `outputs` f32[n,H,W,3] of `images`.

    latents: that outputs were decoded from, encoded: of the images, noise: between them, f32[n,h,w,c] each.
    """
    return {
        **picture_metrics(instruments, outputs, images),
        "latent_mse": float(np.mean(np.square(np.asarray(latents, np.float64) - encoded))),
        "nll": normal_nll(noise),
    }


def picture_metrics(instruments: Instruments, outputs: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """What of the table compares pictures: `outputs` f32[n,H,W,3] against `images`."""
    outputs = np.clip(outputs, -1.0, 1.0)
    pair = jnp.asarray(outputs), jnp.asarray(images)
    read, truth = instruments.read(outputs), instruments.read(images)
    return {
        "psnr": float(np.mean(psnr(*pair))),
        "ssim": float(np.mean(ssim(*pair))),
        "mse": float(np.mean(np.square(outputs - images))),
        "clip_distance": float(np.mean(cosine_distance(read.embedding, truth.embedding))),
    }


def normal_nll(z: np.ndarray) -> float:
    """The negative log-likelihood of values under N(0, 1), nats per value."""
    return float(0.5 * np.mean(np.square(np.asarray(z, np.float64))) + 0.5 * math.log(2 * math.pi))
