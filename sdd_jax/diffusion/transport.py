"""Carrying a latent from one noise level to another with one prediction.

A prediction at z_t splits it into data and noise, which are mixed again at level s (DDIM, Song et al. 2021, eq. 12
with eta = 0; the same map for an eps, v or x0 network, CCD eq. 6 and eq. 8):

    z_s = alpha_s x0_hat + sigma_s eps_hat                                               (1)

`move` is the only deterministic step there is; its use depends on s alone:

| s | what it is |
| --- | --- |
| s < t | a DDIM step |
| s > t | a DDIM inversion step |
| s = boundary | the jump of a consistency model (iCD) |
| s = CLEAN | x0_hat |
| s = t | the identity |

For an eps network (1) is linear in z and eps_hat, z_s = c_skip z_t + c_out eps_hat, with

    c_skip = alpha_s / alpha_t,    c_out = sigma_s - alpha_s sigma_t / alpha_t           (2)

so with eps held fixed t -> r -> s equals t -> s, and t -> s -> t is the identity. Replacing eps_hat in (1) by the
noise that built z_t gives CCD's other predictor (its eq. 12); replacing part of it by fresh noise gives the
stochastic step (DDIM's eta; eta = 1 is DDPM's posterior sampling).

Gaussian data x0 ~ N(mu, tau^2 I) is the analytic teacher, D_t = alpha_t^2 tau^2 + sigma_t^2 being the variance of
z_t:

    eps*(z_t) = sigma_t (z_t - alpha_t mu) / D_t                                         (3)
    z_s = alpha_s mu + sqrt(D_s / D_t) (z_t - alpha_t mu)      the exact flow            (4)

and for mu = 0, tau = 1: v* = 0, and (1) multiplies z by alpha_s alpha_t + sigma_s sigma_t where (4) multiplies by 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, add_noise


def move(pred: jax.Array, z_t: jax.Array, at_t: Level, at_s: Level, kind: str) -> jax.Array:
    """One deterministic step t -> s (eq. 1).

    pred: what the network said at (z_t, t), of `kind`, [b,h,w,c]. z_t: [b,h,w,c]. Returns z_s f32[b,h,w,c].
    """
    prediction = predictor(kind)
    return add_noise(prediction.x0(pred, z_t, at_t), prediction.eps(pred, z_t, at_t), at_s)


def boundary_coefficients(at_t: Level, at_s: Level) -> tuple[jax.Array | float, jax.Array | float]:
    """(c_skip, c_out) of eq. 2, the shape of the levels: `move` of an eps prediction is c_skip z_t + c_out eps_hat."""
    c_skip = at_s.alpha / at_t.alpha
    return c_skip, at_s.sigma - c_skip * at_t.sigma


def prev_with_noise(x0_hat: jax.Array, eps: jax.Array, at_s: Level) -> jax.Array:
    """CCD eq. 12: z_s from the predicted data and the real noise that built z_t. [b,h,w,c] -> f32[b,h,w,c]."""
    return add_noise(x0_hat, eps, at_s)


def posterior_std(at_t: Level, at_s: Level) -> jax.Array:
    """Standard deviation of z_s given z_t and x0 for s < t (DDPM eq. 7), the shape of the levels; 0 at s = CLEAN."""
    kept = jnp.square(at_t.alpha / at_s.alpha)
    return at_s.sigma / at_t.sigma * jnp.sqrt(jnp.maximum(1.0 - kept, 0.0))


def move_stochastic(
    pred: jax.Array, z_t: jax.Array, at_t: Level, at_s: Level, kind: str, noise: jax.Array, eta: float = 1.0
) -> jax.Array:
    """One step t -> s < t in which eta x posterior_std of the noise is drawn afresh (DDIM eq. 12, 16).

    noise: f32[b,h,w,c], standard normal. eta = 0 is `move`, eta = 1 samples DDPM's posterior. Returns f32[b,h,w,c].
    """
    prediction = predictor(kind)
    fresh = eta * posterior_std(at_t, at_s)
    kept = jnp.sqrt(jnp.maximum(jnp.square(at_s.sigma) - jnp.square(fresh), 0.0))
    x0_hat, eps_hat = prediction.x0(pred, z_t, at_t), prediction.eps(pred, z_t, at_t)
    return add_noise(x0_hat, eps_hat, Level(at_s.alpha, kept)) + fresh * noise


def gaussian_eps(z: jax.Array, level: Level, mean: jax.Array | float, std: float) -> jax.Array:
    """The best eps_hat(z), f32 as z, when the data is N(mean, std^2 I) (eq. 3): a teacher with known results."""
    variance = jnp.square(level.alpha) * std**2 + jnp.square(level.sigma)
    return level.sigma * (z - level.alpha * mean) / variance


def gaussian_flow(z_t: jax.Array, at_t: Level, at_s: Level, mean: jax.Array | float, std: float) -> jax.Array:
    """The exact solution z_s, f32 as z_t, of the probability-flow ODE of data N(mean, std^2 I) (eq. 4)."""
    variance_t = jnp.square(at_t.alpha) * std**2 + jnp.square(at_t.sigma)
    variance_s = jnp.square(at_s.alpha) * std**2 + jnp.square(at_s.sigma)
    return at_s.alpha * mean + jnp.sqrt(variance_s / variance_t) * (z_t - at_t.alpha * mean)
