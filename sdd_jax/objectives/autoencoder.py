"""The first stage (Rombach et al., 2022): a KL-regularised autoencoder without the adversarial term.

    L = |x - x_hat|_1 + |x - x_hat|_2^2 + lambda_p P(x, x_hat) + lambda_kl KL(q(z|x) || N(0, 1))
    P = mean over the first maps phi_l of the attribute classifier of |phi_l(x) - phi_l(x_hat)|^2

Every term is a mean over its elements; the KL is per latent element. x_hat = D(z), z ~ q(z|x).

`normalise_latents` afterwards folds the latents' mean and deviation per channel into the 1x1 `quant_conv` and
`post_quant_conv`: the autoencoder stays the same map from images to images, and its latents become zero-mean with unit
variance in every channel, which one scalar scaling factor cannot do.

Batch: `image` f32[b,H,W,3]. Frozen: `classifier` (tower params). Cost: 3 (encode + decode), plus the classifier's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdd_jax.models.towers import TowerConfig
from sdd_jax.objectives.perceptual import feature_distance
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """Fields: `init_vae(rng)`, `moments(params, image) -> f32[b,h,w,2c]`, `decode(params, z) -> image`, weights."""

    init_vae: Callable[[jax.Array], Params]
    moments: Callable[[Params, jax.Array], jax.Array]
    decode: Callable[[Params, jax.Array], jax.Array]
    tower: TowerConfig
    perceptual_weight: float = 0.1
    kl_weight: float = 1e-4
    perceptual_maps: int = 3

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns fresh autoencoder parameters."""
        return self.init_vae(rng)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted sum and its parts; `psnr` is of the sampled reconstruction."""
        image = batch["image"]
        mean, logvar = jnp.split(self.moments(params, image), 2, axis=-1)
        logvar = jnp.clip(logvar, -30.0, 20.0)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape)
        recon = self.decode(params, z)
        l1 = jnp.mean(jnp.abs(image - recon))
        l2 = jnp.mean((image - recon) ** 2)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
        perceptual = feature_distance(self.tower, frozen["classifier"], image, recon, self.perceptual_maps)
        loss = l1 + l2 + self.perceptual_weight * perceptual + self.kl_weight * kl
        return loss, {"l1": l1, "psnr": 10 * jnp.log10(4.0 / l2), "kl": kl, "perceptual": perceptual}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of every parameter."""
        return (Phase(self.loss),)


def normalise_latents(params: Params, mean: jax.Array, std: jax.Array) -> Params:
    """Returns autoencoder params whose latents are `(z - mean) / std` and whose reconstructions are unchanged.

    Args:
        params: with `quant_conv` [1,1,2c,2c] and `post_quant_conv` [1,1,c,c] (Flax names).
        mean, std: f32[c], per channel, of the latents that `params` gives.
    """
    quant, post = params["quant_conv"], params["post_quant_conv"]
    scale = jnp.concatenate([1.0 / std, jnp.ones_like(std)])
    shift = jnp.concatenate([-mean / std, -2.0 * jnp.log(std)])
    return {
        **params,
        "quant_conv": {"kernel": quant["kernel"] * scale.reshape(1, 1, 1, -1), "bias": quant["bias"] * scale + shift},
        "post_quant_conv": {
            "kernel": post["kernel"] * std.reshape(1, 1, -1, 1),
            "bias": post["bias"] + jnp.einsum("c,hwco->o", mean, post["kernel"]),
        },
    }
