"""What the rows of SDD's tables measure (`tables/sdd.py`): manipulators, editors, timesteps' scores, costs.

Each is an evaluation in the sense of `tables.types`: (workdir or None, sampling seed, options) -> {metric: value}.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.edit_pairs import edit_pairs
from sdd_jax.data.prompts import edit_of
from sdd_jax.data.records import PortraitSource
from sdd_jax.evals.instruments import Instruments
from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.sdd.hqs import job_search, rank_correlation
from sdd_jax.jobs.sdd.report import (
    COLUMNS,
    edited,
    manipulated,
    measures,
    open_manipulator,
    training_seconds,
    world_scorer,
)
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.load import load
from sdd_jax.objectives.hqs import HQSOptions

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManipulatorOptions:
    """samples: held-out portraits. world: the directory whose instruments measure, or "portraits"."""

    samples: int = 128
    world: str = "portraits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditorOptions(ManipulatorOptions):
    """An editing method on a prompt's edit. strengths: of SDEdit, one point `metric@strength` each; (): its default."""

    method: str
    prompt: str
    steps: int = 50
    strengths: tuple[float, ...] = ()
    model: str = "portraits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """HQS of a prompt; search: fields of `HQSOptions`."""

    prompt: str
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = "portraits"


def manipulator(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """A trained manipulator on held-out portraits: edit metrics, CLIP scores, seconds for one image, tau_train."""
    assert workdir is not None
    asked = validate(options, ManipulatorOptions, "options")
    run = open_manipulator(workdir)
    pairs = edit_pairs([run.edit], asked.samples)
    images, seconds = manipulated(run, pairs)
    trained = training_seconds(workdir, run.step, run.job.batch_size)
    found = {
        **_measured(asked.world, pairs, images),
        "evaluations": run.evaluations,
        "seconds": seconds,
        "training": trained,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def editor(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """An iterative editor of the untrained teacher on the same portraits."""
    asked = validate(options, EditorOptions, "options")
    bundle, params = load(asked.model)
    frozen = frozen_of(bundle, params)
    pairs = edit_pairs([edit_of(asked.prompt)], asked.samples)
    found: Metrics = {}
    for strength in asked.strengths or (None,):
        settings = {"steps": asked.steps, **({} if strength is None else {"strength": strength})}
        images, count, seconds = edited(asked.method, bundle, frozen, pairs, settings, seed)
        measured = {**_measured(asked.world, pairs, images), "evaluations": count, "seconds": seconds}
        at = "" if strength is None else f"@{strength:g}"
        found |= {f"{name}{at}": value for name, value in measured.items()}
    return found


def scores(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """HQS, H and N of every timestep, and `agreement`, the rank correlation of two disjoint sets of images."""
    asked = validate(options, ScoreOptions, "options")
    bundle, params = load(asked.model)
    frozen, source = frozen_of(bundle, params), PortraitSource("train", _all(), cached=False)
    both = [
        job_search(
            bundle, frozen, source, asked.prompt,
            validate({**asked.search, "seed": 2 * seed + half}, HQSOptions, "options.search"), {"split": "train"},
        )
        for half in (0, 1)
    ]  # fmt: skip
    found = {"agreement": rank_correlation(*(np.asarray(one.hqs) for one in both))}
    for name in ("hqs", "H", "N"):
        found |= {f"{name}@{t}": value for t, value in zip(both[0].t, getattr(both[0], name), strict=True)}
    return found


def _measured(world: str, pairs: Any, images: np.ndarray) -> Metrics:
    directory = world_directory(world)
    instruments: Instruments = read_instruments(directory)
    found = measures(instruments, world_scorer(directory, instruments), pairs, images)
    return {name: value for name, value in found.items() if name in COLUMNS and value is not None}


def _all() -> int:
    return len(portraits.split_indices("train"))
