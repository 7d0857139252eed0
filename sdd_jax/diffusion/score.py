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

Posterior distillation (PDS, Koo et al. 2024) matches the noise of the step t -> s that leads from z_t to z_s. The noise
of z_s cancels, and what is left is (2) with a weight and a pull to the source:

    g_PDS = psi_t (z - zhat) + chi_t g_DDS                                                (4)
    psi = (alpha_s - c0 - c1 alpha_t) / std,    chi = c0 sigma_t / (alpha_t std)
    c0 = alpha_s beta_t / sigma_t^2,    c1 = sqrt(1 - beta_t) sigma_s^2 / sigma_t^2
    std = sqrt(beta_t) sigma_s / sigma_t

For neighbours, s = t - 1, these are the coefficients of DDPM's posterior mean, c0 + c1 alpha_t = alpha_s and psi = 0:
PDS is a reweighted DDS. The released code takes every second timestep (s = t - 2) and keeps beta_t of one step; its
pull to the source, psi > 0, is that difference, and so it is here.

Contrastive denoising score (CDS, Nam et al. 2024) adds the gradient, through the network, of a PatchNCE loss between
features of the two branches in (2): a patch of the edit shall resemble the source's patch at its place more than any
other. With f, fhat the unit features [n, c] of a self-attention layer,

    L = mean_i -log softmax_j(fhat_i . f_j / .07)_i        summed over layers and patch sizes              (5)

Oracles. (z, y) = (zhat, yhat) gives exactly 0. For a network eps_hat = a z_t + b_y, (2) is a alpha_t (z - zhat) +
w (b_y - b_yhat). For data N(mu, tau^2) at z = mu, (1) is -kappa eps with kappa = alpha^2 tau^2 / (alpha^2 tau^2 +
sigma^2): noise whose mean is 0, the reason why SDS blurs and (2) subtracts it.

Cost: SDS 2F, DDS and PDS 4F (F is one forward of B samples), each in one call of the network; half of that unguided.
CDS at most 2F more: the edited branch once more, without guidance, and back to z.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.guidance import guided, repeat_batch
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, Schedule, add_noise

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
    denoise_guided = guided(denoise, null_context, null_added_cond)

    def network(
        z_t: jax.Array, t: jax.Array, context: jax.Array, w: jax.Array | float | None, **conditions: Any
    ) -> jax.Array:
        if w is None:
            return denoise(z_t, t, context, **conditions)
        return denoise_guided(z_t, t, context, w, **conditions)

    return eps_of(network, kind)


def eps_of(network: Callable[..., jax.Array], kind: str) -> EpsFn:
    """The eps_hat^w of a network that guides itself, network(z, t, context, w, **conditions) -> a `kind` prediction."""
    to_eps = predictor(kind).eps

    def eps_hat(
        z_t: jax.Array, t: jax.Array, level: Level, context: jax.Array, w: jax.Array | float | None, **conditions: Any
    ) -> jax.Array:
        return to_eps(network(z_t, t, context, w, **conditions), z_t, level)

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


def posterior_weights(schedule: Schedule, t: jax.Array, stride: int = 2) -> tuple[jax.Array, jax.Array]:
    """(psi, chi) of (4), f32[b,1,1,1] each, for steps t -> t - stride; t int[b] from `stride` on, NaN below.

    psi is taken as the difference to the coefficients of the whole step, whose psi is 0: exactly 0 for stride 1.
    """
    at_t, at_s, before = schedule.at(t), schedule.at(t - stride), schedule.at(t - 1)
    kept, kept_in_all = at_t.alpha / before.alpha, at_t.alpha / at_s.alpha
    beta, beta_in_all = 1.0 - jnp.square(kept), 1.0 - jnp.square(kept_in_all)
    variance = jnp.square(at_t.sigma)
    std = jnp.sqrt(beta) * at_s.sigma / at_t.sigma
    pull = at_s.alpha * (beta_in_all - beta) + at_t.alpha * (kept_in_all - kept) * jnp.square(at_s.sigma)
    return pull / (variance * std), at_s.alpha * beta / (variance * std) * at_t.sigma / at_t.alpha


def contrastive_loss(
    source: Sequence[jax.Array],
    edited: Sequence[jax.Array],
    sides: Sequence[tuple[int, int]],
    rng: jax.Array,
    *,
    patches: int = 256,
    sizes: Sequence[int] = (1, 2),
    temperature: float = 0.07,
) -> jax.Array:
    """(5) summed over layers and patch sizes, f32[b]; the source is a constant.

    source, edited: one [b,n,c] a layer. sides: each layer's (height, width), whose product is n. patches: at most so
    many places a layer are compared, the same ones for every sample. sizes: sides of the patches that features are
    averaged over; one that leaves a layer a single patch, which has no other to differ from, is left out.
    """
    total = jnp.zeros(edited[0].shape[0])
    for (fhat, f, (height, width)), size in itertools.product(zip(source, edited, sides, strict=True), sizes):
        count = (height // size) * (width // size)
        if count < 2:
            continue
        rng, key = jax.random.split(rng)
        places = jax.random.permutation(key, count)[:patches]
        queries, keys = (unit_patches(x, height, width, size)[:, places] for x in (jax.lax.stop_gradient(fhat), f))
        chosen = jax.nn.log_softmax(queries @ keys.transpose(0, 2, 1) / temperature, axis=-1)
        total = total - jnp.mean(jnp.diagonal(chosen, axis1=1, axis2=2), axis=-1)
    return total


def unit_patches(features: jax.Array, height: int, width: int, size: int) -> jax.Array:
    """Features [b, height width, c] averaged over patches of size^2, as unit vectors f32[b,n,c]; rests are cut off."""
    b, _, c = features.shape
    rows, columns = height // size, width // size
    grid = features.astype(jnp.float32).reshape(b, height, width, c)[:, : rows * size, : columns * size]
    pooled = grid.reshape(b, rows, size, columns, size, c).mean((2, 4)).reshape(b, rows * columns, c)
    return pooled * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(pooled), -1, keepdims=True), 1e-12))
