"""Gradients on images from a frozen score: SDS and DDS.

Noise the latents z of an image to z_t = alpha_t z + sigma_t eps, let a frozen network with guidance w say what the
noise was under prompt y, and push z by what it got wrong (Poole et al. 2022, Hertz et al. 2023):

    g_SDS(z, y)             = eps_hat^w(z_t, y, t) - eps                                  (1)
    g_DDS(z, y, zhat, yhat) = eps_hat^w(z_t, y, t) - eps_hat^w(zhat_t, yhat, t)           (2)   same eps, same t
                            = g_SDS(z, y) - g_SDS(zhat, yhat)

The network's Jacobian is skipped, so g is a constant; autodiff carries it through z by the surrogate

    loss = sum(z stop_gradient(g)) / (H W)        d loss / dz = g / (H W)                 (3)

g holds no weight: SDD multiplies it by w(t) = sigma_t^2, DDS by 1. Plain gradient descent on z is z - step g. The DDS
notebook's lr 0.1 on 2000 x (3) is step = 200 / (H W), .0488 at 64 x 64 latents; a step given directly, as here, does
not depend on the resolution.

Variants, all by linearity of (3): masked, g * mask with a mask at latent resolution; symmetric (the source moves the
other way), the surrogate of z - zhat; sparse (SDD), only the k largest |g|.

Oracles. (z, y) = (zhat, yhat) gives exactly 0. For a network eps_hat = a z_t + b_y, (2) is a alpha_t (z - zhat) +
w (b_y - b_yhat). For data N(mu, tau^2) at z = mu, (1) is -kappa eps with kappa = alpha^2 tau^2 / (alpha^2 tau^2 +
sigma^2): noise whose mean is 0, the reason why SDS blurs and (2) subtracts it.

Cost: SDS 2F, DDS 4F (F is one forward of B samples), each in one call of the network; half of that unguided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.guidance import guided, repeat_batch
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, add_noise

EpsFn = Callable[..., jax.Array]


def eps_denoiser(
    denoise: Callable[..., jax.Array], kind: str, null_context: jax.Array, null_added_cond: Any = None
) -> EpsFn:
    """The eps_hat^w of (1) and (2), from a network that predicts `kind`.

    denoise(z [b,h,w,c], t int[b], context [b,n,d], **conditions) -> prediction [b,h,w,c].
    null_context: the context of no prompt, [1,n,d]. null_added_cond: see `guidance.guided`.

    Returns eps_hat(z_t, t, level, context, w, **conditions) -> f32[b,h,w,c], w scalar or [b] (1 is off); w = None
    leaves guidance out of the program, at half the cost.
    """
    to_eps = predictor(kind).eps
    denoise_guided = guided(denoise, null_context, null_added_cond)

    def eps_hat(
        z_t: jax.Array, t: jax.Array, level: Level, context: jax.Array, w: jax.Array | float | None, **conditions: Any
    ) -> jax.Array:
        if w is None:
            return to_eps(denoise(z_t, t, context, **conditions), z_t, level)
        return to_eps(denoise_guided(z_t, t, context, w, **conditions), z_t, level)

    return eps_hat


def sds_gradient(
    eps_hat: EpsFn,
    z: jax.Array,
    eps: jax.Array,
    t: jax.Array,
    level: Level,
    context: jax.Array,
    w: jax.Array | float | None,
    **conditions: Any,
) -> jax.Array:
    """g_SDS (1), f32[b,h,w,c], unweighted; a constant to autodiff.

    z: latents [b,h,w,c]. eps: the noise to add, [b,h,w,c]. t int[b] and level = schedule.at(t). context: [b,n,d].
    """
    z_t = add_noise(jax.lax.stop_gradient(z), eps, level)
    return jax.lax.stop_gradient(eps_hat(z_t, t, level, context, w, **conditions) - eps)


def dds_gradient(
    eps_hat: EpsFn,
    z: jax.Array,
    z_source: jax.Array,
    eps: jax.Array,
    t: jax.Array,
    level: Level,
    context: jax.Array,
    source_context: jax.Array,
    w: jax.Array | float | None,
    **conditions: Any,
) -> jax.Array:
    """g_DDS (2), f32[b,h,w,c], unweighted; a constant to autodiff.

    z, context: the edited latents [b,h,w,c] and the target prompt's context [b,n,d]; z_source, source_context likewise.
    eps, t, level are shared by both. Both run in one call of 2B samples stacked [edited, source], 4B with guidance;
    `conditions` are given for those 2B.
    """
    both = jax.lax.stop_gradient(jnp.concatenate([z, z_source]))
    t2, eps2, level2 = repeat_batch((t, eps, level))
    w2 = repeat_batch(w)
    z_t = add_noise(both, eps2, level2)
    pred = eps_hat(z_t, t2, level2, jnp.concatenate([context, source_context]), w2, **conditions)
    edited, source = jnp.split(pred, 2)
    return jax.lax.stop_gradient(edited - source)


def surrogate(z: jax.Array, g: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The loss per sample whose gradient in z is g / (H W) (3): f32[b]; its value means nothing.

    z, g: [b,h,w,c]; z - z_source in place of z gives the symmetric loss. mask: [b,h,w,1] multiplies g.
    """
    g = g if mask is None else g * mask
    return jnp.sum(z.astype(jnp.float32) * jax.lax.stop_gradient(g), axis=(1, 2, 3)) / (z.shape[1] * z.shape[2])


def keep_top_k(g: jax.Array, k: int) -> jax.Array:
    """g [b,...] with all but each sample's k largest magnitudes set to 0; ties at the threshold are kept (SDD)."""
    magnitude = jnp.abs(g).reshape(g.shape[0], -1)
    threshold = jax.lax.top_k(magnitude, min(k, magnitude.shape[1]))[0][:, -1]
    return jnp.where(jnp.abs(g) >= threshold.reshape((-1,) + (1,) * (g.ndim - 1)), g, 0.0)
