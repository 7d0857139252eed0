"""What DDS claims without training, measured on portraits whose edits are known: editing curves and drift.

Each function is a table's evaluation, (None, seed, options) -> metrics. A curve's metrics are named `metric@x`, x being
what makes an edit stronger: iterations of a score method, the share of steps that SDEdit makes again, the guidance
scale. Two methods are compared where they succeed equally often (`tables.curves.at_equal`), for any method preserves
everything if it edits nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.edit_pairs import EDITS, EditPairs, parse_edit
from sdd_jax.evals.edit_cost import measure_seconds
from sdd_jax.evals.instruments import autoencoded
from sdd_jax.jobs.ccd.conditional import make_sampler
from sdd_jax.jobs.ccd.report import sample_all
from sdd_jax.jobs.dds.data import TranslationTask
from sdd_jax.jobs.dds.editing import most_parts
from sdd_jax.jobs.dds.pairs import distinct_pairs, joined, part_of, task_pairs
from sdd_jax.jobs.dds.report import BATCH, Measure, finite, make_measure, requests_of, run_edits
from sdd_jax.jobs.editing.methods import decode, edit, encode, frozen_of
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.load import load
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What is edited: `count` portraits for each of `edits`; or for each of `tasks`, words put in, of kind `only`.

    world: whose teacher edits and whose instruments measure.
    """

    edits: tuple[str, ...] = EDITS
    tasks: tuple[str, ...] = ()
    only: str = ""
    count: int = 8
    world: str = "portraits"

    def pairs(self) -> EditPairs:
        """The portraits with their answers; of edits no portrait comes twice, of tasks each has all the same ones."""
        if not self.tasks:
            return distinct_pairs(self.edits, self.count)
        return joined([task_pairs(TranslationTask(target=target), self.only, self.count) for target in self.tasks])

    def teacher(self) -> tuple[ModelBundle, Frozen]:
        """The world's model, as editing reads it."""
        model, params = load(self.world)
        return model, frozen_of(model, params)

    def measure(self, model: ModelBundle, frozen: Frozen) -> Measure:
        """The metrics of outputs, by the world's instruments."""
        return make_measure(read_instruments(world_directory(self.world)), model, frozen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodOptions(PairOptions):
    """An editing method; settings: its own options."""

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveOptions(MethodOptions):
    """vary: the method's option that takes the values `strengths`, each a run; "": a score method's iterations.

    shown: the x whose metrics are also given by their plain names, for the columns of a table.
    """

    vary: str = ""
    strengths: tuple[float, ...] = ()
    shown: float | None = None

    def __post_init__(self) -> None:
        if bool(self.vary) != bool(self.strengths):
            raise ValueError(f"vary={self.vary!r} and strengths={self.strengths}: give both or neither")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructedOptions(PairOptions):
    """steps: of sampling. guidance: the instruction's scale, two forwards a step; None for the model's own, or none."""

    steps: int = 50
    guidance: float | None = None


def editing_curve(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The metrics of an editing method along its strength, `metric@x`; options: `CurveOptions`.

    Score methods without `vary` give a point every tenth of their iterations.

    Raises:
        ValueError: options that are none, or `shown` where the curve has no point.
    """
    asked = validate(options, CurveOptions, "options")
    (model, frozen), pairs = asked.teacher(), asked.pairs()
    measure = asked.measure(model, frozen)
    if asked.vary:
        outputs = {
            float(value): run_edits(
                asked.method, model, frozen, pairs, pairs.target, seed, {**asked.settings, asked.vary: value}
            )
            for value in asked.strengths
        }
    else:
        outputs = score_path(asked.method, model, frozen, pairs, seed, asked.settings)
    curves = {x: finite(measure(images, pairs)) for x, images in outputs.items()}
    if asked.shown is not None and asked.shown not in curves:
        raise ValueError(f"shown={asked.shown:g} is no point of the curve: {', '.join(f'{x:g}' for x in curves)}")
    plain = {} if asked.shown is None else curves[asked.shown]
    return {**plain, **{f"{name}@{x:g}": value for x, metrics in curves.items() for name, value in metrics.items()}}


def score_path(
    method: str, model: ModelBundle, frozen: Frozen, pairs: EditPairs, seed: int, settings: Mapping[str, Any]
) -> dict[float, np.ndarray]:
    """A score method's pictures by the number of iterations done, f32[n,H,W,3] each."""
    iterations = int(settings.get("iterations", 200))
    frames = most_parts(iterations, int(settings.get("frames", 10)))
    parts = []
    for request in requests_of(model, frozen, pairs, seed, {**settings, "frames": frames}):
        found = edit(method, request).frames
        assert found is not None
        parts.append(found)
    path = np.concatenate(parts, axis=1)
    return {(i + 1) * iterations / frames: images for i, images in enumerate(path)}


def instructed(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The metrics of a model trained to follow instructions (`configs/finetune.py:edit`), and `seconds` for one image.

    options: `InstructedOptions`.
    """
    assert workdir is not None
    asked = validate(options, InstructedOptions, "options")
    job, params, _ = open_run(workdir)
    objective = job.objective
    assert isinstance(objective, ConditionalNetwork)
    pairs = asked.pairs()
    species = [portraits.VOCABULARY["species"][labels[0]] for labels in pairs.labels]
    words = [portraits.instruction(*parse_edit(one), kind) for one, kind in zip(pairs.edits, species, strict=True)]
    sampler = make_sampler(objective)

    def run(pairs: EditPairs, words: list[str]) -> np.ndarray:
        rows = {"image": pairs.image, "condition": pairs.image, "input_ids": objective.model.tokenize(words)}
        return sample_all(sampler, params, job.frozen, rows, asked.steps, seed, BATCH, asked.guidance)

    metrics = asked.measure(objective.model, job.frozen)(run(pairs, words), pairs)
    seconds = measure_seconds(lambda: run(part_of(pairs, slice(0, 1)), words[:1]), repeats=1)
    return finite({**metrics, "seconds": seconds})


def untouched(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The metrics of the pictures as they are, which succeeds never and keeps all; options: `PairOptions`."""
    asked = validate(options, PairOptions, "options")
    pairs = asked.pairs()
    return finite(asked.measure(*asked.teacher())(pairs.image, pairs))


def answers(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The metrics of the exact answers through the autoencoder, the most that latents allow; options: `PairOptions`."""
    asked = validate(options, PairOptions, "options")
    (model, frozen), pairs = asked.teacher(), asked.pairs()
    exact = autoencoded(model, frozen["vae"], pairs.counterfactual, BATCH)
    return finite(asked.measure(model, frozen)(exact, pairs))


def drift(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """How far a method moves pictures whose prompt is theirs already: `change@iterations`, root mean square.

    options: `MethodOptions`. Against the source through the autoencoder; exactly 0 where latents do not move.
    """
    asked = validate(options, MethodOptions, "options")
    (model, frozen), pairs = asked.teacher(), asked.pairs()
    same = dataclasses.replace(pairs, target=pairs.source)
    path = score_path(asked.method, model, frozen, same, seed, asked.settings)
    still = np.concatenate([decode(one, encode(one)) for one in requests_of(model, frozen, same, seed, {})])
    change = {x: float(np.sqrt(np.mean((images - still) ** 2))) for x, images in path.items()}
    return {**{f"change@{x:g}": value for x, value in change.items()}, "change": list(change.values())[-1]}
