"""Editing one image by descending on its latents along a score: SDS, DDS and what followed, without training.

    z_0 = zhat,    z_{i+1} = z_i - step * Adam or SGD(g_i),    g_i drawn with its own t and noise                   (1)

g is one of `diffusion.score`'s gradients. The notebook of Hertz et al. 2023 takes 200 iterations of SGD without
momentum at lr 0.1 on 2000 x the surrogate, which is step = 200 / (H W) = .0488 at 64 x 64 latents; here the step is
given as such and means the same at every resolution. t is uniform over 50..948. Adam divides by the gradient's own
size, which makes noise as large as signal: SGD is the default.

| gradient | what pulls | F an iteration, guided |
| --- | --- | --- |
| `sds` | the target prompt | 2 |
| `dds` | the target prompt on the edit against the source prompt on the source | 4 |
| `symmetric_dds` | the same, the source moving away from the edit | 4 |
| `cds` | dds, and patches that stay in their place (`contrast` 3 as published, at any resolution) | at most 6 |
| `pds` | dds, weighted in t, and back to the source | 4 |

Several images are one batch, both branches and both passes of guidance one call of the network. What sample i draws
depends on the key and i alone, so that a batch gives what its samples give alone. An iteration depends on the key and
its index, so that a run may be cut anywhere (`descend` takes the index to start from): progress and frames come out
between cuts, from one compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.score import EpsFn, contrastive_loss, dds_gradient, posterior_weights, sds_gradient
from sdd_jax.sampling.generate import initial_noise

STEP = 200 / 64**2
ITERATIONS = 200
FIRST, LAST = 50, 948
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {"sgd": optax.sgd, "adam": optax.adam}


class Draw(NamedTuple):
    """What one iteration draws: eps f32[b,h,w,c], t int32[b], t's level, and a key for what else a gradient needs."""

    eps: jax.Array
    t: jax.Array
    level: Level
    key: jax.Array


class Prompts(NamedTuple):
    """context f32[b,n,d] and the network's other conditions, of b samples."""

    context: jax.Array
    conditions: Mapping[str, Any]


Gradient = Callable[[jax.Array, Draw], jax.Array]
Features = Callable[[jax.Array, jax.Array, Prompts], Sequence[jax.Array]]


def draw_iteration(
    rng: jax.Array, index: jax.Array, shape: tuple[int, ...], times: jax.Array, schedule: Schedule
) -> Draw:
    """Draws iteration `index` int32[] for samples of `shape` (b,h,w,c), t from `times` int32[k], each as likely."""
    noise_rng, time_rng, key = jax.random.split(jax.random.fold_in(rng, index), 3)
    rows = jnp.arange(shape[0])
    chosen = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(time_rng, i), (), 0, times.shape[0]))(rows)
    t = times[chosen]
    return Draw(initial_noise(noise_rng, shape), t, schedule.at(t), key)


def descend(
    gradient: Gradient,
    z: jax.Array,
    state: optax.OptState,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    times: jax.Array,
    schedule: Schedule,
    start: jax.Array,
    length: int,
) -> tuple[jax.Array, optax.OptState]:
    """Iterations start .. start + length - 1 of (1), one scan: (z f32[b,h,w,c], state) -> the same.

    state: `optimizer.init(z)` at the start. times: int32[k], what t is drawn from.
    """

    def iterate(
        carry: tuple[jax.Array, optax.OptState], index: jax.Array
    ) -> tuple[tuple[jax.Array, optax.OptState], None]:
        z, state = carry
        g = gradient(z, draw_iteration(rng, index, z.shape, times, schedule))
        updates, state = optimizer.update(g, state)
        return (z + updates, state), None

    carried, _ = jax.lax.scan(iterate, (z.astype(jnp.float32), state), start + jnp.arange(length))
    return carried


def sds(eps_hat: EpsFn, target: Prompts, w: jax.Array | float | None) -> Gradient:
    """The gradient of SDS."""

    def gradient(z: jax.Array, draw: Draw) -> jax.Array:
        return sds_gradient(eps_hat, z, draw.eps, draw.t, draw.level, target.context, w, **target.conditions)

    return gradient


def dds(eps_hat: EpsFn, z_source: jax.Array, source: Prompts, target: Prompts, w: jax.Array | float | None) -> Gradient:
    """The gradient of DDS; z_source: the source's latents [b,h,w,c]."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), dict(target.conditions), dict(source.conditions))

    def gradient(z: jax.Array, draw: Draw) -> jax.Array:
        return dds_gradient(
            eps_hat, z, z_source, draw.eps, draw.t, draw.level, target.context, source.context, w, **both
        )

    return gradient


def symmetric_dds(eps_hat: EpsFn, source: Prompts, target: Prompts, w: jax.Array | float | None) -> Gradient:
    """The gradient of DDS for z [edited b, source b], in which the source moves the other way."""

    def gradient(z: jax.Array, draw: Draw) -> jax.Array:
        edited, z_source = jnp.split(z, 2)
        eps, t, level = jax.tree.map(lambda x: jnp.split(x, 2)[0], (draw.eps, draw.t, draw.level))
        g = dds(eps_hat, z_source, source, target, w)(edited, Draw(eps, t, level, draw.key))
        return jnp.concatenate([g, -g])

    return gradient


def pds(delta: Gradient, z_source: jax.Array, schedule: Schedule, stride: int = 2) -> Gradient:
    """The gradient of PDS, from DDS's (`delta`); its times start at `stride`."""

    def gradient(z: jax.Array, draw: Draw) -> jax.Array:
        pull, push = posterior_weights(schedule, draw.t, stride)
        return pull * (z - z_source) + push * delta(z, draw)

    return gradient


def cds(
    delta: Gradient,
    tape: Sequence[jax.Array],
    features: Features,
    target: Prompts,
    contrast: float = 3.0,
    patches: int = 256,
) -> Gradient:
    """The gradient of CDS, from DDS's (`delta`).

    tape: the features [rows,n,c] that the network left behind when `delta` called it (`models.features`), whose rows
    start [edited b, source b]. features(z_t, t, prompts) -> those of the edited branch alone, [b,n,c] a layer.

    The published weight stands beside 2000 / (H W) x DDS, so it is multiplied by H W / 2000 here: the loss is a mean
    over places, and its gradient at one of them falls as their number grows.
    """

    def gradient(z: jax.Array, draw: Draw) -> jax.Array:
        b, height, width, _ = z.shape
        g = delta(z, draw)
        kept = [jax.lax.stop_gradient(x[b : 2 * b]) for x in tape]
        sides = [layer_sides(x.shape[1], height, width) for x in kept]

        def loss(z: jax.Array) -> jax.Array:
            edited = features(add_noise(z, draw.eps, draw.level), draw.t, target)
            return jnp.sum(contrastive_loss(kept, edited, sides, draw.key, patches=patches))

        return g + contrast * height * width / 2000 * jax.grad(loss)(z)

    return gradient


def layer_sides(tokens: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a layer of so many tokens, for latents of height x width halved a number of times."""
    halved = round(math.log2(height * width / tokens) / 2)
    return height // 2**halved, width // 2**halved


def shaped(
    gradient: Gradient,
    *,
    mask: jax.Array | None = None,
    alpha_power: float = 0.0,
    sigma_power: float = 0.0,
    clip: float | None = None,
) -> Gradient:
    """A gradient times alpha_t^alpha_power sigma_t^sigma_power and a mask [b,h,w,1], clipped: what users add.

    clip: the largest root mean square of a sample's gradient; a larger one is scaled down to it.
    """

    def reshaped(z: jax.Array, draw: Draw) -> jax.Array:
        g = gradient(z, draw)
        if alpha_power or sigma_power:
            g = g * draw.level.alpha**alpha_power * draw.level.sigma**sigma_power
        if clip is not None:
            size = jnp.sqrt(jnp.mean(jnp.square(g), axis=(1, 2, 3), keepdims=True))
            g = g * jnp.minimum(1.0, clip / jnp.maximum(size, 1e-12))
        return g if mask is None else g * mask

    return reshaped


def timesteps(first: int = FIRST, last: int = LAST, chosen: Sequence[int] = (), T: int = 1000) -> np.ndarray:
    """What t is drawn from, int32[k]: `chosen`, else first..last inclusive.

    Raises:
        ValueError: a timestep outside 1..T-1, or no timestep at all.
    """
    times = np.asarray(sorted(set(chosen)) if len(chosen) else np.arange(first, last + 1), np.int32)
    if not len(times) or times[0] < 1 or times[-1] >= T:
        raise ValueError(f"timesteps {first}..{last}, chosen {tuple(chosen)}: give some of 1..{T - 1}")
    return times
