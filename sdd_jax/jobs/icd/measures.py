"""The evaluations of iCD's tables: (workdir, sampling seed, options) -> metrics; `tables.icd` says who asks for what.

| evaluation | of | metrics |
| --- | --- | --- |
| `inversion` | reconstructions | `evals.inversion` |
| `ceiling` | the pictures through the autoencoder | `evals.inversion` of pictures |
| `generation` | samples of captions | `evals.generation` |
| `encoding` | noise of a way up, and what several ways down draw from it | `nll`, `frechet_NAME` of each |
| `schedules` | one way up, several ways down | `RECONSTRUCTION` at x; with `generation` also `evals.generation` |
| `training` | a run's checkpoints: guided samples, unguided reconstructions | `frechet`, `RECONSTRUCTION` at a step |

Options are those of `subjects.Protocol` and the evaluation's own. All read the portraits of their seed's block, so that
seeds differ in noise and in pictures, and rows of one seed are compared on the same pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.evals.frechet import feature_stats, frechet_distance
from sdd_jax.evals.generation import generation_metrics
from sdd_jax.evals.instruments import Instruments, autoencoded
from sdd_jax.evals.inversion import inversion_metrics, normal_nll, picture_metrics
from sdd_jax.jobs.icd.guidance_distill import heldout_images
from sdd_jax.jobs.icd.job import editing_model, scale_over_time
from sdd_jax.jobs.icd.subjects import (
    Heldout,
    Protocol,
    Subject,
    decoded,
    encoded,
    icd_subject,
    open_subject,
    read_heldout,
    scales_of,
)
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.jobs.world.report import caption_embedder
from sdd_jax.models.load import load
from sdd_jax.objectives.icd import ICD
from sdd_jax.runs import open_run
from sdd_jax.types import Params

Options = Mapping[str, Any]
RECONSTRUCTION = ("mse", "psnr", "latent_mse")


def inversion(workdir: Path | None, seed: int, options: Options) -> dict[str, float]:
    """`evals.inversion` of held-out portraits under their canonical captions."""
    protocol = validate(options, Protocol, "options")
    subject = open_subject(workdir, protocol)
    data = read_heldout(subject.model, protocol.samples, seed)
    return reconstructed(subject, data, *scales_of(protocol, subject.model), _instruments(protocol))[0]


def ceiling(workdir: Path | None, seed: int, options: Options) -> dict[str, float]:
    """What no inversion of a model's latents can beat: the same portraits through its autoencoder alone."""
    protocol = validate(options, Protocol, "options")
    (model, params), images = load(protocol.model), heldout_images(protocol.samples, seed)
    return picture_metrics(_instruments(protocol), autoencoded(model, params["vae"], images), images)


def generation(workdir: Path | None, seed: int, options: Options) -> dict[str, float]:
    """`evals.generation` of samples of held-out portraits' canonical captions."""
    protocol = validate(options, Protocol, "options")
    subject = open_subject(workdir, protocol)
    data = read_heldout(subject.model, protocol.samples, seed)
    return drawn_metrics(subject, data, scales_of(protocol, subject.model)[1], protocol)[0]


def encoding(workdir: Path | None, seed: int, options: Options) -> dict[str, float]:
    """`nll` of the noise that portraits are encoded to, and the Frechet distance of what is drawn from it.

    options["decodings"]: {name: {w, tau, ...}}, ways down, fields of `Protocol` each.
    """
    protocol = validate(_without(options, "decodings"), Protocol, "options")
    subject = open_subject(workdir, protocol)
    data, instruments = read_heldout(subject.model, protocol.samples, seed), _instruments(protocol)
    real, up = feature_stats([instruments.read(data.images).embedding]), scales_of(protocol, subject.model)[0]
    z = encoded(subject, data, up)
    metrics = {"nll": normal_nll(z)}
    for name, fields in options["decodings"].items():
        way = validate({**_without(options, "decodings"), **fields}, Protocol, f"options.decodings.{name}")
        images, _ = decoded(subject, data, z, scales_of(way, subject.model)[1])
        found = feature_stats([instruments.read(images).embedding])
        metrics[f"frechet_{name}"] = 100 * frechet_distance(found, real)
    return metrics


def schedules(workdir: Path | None, seed: int, options: Options) -> dict[str, float]:
    """Reconstruction, and with options["generation"] generation, at each of options["points"].

    points: {x: {tau, ramp_to, ...}}, x a number as text: fields of `Protocol` for the way down. The way up is one.
    """
    settings = _without(options, "points", "generation")
    protocol = validate(settings, Protocol, "options")
    subject, instruments = open_subject(workdir, protocol), _instruments(protocol)
    data = read_heldout(subject.model, protocol.samples, seed)
    z = encoded(subject, data, scales_of(protocol, subject.model)[0])
    metrics: dict[str, float] = {}
    for x, fields in options["points"].items():
        way = validate({**settings, **fields}, Protocol, f"options.points.{x}")
        down = scales_of(way, subject.model)[1]
        found = compared(subject, data, z, down, instruments)[0]
        metrics |= {f"{name}@{float(x):g}": found[name] for name in RECONSTRUCTION}
        if options.get("generation"):
            drawn = drawn_metrics(subject, data, down, protocol)[0]
            metrics |= {f"{name}@{float(x):g}": value for name, value in drawn.items()}
    return metrics


def training(workdir: Path | None, seed: int, options: Options) -> dict[str, float]:
    """The run at each checkpoint that it kept, and before its first step; a teacher at each of options["at"] steps.

    `frechet` of samples guided at `w`, errors of unguided reconstructions.
    """
    protocol = validate(_without(options, "at"), Protocol, "options")
    if workdir is None:
        subject = open_subject(None, protocol)
        found = _trained_metrics(subject, protocol, seed)
        return {f"{name}@{step}": value for step in options["at"] for name, value in found.items()}
    job, _, _ = open_run(workdir)
    objective = job.objective
    if not isinstance(objective, ICD):
        raise ValueError(f"--workdir={workdir} is a {job.config.task!r} run: this measures runs of iCD's stage 2")
    metrics: dict[str, float] = {}
    for step in (0, *checkpoints(workdir)):
        params = objective.init(jax.random.key(0), job.frozen) if step == 0 else params_at(workdir, step)
        found = _trained_metrics(icd_subject(*editing_model(job, params)), protocol, seed)
        metrics |= {f"{name}@{step}": value for name, value in found.items()}
    return metrics


def _trained_metrics(subject: Subject, protocol: Protocol, seed: int) -> dict[str, float]:
    data, off = read_heldout(subject.model, protocol.samples, seed), scale_over_time(subject.model, 1.0)
    found = reconstructed(subject, data, off, off, _instruments(protocol))[0]
    return {
        "frechet": drawn_metrics(subject, data, scales_of(protocol, subject.model)[1], protocol)[0]["frechet"],
        **{name: found[name] for name in RECONSTRUCTION},
    }


def checkpoints(workdir: Path) -> list[int]:
    """The steps of the checkpoints that a workdir holds, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def params_at(workdir: Path, step: int) -> Params:
    """A run's parameters (the average where it keeps one) at one of its checkpoints, verified as `open_run` does."""
    with tempfile.TemporaryDirectory() as name:
        view = Path(name)
        (view / "checkpoints").mkdir()
        (view / "config.json").symlink_to((workdir / "config.json").absolute())
        (view / "checkpoints" / str(step)).symlink_to((workdir / "checkpoints" / str(step)).absolute())
        return open_run(view)[1]


def reconstructed(
    subject: Subject, data: Heldout, up: jax.Array, down: jax.Array, instruments: Instruments
) -> tuple[dict[str, float], np.ndarray]:
    """`evals.inversion` of portraits to noise and back, and the pictures f32[n,H,W,3]."""
    return compared(subject, data, encoded(subject, data, up), down, instruments)


def compared(
    subject: Subject, data: Heldout, noise: np.ndarray, down: jax.Array, instruments: Instruments
) -> tuple[dict[str, float], np.ndarray]:
    """`evals.inversion` of what comes back from the portraits' noise f32[n,h,w,c], and the pictures f32[n,H,W,3]."""
    images, latents = decoded(subject, data, noise, down)
    truth = data.in_batches(lambda which, _: subject.latents(data.images[which]))
    return inversion_metrics(instruments, images, data.images, latents, truth, noise), images


def drawn_metrics(
    subject: Subject, data: Heldout, scales: jax.Array, protocol: Protocol
) -> tuple[dict[str, float], np.ndarray]:
    """`evals.generation` of samples of the portraits' captions, and the samples f32[n,H,W,3]."""
    drawn, _ = decoded(subject, data, data.noise, scales)
    instruments = _instruments(protocol)
    captions = _caption_embeddings(
        protocol.world, instruments, [portraits.caption(one.attributes) for one in data.chosen]
    )
    return generation_metrics(instruments, drawn, data.labels, captions, data.images), drawn


def _caption_embeddings(world: str, instruments: Instruments, captions: Sequence[str]) -> np.ndarray:
    model, params = load(world_directory(world))
    return caption_embedder(model, params, instruments.clip[1])(captions)


def _instruments(protocol: Protocol) -> Instruments:
    return read_instruments(world_directory(protocol.world))


def _without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
