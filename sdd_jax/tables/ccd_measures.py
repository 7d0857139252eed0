"""Evaluations of CCD's tables: a run's samples of held-out portraits, by number of steps and solver.

`restoration` measures super-resolution, `conditional` the other conditions. Beside what `evals` measures, restoration
has two figures of how outputs look, each the outputs' over the originals' (1 is right):

    saturation   mean over pixels of max - min over the channels
    sharpness    mean absolute difference of neighbouring pixels
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.evals.instruments import in_batches
from sdd_jax.evals.restoration import restoration_metrics
from sdd_jax.jobs.ccd.conditional import default_start, make_sampler
from sdd_jax.jobs.ccd.data import heldout_rows, read_data
from sdd_jax.jobs.ccd.report import condition_of, evaluate, rival_portraits, sample_all
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.lpips import load_lpips, lpips
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.runs import open_run, read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestorationOptions:
    """Options of a super-resolution row.

    steps: one number of sampling steps, or several: then metrics are named `metric@steps`.
    solver: as `make_sampler`, '' for the method's own. samples: held-out portraits.
    lpips: files of VGG16 and of the lpips package's linear layers; none: LPIPS is not measured.
    world: whose instruments measure.
    """

    steps: int | tuple[int, ...]
    solver: str = ""
    samples: int = 256
    lpips: tuple[str, ...] = ()
    world: str = "portraits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalOptions:
    """Options of a row of another condition; as `RestorationOptions`."""

    steps: int
    samples: int = 256
    world: str = "portraits"


def restoration(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """Measures a super-resolution run of CCD or a baseline; metrics as in `evals.restoration`, and the two above."""
    wanted = validate(options, RestorationOptions, "options")
    assert workdir is not None
    config = read_config(workdir)
    data, condition = read_data({"data": config.data, "condition": condition_of(workdir)})
    instruments = read_instruments(world_directory(wanted.world))
    job, params, _ = open_run(workdir)
    assert isinstance(job.objective, ConditionalNetwork)
    rows = heldout_rows(data, job.objective.model, wanted.samples, condition)
    labels = np.stack([portraits.labels(portraits.portrait(i).attributes) for i in rows["index"]])
    rivals = np.stack([rival_portraits(int(i)) for i in rows["index"]])
    sampler = make_sampler(job.objective, wanted.solver, default_start(condition))
    found: dict[str, float] = {}
    single = isinstance(wanted.steps, int)
    for n in (wanted.steps,) if isinstance(wanted.steps, int) else wanted.steps:
        images = np.clip(sample_all(sampler, params, job.frozen, rows, n, seed, batch=32), -1.0, 1.0)
        metrics = restoration_metrics(instruments, images, rows["image"], labels, rivals)
        metrics |= appearance(images, rows["image"])
        if wanted.lpips:
            metrics["lpips"] = mean_lpips(images, rows["image"], *wanted.lpips)
        found |= {name if single else f"{name}@{n}": value for name, value in metrics.items()}
    return found


def conditional(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """Measures a run of any condition with its own sampler in `steps` steps; metrics as in `evals.conditional`."""
    wanted = validate(options, ConditionalOptions, "options")
    assert workdir is not None
    rows = evaluate(workdir, wanted.samples, (wanted.steps,), seed, world=wanted.world)
    (own,) = [name for name in rows if name.endswith(f", {wanted.steps} step{'s' * (wanted.steps > 1)}")]
    return rows[own]


def appearance(outputs: np.ndarray, originals: np.ndarray) -> dict[str, float]:
    """`saturation` and `sharpness` of outputs f32[n,H,W,3], each over the originals'."""
    return {
        name: measure(outputs) / measure(originals)
        for name, measure in (("saturation", _saturation), ("sharpness", _sharpness))
    }


def _saturation(images: np.ndarray) -> float:
    return float(np.mean(images.max(-1) - images.min(-1)))


def _sharpness(images: np.ndarray) -> float:
    return float(np.mean(np.abs(np.diff(images, axis=1))) + np.mean(np.abs(np.diff(images, axis=2))))


def mean_lpips(outputs: np.ndarray, originals: np.ndarray, backbone: str, linear: str) -> float:
    """LPIPS (VGG16) of outputs against originals, both f32[n,H,W,3] in [-1, 1]."""
    params = load_lpips("vgg", backbone, linear)
    distance = jax.jit(functools.partial(lpips, name="vgg"))
    pairs = np.concatenate([outputs, originals], axis=-1)
    parts = in_batches(lambda pair: (distance(params, pair[..., :3], pair[..., 3:]),), pairs, 32)
    return float(np.mean(np.concatenate([values for (values,) in parts])))
