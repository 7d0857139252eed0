"""Generation: from noise to a clean latent along a list of times.

    z_{t_1} ~ N(0, I);    z_{t_{i+1}} = move(prediction(z_{t_i}, t_i), z_{t_i}, t_i, t_{i+1}),    t_{n+1} = CLEAN

Deterministic given the noise, n evaluations of the network for n times (nF), one `lax.scan`: compiled once for each
n, the times being an argument. `times` come from `timegrid.sampling_times`; the solver is one of `sampling.solvers`.

`denoise(z f32[b,h,w,c], t int32[b]) -> prediction [b,h,w,c]` is a model closed over all it needs: parameters,
context, an adapter's residuals, and guidance, which may depend on t:

    guided_unet = guided(unet, null_context)
    denoise = lambda z, t: guided_unet(z, t, context, step_guidance(t, 8.0, tau=0.8))

Consistency models (Song et al. 2023; LCM) are sampled differently: each step predicts x0 and noises it again, with
fresh noise, to the next time (`sample_consistency`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.parameterization import converter, predictor
from sdd_jax.diffusion.schedule import CLEAN, Level, Schedule, add_noise
from sdd_jax.diffusion.transport import move
from sdd_jax.sampling.solvers import DDIM, Solver

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def initial_noise(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal f32 of shape [b,...]; sample i depends on rng and i alone, whatever the batch size."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(rng, i), shape[1:]))(jnp.arange(shape[0]))


def steps_down(times: jax.Array | np.ndarray, schedule: Schedule) -> tuple[jax.Array, Level, Level]:
    """(t, level at t, level to reach), leading axis n to scan over, for n descending times that end CLEAN.

    t int32[n]; levels f32[n,1,1,1,1]. ValueError for numpy times that do not decrease strictly.
    """
    if isinstance(times, np.ndarray) and np.any(np.diff(times) >= 0):
        raise ValueError(f"sampling times must decrease strictly, got {times.tolist()}: see timegrid.sampling_times")
    times = jnp.asarray(times, jnp.int32)
    at_t = schedule.at(times[:, None])
    alpha, sigma = jnp.asarray(at_t.alpha), jnp.asarray(at_t.sigma)
    at_s = Level(
        jnp.concatenate([alpha[1:], jnp.full_like(alpha[:1], CLEAN.alpha)]),
        jnp.concatenate([sigma[1:], jnp.full_like(sigma[:1], CLEAN.sigma)]),
    )
    return times, at_t, at_s


def at_all(t: jax.Array, z: jax.Array) -> jax.Array:
    """A scalar time as int32[b] for the batch z [b,...]."""
    return jnp.broadcast_to(t, z.shape[:1])


def _integrate(
    denoise: Denoise,
    z: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    solver: Solver,
    keep_path: bool,
) -> tuple[jax.Array, jax.Array | None]:
    space = solver.space or kind
    convert = converter(kind, space)
    t, at_t, at_s = steps_down(times, schedule)

    def step(
        carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, Level, Level, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
        z, last = carry
        t, at_t, at_s, c = now
        pred = convert(denoise(z, at_all(t, z)), z, at_t)
        z = move(pred + c * (pred - last), z, at_t, at_s, space)
        return (z, pred), z if keep_path else None

    z = z.astype(jnp.float32)
    (z, _), path = jax.lax.scan(step, (z, jnp.zeros_like(z)), (t, at_t, at_s, solver.coefficients(at_t)))
    return z, path


def sample(
    denoise: Denoise,
    z: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    solver: Solver = DDIM,
) -> jax.Array:
    """The clean latents f32[b,h,w,c] that noise z [b,h,w,c] at times[0] leads to.

    times: int32[n], strictly decreasing. kind: what the network predicts, 'eps', 'v' or 'x0'.
    """
    return _integrate(denoise, z, times, schedule, kind, solver, keep_path=False)[0]


def sample_path(
    denoise: Denoise,
    z: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    solver: Solver = DDIM,
) -> jax.Array:
    """As `sample`, with every stop on the way: f32[n+1,b,h,w,c], z first, the clean latents last."""
    _, path = _integrate(denoise, z, times, schedule, kind, solver, keep_path=True)
    assert path is not None
    return jnp.concatenate([z.astype(jnp.float32)[None], path])


def sample_consistency(
    denoise: Denoise,
    z: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    rng: jax.Array,
) -> jax.Array:
    """Multistep consistency sampling: x0_hat at each time, noised to the next with fresh noise of rng. As `sample`."""
    to_x0 = predictor(kind).x0
    t, at_t, at_s = steps_down(times, schedule)

    def step(z: jax.Array, now: tuple[jax.Array, Level, Level, jax.Array]) -> tuple[jax.Array, None]:
        t, at_t, at_s, key = now
        x0_hat = to_x0(denoise(z, at_all(t, z)), z, at_t)
        return add_noise(x0_hat, initial_noise(key, z.shape), at_s), None

    return jax.lax.scan(step, z.astype(jnp.float32), (t, at_t, at_s, jax.random.split(rng, t.shape[0])))[0]
