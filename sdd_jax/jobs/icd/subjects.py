"""What iCD's tables measure, behind one interface: a run of stage 2, or a teacher with DDIM and DDIM inversion.

A `Protocol` is the options of a measure:

| option | of | default |
| --- | --- | --- |
| samples | held-out portraits; seed s reads the s-th so many of them | 64 |
| w | guidance on the way down; None: `guided_scale` | 1, off |
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
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.cache import cached_array, renderer_hash
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.jobs.editing.methods import Static, frozen_of, guided_unet, plain_unet
from sdd_jax.jobs.icd.guidance_distill import heldout, heldout_ids, heldout_images
from sdd_jax.jobs.icd.job import editing_model, generate_over, invert, scale_over_time
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.load import load
from sdd_jax.objectives.icd import ICD
from sdd_jax.objectives.inputs import text_of
from sdd_jax.runs import open_run
from sdd_jax.sampling.editing import DDIMRoute, prompted
from sdd_jax.sampling.generate import Denoise, initial_noise
from sdd_jax.types import Batch, Frozen, ModelBundle

BATCH = 32
CANDIDATES = (2.0, 3.0, 4.0, 6.0)
CHOSEN_ON = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The options of the table above."""

    samples: int = 64
    w: float | None = 1.0
    tau: float = 1.0
    ramp_to: float | None = None
    start: float = 0.0
    encoding_w: float | None = 1.0
    encoding_tau: float = 1.0
    model: str = "portraits"
    steps: int = 50
    world: str = "portraits"


class Subject(NamedTuple):
    """A model to measure; scales: w at each timestep, f32[T].

    generate(ids, noise [b,h,w,c], scales) -> images f32[b,H,W,3]; encode(ids, images, noise, scales) -> [b,h,w,c].
    """

    model: ModelBundle
    generate: Callable[[Batch, jax.Array, jax.Array], jax.Array]
    encode: Callable[[Batch, np.ndarray, jax.Array, jax.Array], jax.Array]


class Heldout(NamedTuple):
    """Held-out portraits as inputs: their canonical captions' ids, images, labels i32[n,a], and a noise for each."""

    chosen: list[portraits.Portrait]
    ids: Batch
    images: np.ndarray
    labels: np.ndarray
    noise: np.ndarray

    def in_batches(self, function: Callable[[slice, Batch], jax.Array]) -> np.ndarray:
        """function(which rows, their ids) -> array, over all of them."""
        parts = []
        for start in range(0, len(self.images), BATCH):
            which = slice(start, start + BATCH)
            parts.append(np.asarray(function(which, {name: value[which] for name, value in self.ids.items()})))
        return np.concatenate(parts)


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
        lambda ids, noise, scales: _ddim_generate(static, steps, is_off(scales), frozen, ids, noise, scales),
        lambda ids, images, _, scales: _ddim_encode(static, steps, is_off(scales), frozen, ids, images, scales),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ddim_generate(
    static: Static, steps: int, is_off: bool, frozen: Frozen, ids: Batch, noise: jax.Array, scales: jax.Array
) -> jax.Array:
    network = _teacher(static.model, frozen, ids, is_off, scales)
    return static.model.decode(frozen["vae"], _route(static.model, steps).decode(network, noise))


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


def decoded(subject: Subject, data: Heldout, noise: np.ndarray, scales: jax.Array) -> np.ndarray:
    """Pictures f32[n,H,W,3] of the portraits' captions from noise [n,h,w,c]; scales: of the way down."""
    return data.in_batches(lambda which, ids: subject.generate(ids, jnp.asarray(noise[which]), scales))


def scales_of(protocol: Protocol, model: ModelBundle) -> tuple[float, jax.Array, jax.Array]:
    """(w, the way up, the way down): the scale, chosen by `guided_scale` where it is None, and its tables f32[T]."""
    w, up = (
        guided_scale(protocol.model, protocol.world) if scale is None else scale
        for scale in (protocol.w, protocol.encoding_w)
    )
    down = scale_over_time(model, w, tau=protocol.tau, ramp_to=protocol.ramp_to, start=protocol.start)
    return w, scale_over_time(model, up, tau=protocol.encoding_tau), down


@functools.cache
def guided_scale(
    teacher: str, world: str, candidates: tuple[float, ...] = CANDIDATES, samples: int = CHOSEN_ON
) -> float:
    """The guidance scale that a teacher is guided with, by rule: the smallest of the best.

    Of the scales above 1 that stage 1 trains, the smallest at which 50 DDIM steps show the attributes of captions as
    often as at the best one, but for one standard error of a share. Captions: the last held-out ones, which no
    measure reads. Measured once for a teacher and kept in `$SDD_JAX_CACHE`.
    """
    model, params = load(teacher)
    instruments = read_instruments(world_directory(world))
    block = len(portraits.split_indices("heldout")) // samples - 1

    def measured() -> Iterator[np.ndarray]:
        subject, data = ddim_subject(model, frozen_of(model, params)), read_heldout(model, samples, block)
        for w in candidates:
            drawn = decoded(subject, data, data.noise, scale_over_time(model, w))
            yield np.asarray([np.mean(instruments.read(drawn).labels == data.labels)])

    key = f"{tree_hash(params)} {tree_hash(instruments.classifier[1])} {renderer_hash()} {candidates} {samples}"
    shares = cached_array("attributes-by-guidance", key, (len(candidates),), "float64", measured)
    return smallest_of_the_best(candidates, shares, samples * len(portraits.VOCABULARY))


def smallest_of_the_best(candidates: Sequence[float], shares: Sequence[float] | np.ndarray, trials: int) -> float:
    """The smallest candidate whose share of `trials` is within one standard error of the highest share."""
    best = float(np.max(shares))
    error = math.sqrt(best * (1 - best) / trials)
    return min(one for one, share in zip(candidates, shares, strict=True) if share >= best - error)
