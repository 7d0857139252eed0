"""Figure 8 of DDS: SDS's gradient at images that need no change, on the teacher and on Gaussian data.

    left    the root mean square of g_SDS(z, y), averaged over noise, by t: aligned pairs against permuted captions
    right   the cosine of g_SDS(z, y) and g_SDS(zhat, yhat), same noise: an image and its edit against shuffled pairs

Its closed form: for data N(mu, tau^2) and an image z = mu + d, with D = alpha^2 tau^2 + sigma^2,

    eps_hat = sigma (z_t - alpha mu) / D,   g = eps_hat - eps = -kappa eps + lambda d                    (1)
    kappa = alpha^2 tau^2 / D,   lambda = alpha sigma / D

    |g|^2 = kappa^2 + lambda^2 mean(d^2),   <g, g'> = kappa^2 + lambda^2 mean(d d')                      (2)

on average over noise. On the left an image is its prompt's mean: aligned pairs have d = 0 and |g| = kappa, permuted
ones the difference of two means. There every aligned pair's cosine is 1, whichever images are compared; so on the right
an image differs from its prompt's mean, and shares most of that with its edit.

`teacher` and `gaussian` are a table's evaluations, (None, seed, options) -> metrics `aligned@t`, `permuted@t` (left),
`cosine@t`, `shuffled@t` (right), and of the Gaussian what they should be by (2), `aligned_exact@t` and so on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.config import validate
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.score import EpsFn, eps_denoiser, sds_gradient
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.jobs.dds.pairs import distinct_pairs
from sdd_jax.jobs.editing.methods import EditRequest, encode, frozen_of, texts
from sdd_jax.models.load import load
from sdd_jax.sampling.generate import initial_noise

TIMES = (50, 150, 300, 450, 600, 750, 900)
GAUSSIAN_STD = 0.5
LEFT = ("aligned", "permuted")
Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianOptions:
    """times: timesteps. draws: of noise, 200 in the paper."""

    times: tuple[int, ...] = TIMES
    draws: int = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientOptions(GaussianOptions):
    """count: portraits an edit (`pairs.distinct_pairs`). guidance: w, 1 is off. world: whose teacher."""

    count: int = 2
    guidance: float = 1.0
    world: str = "portraits"


def teacher(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """Figure 8 on the teacher; options: `GradientOptions`."""
    asked = validate(options, GradientOptions, "options")
    model, params = load(asked.world)
    frozen, pairs = frozen_of(model, params), distinct_pairs(count=asked.count)
    denoise = functools.partial(model.denoise, frozen["teacher"]["unet"])
    eps_hat = eps_denoiser(denoise, model.prediction, frozen["null_context"])
    both = [
        EditRequest(model=model, frozen=frozen, image=image, source=prompts, target=prompts)
        for image, prompts in ((pairs.image, pairs.source), (pairs.counterfactual, pairs.target))
    ]
    z, z_edited = (encode(request) for request in both)
    context, edited_context = (texts(request, request.source).context for request in both)
    w = None if asked.guidance == 1.0 else asked.guidance
    schedule = Schedule(model.alphas_cumprod)
    return figure_8(eps_hat, z, z_edited, context, edited_context, schedule, asked.times, asked.draws, seed, w)


def gaussian(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """Figure 8 on Gaussian data by the same code, and its closed form (2). options: `GaussianOptions`."""
    asked, schedule = validate(options, GaussianOptions, "options"), Schedule.scaled_linear()

    def denoise(z: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        return gaussian_eps(z, schedule.at(t), context[:, :, :, None], GAUSSIAN_STD)

    eps_hat = eps_denoiser(denoise, "eps", jnp.zeros((1, 16, 16)))
    mean, change, own, other = jax.random.normal(jax.random.key(1), (4, 8, 16, 16, 1))
    edited_mean, off, edited_off = mean + 0.5 * change, 0.5 * own, 0.5 * own + 0.25 * other

    def plots(z: jax.Array, z_edited: jax.Array) -> Metrics:
        return figure_8(
            eps_hat, z, z_edited, mean[..., 0], edited_mean[..., 0], schedule, asked.times, asked.draws, seed, None
        )

    left, right = plots(mean, edited_mean), plots(mean + off, edited_mean + edited_off)
    found = {name: (left if name.startswith(LEFT) else right)[name] for name in left}
    for t in asked.times:
        exact = closed_form(schedule, t, mean - jnp.roll(mean, 1, axis=0), off, edited_off)
        found |= {f"{name}_exact@{t}": value for name, value in exact.items()}
    return found


def closed_form(schedule: Schedule, t: int, permuted: jax.Array, off: jax.Array, edited_off: jax.Array) -> Metrics:
    """What `gaussian` should measure at t, by (2), for d [n,h,w,c] of permuted pairs, of images and of their edits."""
    kappa, slope = gaussian_weights(schedule, t)

    def product(d: jax.Array, e: jax.Array) -> jax.Array:
        return kappa**2 + slope**2 * jnp.mean(d * e, axis=(1, 2, 3))

    def cosine(d: jax.Array, e: jax.Array) -> float:
        return float(jnp.mean(product(d, e) / jnp.sqrt(product(d, d) * product(e, e))))

    return {
        "aligned": kappa,
        "permuted": float(jnp.mean(jnp.sqrt(product(permuted, permuted)))),
        "cosine": cosine(off, edited_off),
        "shuffled": cosine(off, jnp.roll(edited_off, 1, axis=0)),
    }


def gaussian_weights(schedule: Schedule, t: int, std: float = GAUSSIAN_STD) -> tuple[float, float]:
    """kappa and lambda of (1)."""
    alpha, sigma = map(float, schedule.at(t))
    kept = alpha**2 * std**2
    return kept / (kept + sigma**2), alpha * sigma / (kept + sigma**2)


def figure_8(
    eps_hat: EpsFn,
    z: jax.Array,
    z_edited: jax.Array,
    context: jax.Array,
    edited_context: jax.Array,
    schedule: Schedule,
    times: Sequence[int],
    draws: int,
    seed: int,
    w: float | None,
) -> Metrics:
    """Both plots for n images z [n,h,w,c] of `context`, and what they are edited to, and their means over the times.

    Captions are permuted by one. A shuffled pair is an image and another one's edit; the same noise throughout.
    """

    @jax.jit
    def measure(t: jax.Array, rng: jax.Array) -> dict[str, jax.Array]:
        at = jnp.broadcast_to(t, z.shape[:1])
        level = schedule.at(at)

        def one(key: jax.Array) -> dict[str, jax.Array]:
            eps = jnp.broadcast_to(initial_noise(key, (1, *z.shape[1:])), z.shape)

            def gradient(image: jax.Array, prompt: jax.Array) -> jax.Array:
                return sds_gradient(eps_hat, image, eps, at, level, prompt, w)

            aligned, edited = gradient(z, context), gradient(z_edited, edited_context)
            permuted = gradient(z, jnp.roll(context, 1, axis=0))
            return {
                "aligned": jnp.mean(_size(aligned)),
                "permuted": jnp.mean(_size(permuted)),
                "cosine": jnp.mean(_cosine(aligned, edited)),
                "shuffled": jnp.mean(_cosine(aligned, jnp.roll(edited, 1, axis=0))),
            }

        found = jax.lax.map(one, jax.random.split(rng, draws))
        return jax.tree.map(jnp.mean, found)

    keys = jax.random.split(jax.random.key(seed), len(times))
    rows = {t: jax.tree.map(float, measure(jnp.int32(t), key)) for t, key in zip(times, keys, strict=True)}
    means = {name: sum(row[name] for row in rows.values()) / len(rows) for name in rows[times[0]]}
    return {**means, **{f"{name}@{t}": value for t, row in rows.items() for name, value in row.items()}}


def _size(g: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(g), axis=(1, 2, 3)))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean(a * b, axis=(1, 2, 3)) / jnp.maximum(_size(a) * _size(b), 1e-12)
