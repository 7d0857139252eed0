"""Evaluation of iCD's models and of DDIM on the same protocols: inversion and generation on held-out portraits.

`measure_*` are the evaluations of `tables.icd`: (workdir, sampling seed, options) -> metrics. With a workdir, a run of
stage 2 is measured; without one the teacher `options["model"]` ("portraits"), in `options["steps"]` DDIM steps.

| option | of | default |
| --- | --- | --- |
| samples | both | 64 held-out portraits |
| w, tau, ramp_to, start | guidance on the way down, see `sampling.editing.dynamic_guidance` | 1, everywhere |
| encoding_w | inversion: guidance on the way up | 1 |
| model, steps | without a workdir: the teacher, and DDIM steps | portraits, 50 |
| world | whose instruments measure | portraits |

`measure_editing` has options of its own (`EditingOptions`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.edit_pairs import EDITS
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.evals.generation import generation_metrics
from sdd_jax.evals.inversion import inversion_metrics
from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.editing.methods import Static, frozen_of, guided_unet, plain_unet
from sdd_jax.jobs.editing.report import Editor, measure_pairs
from sdd_jax.jobs.icd.guidance_distill import heldout_ids, heldout_images
from sdd_jax.jobs.icd.job import best_scale, editing_model, generate, reconstruct
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.jobs.world.report import caption_embedder
from sdd_jax.models.load import load
from sdd_jax.objectives.icd import ICD
from sdd_jax.objectives.inputs import text_of
from sdd_jax.runs import open_run
from sdd_jax.sampling.editing import DDIMRoute, dynamic_guidance, prompted
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.types import Batch, Frozen, ModelBundle

BATCH = 32
SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The options of the table above."""

    samples: int = 64
    w: float = 1.0
    tau: float = 1.0
    ramp_to: float | None = None
    start: float = 0.0
    encoding_w: float = 1.0
    model: str = "portraits"
    steps: int = 50
    world: str = "portraits"

    @property
    def when(self) -> dict[str, float | None]:
        """Where guidance acts."""
        return {"tau": self.tau, "ramp_to": self.ramp_to, "start": self.start}


class Subject(NamedTuple):
    """What is measured: generate(ids, noise) -> images; invert(ids, images, noise) -> (reconstructions, noise)."""

    model: ModelBundle
    frozen: Frozen
    generate: Callable[[Batch, np.ndarray], jax.Array]
    invert: Callable[[Batch, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]


def measure_inversion(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """`evals.inversion` of held-out portraits under their canonical captions."""
    protocol = validate(options, Protocol, "options")
    subject = _subject(workdir, protocol)
    return invert_portraits(subject, protocol, seed)[0]


def measure_generation(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """`evals.generation` of samples of held-out portraits' canonical captions."""
    protocol = validate(options, Protocol, "options")
    return draw_portraits(_subject(workdir, protocol), protocol, seed)[0]


def measure_reconstruction(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """`mse@tau` of inversion at each of `options["taus"]`, guidance w acting below tau (iCD's fig. 4a)."""
    settings = {name: value for name, value in options.items() if name != "taus"}
    metrics: dict[str, float] = {}
    for tau in options["taus"]:
        found = measure_inversion(workdir, seed, {**settings, "tau": tau})
        metrics |= {f"{name}@{tau:g}": found[name] for name in ("mse", "psnr")}
    return metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditingOptions:
    """The options of `measure_editing`: a method of `jobs.editing` and its own options; samples of each edit."""

    method: str
    method_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: int = 8
    edits: tuple[str, ...] = EDITS
    model: str = "portraits"
    world: str = "portraits"


def measure_editing(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """An editing method's metrics over all pairs of portraits, with a run of iCD or on a teacher."""
    settings = validate(options, EditingOptions, "options")
    if workdir is None:
        model, params = load(settings.model)
        frozen = frozen_of(model, params)
    else:
        job, trained, _ = open_run(workdir)
        model, frozen = editing_model(job, trained)
    editor = Editor(model=model, frozen=frozen, methods=(settings.method,), options=settings.method_options, seed=seed)
    return measure_pairs(editor, settings.samples, settings.edits, settings.world)[0][settings.method]["all"]


def invert_portraits(subject: Subject, protocol: Protocol, seed: int) -> tuple[dict[str, float], np.ndarray]:
    """Metrics and reconstructions f32[n,64,64,3] of the protocol's portraits."""
    images, ids, noise = _inputs(subject.model, protocol.samples, seed)
    parts = [subject.invert(_part(ids, which), images[which], noise[which]) for which in _batches(protocol.samples)]
    outputs, latents = (np.concatenate([np.asarray(part) for part in column]) for column in zip(*parts, strict=True))
    instruments = read_instruments(world_directory(protocol.world))
    return inversion_metrics(instruments, outputs, images, latents), outputs


def draw_portraits(subject: Subject, protocol: Protocol, seed: int) -> tuple[dict[str, float], np.ndarray]:
    """Metrics and samples f32[n,64,64,3] of the protocol's captions."""
    images, ids, noise = _inputs(subject.model, protocol.samples, seed)
    drawn = [np.asarray(subject.generate(_part(ids, which), noise[which])) for which in _batches(protocol.samples)]
    world = world_directory(protocol.world)
    instruments = read_instruments(world)
    model, params = load(world)
    chosen = [portraits.portrait(i).attributes for i in portraits.split_indices("heldout")[: protocol.samples]]
    captions = caption_embedder(model, params, instruments.clip[1])([portraits.caption(one) for one in chosen])
    outputs, labels = np.concatenate(drawn), np.stack([portraits.labels(one) for one in chosen])
    return generation_metrics(instruments, outputs, labels, captions, images), outputs


def icd_subject(model: ModelBundle, frozen: Frozen, protocol: Protocol) -> Subject:
    """iCD's models; frozen: as from `jobs.icd.job.editing_model`."""
    static, w, up = Static(model), jnp.float32(protocol.w), jnp.float32(protocol.encoding_w)
    when = protocol.when
    return Subject(
        model,
        frozen,
        lambda ids, noise: generate(static, frozen, ids, noise, w, **when),
        lambda ids, images, noise: reconstruct(static, frozen, ids, images, noise, up, w, **when),
    )


def ddim_subject(model: ModelBundle, frozen: Frozen, protocol: Protocol) -> Subject:
    """The teacher with DDIM and DDIM inversion."""
    static, w, up = Static(model), jnp.float32(protocol.w), jnp.float32(protocol.encoding_w)
    program = dataclasses.replace(protocol, w=0.0, encoding_w=0.0, samples=0)
    is_plain = protocol.encoding_w == 1.0
    return Subject(
        model,
        frozen,
        lambda ids, noise: _ddim_generate(static, program, frozen, ids, noise, w),
        lambda ids, images, noise: _ddim_reconstruct(static, program, is_plain, frozen, ids, images, up, w),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ddim_generate(
    static: Static, protocol: Protocol, frozen: Frozen, ids: Batch, noise: jax.Array, w: jax.Array
) -> jax.Array:
    model, route = static.model, _route(static.model, protocol)
    context, added_cond = text_of(model, frozen, ids)
    guidance = dynamic_guidance(w, protocol.tau, protocol.ramp_to, protocol.start)
    network = prompted(guided_unet(model, frozen), context, guidance, added_cond=added_cond)
    return model.decode(frozen["vae"], route.decode(network, noise))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ddim_reconstruct(
    static: Static,
    protocol: Protocol,
    is_plain: bool,
    frozen: Frozen,
    ids: Batch,
    images: jax.Array,
    encoding_w: jax.Array,
    w: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    model, route = static.model, _route(static.model, protocol)
    context, added_cond = text_of(model, frozen, ids)
    guided = guided_unet(model, frozen)
    plain = plain_unet(model, frozen)
    if is_plain:
        up = lambda z, t: plain(z, t, context, added_cond=added_cond)  # noqa: E731
    else:
        up = prompted(guided, context, dynamic_guidance(encoding_w), added_cond=added_cond)
    guidance = dynamic_guidance(w, protocol.tau, protocol.ramp_to, protocol.start)
    x0 = model.encode(frozen["vae"], images)
    z = route.encode(up, x0, jnp.zeros_like(x0))
    down = prompted(guided, context, guidance, added_cond=added_cond)
    return model.decode(frozen["vae"], route.decode(down, z)), z


def _route(model: ModelBundle, protocol: Protocol) -> DDIMRoute:
    return DDIMRoute(sampling_times(protocol.steps), Schedule(model.alphas_cumprod), model.prediction)


def _subject(workdir: Path | None, protocol: Protocol) -> Subject:
    if workdir is None:
        model, params = load(protocol.model)
        return ddim_subject(model, frozen_of(model, params), protocol)
    job, params, _ = open_run(workdir)
    if not isinstance(job.objective, ICD):
        raise ValueError(f"--workdir={workdir} is a {job.config.task!r} run: this measures runs of iCD's stage 2")
    return icd_subject(*editing_model(job, params), protocol)


def _inputs(model: ModelBundle, samples: int, seed: int) -> tuple[np.ndarray, Batch, np.ndarray]:
    images = heldout_images(samples)
    side = images.shape[1] // model.downsampling
    noise = initial_noise(jax.random.key(seed), (samples, side, side, model.latent_channels))
    return images, heldout_ids(model, samples), np.asarray(noise)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def _part(ids: Batch, which: slice) -> Batch:
    return {name: value[which] for name, value in ids.items()}


def report(workdir: Path, flags: ReportFlags) -> str:
    """Measures a run of stage 2: generation and inversion, unguided and guided, constantly and dynamically."""
    job, params, step = open_run(workdir)
    objective = job.objective
    if not isinstance(objective, ICD) or job.config.data.source != "portraits":
        raise ValueError(f"--workdir={workdir}: evaluate takes runs of iCD on portraits")
    model, frozen = editing_model(job, params)
    images = heldout_images(min(flags.samples, SHOWN))
    rows, shown = {}, {"held out": images}
    for w in flags.guidance or (1.0, best_scale(objective)):
        for tau in (1.0,) if w == 1.0 else (1.0, 0.8):
            protocol = Protocol(samples=flags.samples, w=w, tau=tau, world=flags.world)
            subject = icd_subject(model, frozen, protocol)
            inversion, reconstructed = invert_portraits(subject, protocol, flags.seed)
            generation, drawn = draw_portraits(subject, protocol, flags.seed)
            name = f"w = {w:g}" + (f", tau = {tau:g}" if tau < 1 else "")
            rows[name] = {**inversion, **generation}
            shown[f"back, {name}"], shown[f"drawn, {name}"] = reconstructed[:SHOWN], drawn[:SHOWN]
    directory = workdir / "evaluation"
    write_grid(directory / "grid.png", list(shown.values()), list(shown))
    content = {"workdir": str(workdir), "step": step, "samples": flags.samples, "seed": flags.seed, "rows": rows}
    (directory / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    columns = ("psnr", "ssim", "clip_distance", "nll", "attributes", "clip_score", "frechet")
    lines = [
        f"| {len(objective.boundaries.reverse)} steps | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.4g}' for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)
