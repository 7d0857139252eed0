"""What the rows of SDD's tables measure (`tables/sdd.py`): manipulators, editors, timesteps' scores, costs.

Each is an evaluation in the sense of `tables.types`: (workdir or None, sampling seed, options) -> {metric: value}.

| metric | of | what |
| --- | --- | --- |
| success .. clip_image | all | against exact counterfactuals and the world's CLIP (`evals.editing`, `.directional`) |
| evaluations, seconds | all | F and time of one image, compiled and warm |
| mean_hqs, mean_t, timesteps | SDD | of the timesteps trained on: mean score, mean, how many |
| hqs@t, H@t, N@t, agreement | scores | means of two disjoint sets of images, and their rank correlation |
| training, step, search | cost | tau_train of eq. 14, s, and its parts, timed in the same process (`jobs.sdd.cost`) |
| seconds_M, break_even_M | cost | of an editor M timed in it too, images from which on training pays (15) |

A manipulator's row also leaves `evaluation/before_after.png` in its workdir: pictures, edits, exact answers.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.config import validate
from sdd_jax.data.edit_pairs import EditPairs, edit_pairs
from sdd_jax.data.prompts import edit_of
from sdd_jax.evals.edit_cost import EditCost
from sdd_jax.evals.instruments import autoencoded
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.sdd.cost import training_cost
from sdd_jax.jobs.sdd.data import EditData, edit_data
from sdd_jax.jobs.sdd.hqs import job_search, rank_correlation
from sdd_jax.jobs.sdd.report import (
    BATCH,
    COLUMNS,
    EDITORS,
    SHOWN,
    Run,
    edited,
    in_parts,
    manipulated,
    measures,
    open_manipulator,
    world_scorer,
)
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.jobs.world.style import read_style
from sdd_jax.models.e4e import encode
from sdd_jax.models.load import load
from sdd_jax.models.stylegan2 import make_generator
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.sdd import SDD
from sdd_jax.types import Params

Metrics = dict[str, float]
_log = logging.getLogger("sdd_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManipulatorOptions:
    """samples: held-out portraits. world: the directory whose instruments measure, or "portraits".

    strengths: shares of the edit that are measured, too, as `metric@share`; with 1 the plain metrics are among them.
    search: fields of `HQSOptions` by which `mean_hqs` is read, in place of the run's own.
    """

    samples: int = 128
    world: str = "portraits"
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.25)
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """A prompt's edit, whose exact answers are known. model: the teacher; samples, world: as of manipulators."""

    prompt: str
    samples: int = 128
    world: str = "portraits"
    model: str = "portraits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditorOptions(AnswerOptions):
    """An editing method on a prompt's edit. strengths: of SDEdit, one point `metric@strength` each; (): its default."""

    method: str
    steps: int = 50
    strengths: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostOptions:
    """steps: of the editors that a manipulator is timed against; SDEdit makes all of them, from noise."""

    steps: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """HQS of a prompt; search: fields of `HQSOptions`."""

    prompt: str
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = "portraits"


def manipulator(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """A trained manipulator on the seed-th held-out portraits; draws before, after and the exact answer."""
    assert workdir is not None
    asked = validate(options, ManipulatorOptions, "options")
    run = open_manipulator(workdir)
    pairs = edit_pairs([run.edit], asked.samples, seed)
    images, seconds, weaker = manipulated(run, pairs, asked.strengths)
    shown = {"before": pairs.image, "after": images, "exact answer": pairs.counterfactual}
    grid = workdir / "evaluation" / "before_after.png"
    write_grid(grid, [rows[:SHOWN] for rows in shown.values()], list(shown))
    _log.info("before, after, exact answer: %s", grid)
    along = {1.0: images, **weaker} if weaker else {}
    curve = {share: _finite(_measured(asked.world, pairs, edits)) for share, edits in along.items()}
    found = {
        **_measured(asked.world, pairs, images),
        **{f"{name}@{share:g}": value for share, metrics in curve.items() for name, value in metrics.items()},
        **_timesteps(run, asked.search),
        "evaluations": run.evaluations,
        "seconds": seconds,
    }
    return _finite(found)


def cost(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The cost model (eqs. 13-15), all times taken in this process; of passes and editors one image at a time."""
    assert workdir is not None
    asked = validate(options, CostOptions, "options")
    run = open_manipulator(workdir)
    pairs = edit_pairs([run.edit], 1)
    _, one_pass, _ = manipulated(run, pairs)
    trained = training_cost(run.job, run.step)
    found = {"evaluations": run.evaluations, "seconds": one_pass}
    found |= {"training": trained.seconds, "step": trained.step, "search": trained.search}
    for method in EDITORS.values():
        model, frozen = run.manipulator.model, run.job.frozen
        settings = {"steps": asked.steps, **({"strength": 1.0} if method == "sdedit" else {})}
        _, count, seconds = edited(method, model, frozen, pairs, settings, seed)
        pays = EditCost(train=trained.seconds, manipulator=one_pass, editor=seconds).break_even
        found |= {f"seconds_{method}": seconds, f"evaluations_{method}": count, f"break_even_{method}": pays}
    return _finite(found)


def editor(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """An iterative editor of the untrained teacher on the same portraits; a curve of strengths is not timed."""
    asked = validate(options, EditorOptions, "options")
    bundle, params = load(asked.model)
    frozen = frozen_of(bundle, params)
    pairs = edit_pairs([edit_of(asked.prompt)], asked.samples)
    found: Metrics = {}
    for strength in asked.strengths or (None,):
        settings = {"steps": asked.steps, **({} if strength is None else {"strength": strength})}
        images, count, seconds = edited(asked.method, bundle, frozen, pairs, settings, seed, timed=not asked.strengths)
        measured = _finite({**_measured(asked.world, pairs, images), "evaluations": count, "seconds": seconds})
        at = "" if strength is None else f"@{strength:g}"
        found |= {f"{name}{at}": value for name, value in measured.items()}
    return found


def source(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The pictures as they are, which succeed never and keep all."""
    asked = validate(options, AnswerOptions, "options")
    pairs = edit_pairs([edit_of(asked.prompt)], asked.samples)
    return _measured(asked.world, pairs, pairs.image)


def answer(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The exact answers through the autoencoder: the most that a method on its latents can reach."""
    asked = validate(options, AnswerOptions, "options")
    bundle, params = load(asked.model)
    pairs = edit_pairs([edit_of(asked.prompt)], asked.samples)
    return _measured(asked.world, pairs, autoencoded(bundle, params["vae"], pairs.counterfactual, BATCH))


def rebuilt(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The exact answers through encoder and generator of the world's style/: the most that an edit of codes can reach.

    Raises:
        FileNotFoundError: the model has no style/.
    """
    asked = validate(options, AnswerOptions, "options")
    generator, encoder = read_style(world_directory(asked.model))
    synthesis = make_generator(generator.config).synthesis

    @jax.jit
    def view(weights: Params, image: jax.Array) -> jax.Array:
        codes = encode(encoder.config, weights["encoder"], weights["latent_avg"], image)
        return jnp.clip(synthesis(weights["generator"], codes, "const"), -1.0, 1.0)

    weights = {"generator": generator.params, "encoder": encoder.params, "latent_avg": encoder.latent_avg}
    pairs = edit_pairs([edit_of(asked.prompt)], asked.samples)
    images = in_parts(lambda chosen: view(weights, pairs.counterfactual[chosen]), len(pairs.image))
    return _measured(asked.world, pairs, images)


def scores(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """HQS, H and N of every timestep over two disjoint sets of images, and `agreement`, how alike the two rank them."""
    asked = validate(options, ScoreOptions, "options")
    bundle, params = load(asked.model)
    data, frozen = EditData(prompt=asked.prompt), frozen_of(bundle, params)
    both = [
        job_search(
            bundle, frozen, data.open(), asked.prompt,
            validate({**asked.search, "seed": 2 * seed + half}, HQSOptions, "options.search"), data.facts,
        )
        for half in (0, 1)
    ]  # fmt: skip
    found = {"agreement": rank_correlation(*(np.asarray(one.hqs) for one in both))}
    for name in ("hqs", "H", "N"):
        means = np.mean([getattr(one, name) for one in both], axis=0)
        found |= {f"{name}@{t}": float(value) for t, value in zip(both[0].t, means, strict=True)}
    return found


def _timesteps(run: Run, reading: Mapping[str, Any]) -> Metrics:
    """What SDD trained on, by the scores of the config's search under a reading, which the cache has or makes now."""
    objective, config = run.job.objective, run.job.config
    if not isinstance(objective, SDD):
        return {}
    data = edit_data(config)
    options = validate({**config.search, **reading}, HQSOptions, "config.search")
    search = job_search(objective.model, run.job.frozen, data.open(), data.prompt, options, data.facts)
    known = dict(zip(search.t, search.hqs, strict=True))
    timesteps = run.job.fingerprint["timesteps"]
    scored = [known[t] for t in timesteps if t in known]
    found = {"timesteps": float(len(timesteps)), "mean_t": float(np.mean(timesteps))}
    return {**found, "mean_hqs": float(np.mean(scored))} if scored else found


def _measured(world: str, pairs: EditPairs, images: np.ndarray) -> Metrics:
    directory = world_directory(world)
    instruments = read_instruments(directory)
    found = measures(instruments, world_scorer(directory, instruments), pairs, images)
    return {name: value for name, value in found.items() if name in COLUMNS and value is not None}


def _finite(found: Mapping[str, float]) -> Metrics:
    return {name: value for name, value in found.items() if math.isfinite(value)}
