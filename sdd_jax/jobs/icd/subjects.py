"""What iCD's tables measure, behind one interface: a run of stage 2, or a teacher with DDIM and DDIM inversion.

A `Protocol` is the options of a measure:

| option | of | default |
| --- | --- | --- |
| samples | held-out portraits; seed s reads the s-th so many of them | 64 |
| w | guidance on the way down | 1, off |
| tau, ramp_to, start | where it acts, see `sampling.editing.dynamic_guidance` | everywhere |
| encoding_w, encoding_tau | the same of the way up | 1 |
| model, steps | without a run: the teacher, and DDIM steps | portraits, 50 |
| world | whose instruments measure | portraits |

Guidance enters the programs as a table over time: one program serves every scale and schedule. Where it is 1 throughout
the teacher makes one pass in place of two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.jobs.editing.methods import Static, frozen_of, guided_unet, plain_unet
from sdd_jax.jobs.icd.guidance_distill import heldout, heldout_ids, heldout_images
from sdd_jax.jobs.icd.job import editing_model, generate_over, invert, scale_over_time
from sdd_jax.models.load import load
from sdd_jax.objectives.icd import ICD
from sdd_jax.objectives.inputs import text_of
from sdd_jax.runs import open_run
from sdd_jax.sampling.editing import DDIMRoute, prompted
from sdd_jax.sampling.generate import Denoise, initial_noise
from sdd_jax.types import Batch, Frozen, ModelBundle

BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The options of the table above."""

    samples: int = 64
    w: float = 1.0
    tau: float = 1.0
    ramp_to: float | None = None
    start: float = 0.0
    encoding_w: float = 1.0
    encoding_tau: float = 1.0
    model: str = "portraits"
    steps: int = 50
    world: str = "portraits"


class Subject(NamedTuple):
    """A model to measure; scales: w at each timestep, f32[T].

    latents(images f32[b,H,W,3]) -> clean latents [b,h,w,c]; generate(ids, noise [b,h,w,c], scales) -> images and their
    clean latents; encode(ids, images, noise, scales) -> noise [b,h,w,c].
    """

    model: ModelBundle
    latents: Callable[[np.ndarray], jax.Array]
    generate: Callable[[Batch, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    encode: Callable[[Batch, np.ndarray, jax.Array, jax.Array], jax.Array]


class Heldout(NamedTuple):
    """Held-out portraits as inputs: their canonical captions' ids, images, labels i32[n,a], and a noise for each."""

    chosen: list[portraits.Portrait]
    ids: Batch
    images: np.ndarray
    labels: np.ndarray
    noise: np.ndarray

    def in_batches(self, function: Callable[[slice, Batch], Any]) -> Any:
        """function(which rows, their ids) -> array or several, over all of them."""
        parts = []
        for start in range(0, len(self.images), BATCH):
            which = slice(start, start + BATCH)
            parts.append(function(which, {name: value[which] for name, value in self.ids.items()}))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def open_subject(workdir: Path | None, protocol: Protocol) -> Subject:
    """The run of a workdir, or the protocol's teacher where there is none."""
    if workdir is None:
        model, params = load(protocol.model)
        return ddim_subject(model, frozen_of(model, params), protocol.steps)
    job, params, _ = open_run(workdir)
    if not isinstance(job.objective, ICD):
        raise ValueError(f"--workdir={workdir} is a {job.config.task!r} run: this measures runs of iCD's stage 2")
    return icd_subject(*editing_model(job, params))


def icd_subject(model: ModelBundle, frozen: Frozen) -> Subject:
    """iCD's models; frozen: as from `jobs.icd.job.editing_model`."""
    static = Static(model)
    return Subject(
        model,
        lambda images: _latents(static, frozen, images),
        lambda ids, noise, scales: generate_over(static, frozen, ids, noise, scales),
        lambda ids, images, noise, scales: invert(static, frozen, ids, images, noise, scales),
    )


def ddim_subject(model: ModelBundle, frozen: Frozen, steps: int = 50) -> Subject:
    """The teacher with DDIM and DDIM inversion, n steps each."""
    static = Static(model)

    def is_off(scales: jax.Array) -> bool:
        return bool(np.all(np.asarray(scales) == 1.0))

    return Subject(
        model,
        lambda images: _latents(static, frozen, images),
        lambda ids, noise, scales: _ddim_generate(static, steps, is_off(scales), frozen, ids, noise, scales),
        lambda ids, images, _, scales: _ddim_encode(static, steps, is_off(scales), frozen, ids, images, scales),
    )


@functools.partial(jax.jit, static_argnums=0)
def _latents(static: Static, frozen: Frozen, images: jax.Array) -> jax.Array:
    return static.model.encode(frozen["vae"], images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ddim_generate(
    static: Static, steps: int, is_off: bool, frozen: Frozen, ids: Batch, noise: jax.Array, scales: jax.Array
) -> tuple[jax.Array, jax.Array]:
    z = _route(static.model, steps).decode(_teacher(static.model, frozen, ids, is_off, scales), noise)
    return static.model.decode(frozen["vae"], z), z


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ddim_encode(
    static: Static, steps: int, is_off: bool, frozen: Frozen, ids: Batch, images: jax.Array, scales: jax.Array
) -> jax.Array:
    x0 = static.model.encode(frozen["vae"], images)
    network = _teacher(static.model, frozen, ids, is_off, scales)
    return _route(static.model, steps).encode(network, x0, jnp.zeros_like(x0))


def _teacher(model: ModelBundle, frozen: Frozen, ids: Batch, is_off: bool, scales: jax.Array) -> Denoise:
    context, added_cond = text_of(model, frozen, ids)
    if is_off:
        plain = plain_unet(model, frozen)
        return lambda z, t: plain(z, t, context, added_cond=added_cond)
    return prompted(guided_unet(model, frozen), context, lambda t: scales[t], added_cond=added_cond)


def _route(model: ModelBundle, steps: int) -> DDIMRoute:
    return DDIMRoute(sampling_times(steps), Schedule(model.alphas_cumprod), model.prediction)


def read_heldout(model: ModelBundle, samples: int, seed: int) -> Heldout:
    """The seed-th `samples` held-out portraits, and noise drawn from the seed."""
    chosen, images = heldout(samples, seed), heldout_images(samples, seed)
    side = images.shape[1] // model.downsampling
    noise = initial_noise(jax.random.key(seed), (samples, side, side, model.latent_channels))
    labels = np.stack([portraits.labels(one.attributes) for one in chosen])
    return Heldout(chosen, heldout_ids(model, samples, seed), images, labels, np.asarray(noise))


def encoded(subject: Subject, data: Heldout, scales: jax.Array) -> np.ndarray:
    """The portraits' noise f32[n,h,w,c]; scales: of the way up."""
    return data.in_batches(
        lambda which, ids: subject.encode(ids, data.images[which], jnp.asarray(data.noise[which]), scales)
    )


def decoded(subject: Subject, data: Heldout, noise: np.ndarray, scales: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Pictures f32[n,H,W,3] of the portraits' captions from noise [n,h,w,c], and their clean latents [n,h,w,c].

    scales: of the way down.
    """
    return data.in_batches(lambda which, ids: subject.generate(ids, jnp.asarray(noise[which]), scales))


def scales_of(protocol: Protocol, model: ModelBundle) -> tuple[jax.Array, jax.Array]:
    """(the way up, the way down): the scale at each timestep, f32[T]."""
    up = scale_over_time(model, protocol.encoding_w, tau=protocol.encoding_tau)
    return up, scale_over_time(model, protocol.w, tau=protocol.tau, ramp_to=protocol.ramp_to, start=protocol.start)
