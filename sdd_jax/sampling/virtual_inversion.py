"""Editing without a deterministic inversion: the noise is drawn, and what the source needs of it is kept.

Edit-friendly DDPM (Huberman-Spiegelglas et al. 2024). Draw each z_t of the way down on its own, z_t = alpha_t x0 +
sigma_t eps_t; what takes the sampler's mean at one to the next is the step's noise map,

    d_t = z_s - mu(z_t, t | source),    mu: `move_stochastic` with eta = 1 and no noise                         (1)

Under the target prompt, z_s = mu(z_t, t | target) + d_t from a step `skip` on. With the source prompt it returns x0
exactly. (d_t is the paper's sigma_t times its map, so that the last step, where sigma is 0, has one too; the released
code puts a zero there, and then reconstructs up to the last prediction's error.)

InfEdit's virtual inversion (Xu et al. 2024). The source is noised afresh at each step and its noise eps known, so its
prediction's error is exactly what the target's is corrected by:

    z = alpha x0 + sigma eps,  z* = alpha x0* + sigma eps,   x0* <- (z* - sigma (eps_hat* - eps_hat + eps)) / alpha
      = x0* - (sigma / alpha) (eps_hat* - eps_hat)                                                             (2)

from x0* = x0. Equal prompts leave x0 as it is. Attention control ties the branches as in `editing`.

All take batches. Cost for n steps: edit-friendly n F up and (n - skip) F down; (2) 2n F.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.transport import move_stochastic
from sdd_jax.sampling.editing import Control, PairDenoise
from sdd_jax.sampling.generate import Denoise, at_all, initial_noise, steps_down

Stop = tuple[jax.Array, Level, Level]


class NoiseMaps(NamedTuple):
    """An image as noise: z f32[n,b,h,w,c] at each time, and the maps d of (1), f32[n,b,h,w,c]."""

    z: jax.Array
    maps: jax.Array


def _mean(denoise: Denoise, z: jax.Array, stop: Stop, kind: str) -> jax.Array:
    t, at_t, at_s = stop
    return move_stochastic(denoise(z, at_all(t, z)), z, at_t, at_s, kind, jnp.zeros_like(z))


def edit_friendly_maps(
    denoise: Denoise, x0: jax.Array, rng: jax.Array, times: jax.Array | np.ndarray, schedule: Schedule, kind: str
) -> NoiseMaps:
    """The noise maps of x0 [b,h,w,c] along times int32[n]; denoise: under the source prompt (published w = 3.5)."""
    stops = steps_down(times, schedule)
    x0 = x0.astype(jnp.float32)
    keys = jax.random.split(rng, stops[0].shape[0])
    z = jax.vmap(lambda key, at_t: add_noise(x0, initial_noise(key, x0.shape), at_t))(keys, stops[1])
    after = jnp.concatenate([z[1:], x0[None]])
    means = jax.lax.map(lambda pair: _mean(denoise, pair[0], pair[1], kind), (z, stops))
    return NoiseMaps(z, after - means)


def edit_friendly_decode(
    denoise: Denoise, noise: NoiseMaps, times: jax.Array | np.ndarray, schedule: Schedule, kind: str, skip: int
) -> jax.Array:
    """Follows the noise maps under the target prompt from step `skip` on: f32[b,h,w,c] (published: 36 of 100, w = 15).

    Raises:
        ValueError: unless 0 <= skip < n.
    """
    if not 0 <= skip < noise.z.shape[0]:
        raise ValueError(f"skip={skip} is no step of {noise.z.shape[0]}: give 0 .. {noise.z.shape[0] - 1}")

    def step(z: jax.Array, now: tuple[Stop, jax.Array]) -> tuple[jax.Array, None]:
        stop, noise_map = now
        return _mean(denoise, z, stop, kind) + noise_map, None

    remaining = jax.tree.map(lambda x: x[skip:], (steps_down(times, schedule), noise.maps))
    return jax.lax.scan(step, noise.z[skip], remaining)[0]


def infedit(
    denoise: PairDenoise,
    x0: jax.Array,
    rng: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    control: Control,
) -> jax.Array:
    """(2) along times int32[n]: latents x0 [b,h,w,c] -> the edited ones, f32[b,h,w,c].

    denoise: on pairs [sources, targets] (`editing.prompted_pairs`); a consistency model in 12 steps as published, or
    any other network. control: `NoControl` or an attention control.
    """
    to_eps = predictor(kind).eps
    x0 = x0.astype(jnp.float32)

    def step(x0_target: jax.Array, now: tuple[Stop, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        (t, at_t, _), key, index = now
        eps = initial_noise(key, x0.shape)
        z = jnp.concatenate([add_noise(x0, eps, at_t), add_noise(x0_target, eps, at_t)])
        eps_hat = to_eps(denoise(z, at_all(t, z), index, control.at(index)), z, at_t)
        source, target = jnp.split(eps_hat, 2)
        return x0_target - at_t.sigma / at_t.alpha * (target - source), None

    stops = steps_down(times, schedule)
    n = stops[0].shape[0]
    return jax.lax.scan(step, x0, (stops, jax.random.split(rng, n), jnp.arange(n)))[0]
