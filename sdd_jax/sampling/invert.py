"""Inversion: from an image's latents to the noise that generates them.

DDIM inversion runs the sampler's steps backwards. The step t -> s of generation is undone by

    z_t = move(eps_hat(z_t, t), z_s, s, t)                                                (1)

which is implicit: eps_hat is needed at the z_t that is sought. Started from z_t = z_s and iterated, one round is the
usual DDIM inversion (Song et al. 2021; Mokady et al. 2023), more rounds are the fixed-point refinement that ReNoise
builds on (Garibi et al. 2024); at the fixed point generation returns to z_s exactly. For a constant eps_hat one round
is exact. Cost: rounds x n x F.

`invert` takes the same descending times as `generate.sample`: sample(invert(x0, times), times) ~ x0. Invert without
guidance (w = 1) and with the prompt that describes the image: guided, the error of (1) grows with every step.

Jump lists. iCD's models carry a latent between boundaries, one `move` and one evaluation each,

    decode  999 -> 779 -> 519 -> 259 -> CLEAN          (the reverse model)
    encode  x0 + noise at 19,  19 -> 259 -> 519 -> 779 -> 999     (the forward model, w = 1)

The first noise of encoding is drawn, with a seed, because no model was trained below t = 19 (sigma = .133).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.timegrid import Boundaries
from sdd_jax.diffusion.transport import move
from sdd_jax.sampling.generate import Denoise, at_all, steps_down


def invert_path(
    denoise: Denoise,
    x0: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    rounds: int = 1,
) -> jax.Array:
    """Every stop of DDIM inversion, f32[n+1,b,h,w,c]: x0 first, then the latents at times[n-1], ..., times[0].

    denoise, schedule, kind: as for `generate.sample`. times: int32[n], strictly decreasing. rounds: evaluations of (1)
    per step. ValueError for rounds < 1.
    """
    if rounds < 1:
        raise ValueError(f"inversion needs at least one round per step, got rounds={rounds}")
    to_eps = predictor(kind).eps

    def step(z_s: jax.Array, now: tuple[jax.Array, Level, Level]) -> tuple[jax.Array, jax.Array]:
        t, at_t, at_s = now

        def refine(_: int, z_t: jax.Array) -> jax.Array:
            eps_hat = to_eps(denoise(z_t, at_all(t, z_t)), z_t, at_t)
            return move(eps_hat, z_s, at_s, at_t, "eps")

        z_t = jax.lax.fori_loop(0, rounds, refine, z_s)
        return z_t, z_t

    x0 = x0.astype(jnp.float32)
    _, path = jax.lax.scan(step, x0, steps_down(times, schedule), reverse=True)
    return jnp.concatenate([x0[None], path[::-1]])


def invert(
    denoise: Denoise,
    x0: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    rounds: int = 1,
) -> jax.Array:
    """The latents at times[0], f32[b,h,w,c], that generate x0: the end of `invert_path`, same arguments."""
    return invert_path(denoise, x0, times, schedule, kind, rounds)[-1]


def jump(denoise: Denoise, z: jax.Array, jumps: jax.Array | np.ndarray, schedule: Schedule, kind: str) -> jax.Array:
    """Carries z f32[b,h,w,c] along jumps int32[m,2] of (from, to); a `to` of 0 means CLEAN. The network sees `from`."""
    jumps = jnp.asarray(jumps, jnp.int32)

    def step(z: jax.Array, now: tuple[jax.Array, Level, Level]) -> tuple[jax.Array, None]:
        t, at_t, at_s = now
        return move(denoise(z, at_all(t, z)), z, at_t, at_s, kind), None

    t, s = jumps[:, 0], jumps[:, 1]
    stops = (t, schedule.at(t[:, None]), schedule.at_boundary(s[:, None]))
    return jax.lax.scan(step, z.astype(jnp.float32), stops)[0]


def encode(
    denoise: Denoise, x0: jax.Array, noise: jax.Array, boundaries: Boundaries, schedule: Schedule, kind: str
) -> jax.Array:
    """iCD's encoding of clean latents x0 with its forward model: f32[b,h,w,c] at t = T - 1.

    noise: standard normal as x0, added at the first forward boundary. Decode with `jump` along `reverse_jumps`.
    """
    z = add_noise(x0, noise, schedule.at(boundaries.forward[0]))
    return jump(denoise, z, boundaries.forward_jumps, schedule, kind)
