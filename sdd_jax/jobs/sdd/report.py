"""Evaluation of a manipulator on held-out portraits: a table, `metrics.json`, a grid, and what training it cost.

Rows: the originals, what a style manipulator's generator makes of their codes, the manipulator's one pass, iterative
editors of the same teacher on the same images, and the exact counterfactuals through the autoencoder, which no latent
method can beat. Editors get full captions of before and after; the manipulator has only ever seen its prompt.

| column | what |
| --- | --- |
| success .. clip_distance | against counterfactuals (`evals.editing`) |
| clip_score, clip_directional, clip_image | by the world's CLIP (`evals.directional`) |
| evaluations | forwards of a UNet, F, for one image |
| seconds | of one image, compiled and warm, encoding and decoding included |

SDEdit makes .6 of its steps, as it does where nothing else is asked.

Break-even is eq. 15 of the cost model (`evals.edit_cost`), of times taken in this process, training's too
(`jobs.sdd.cost`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.data.edit_pairs import EditPairs, edit_pairs
from sdd_jax.data.prompts import edit_of
from sdd_jax.evals import directional, editing
from sdd_jax.evals.directional import TowerScorer, directional_scores
from sdd_jax.evals.edit_cost import EditCost, measure_seconds
from sdd_jax.evals.editing import edit_metrics
from sdd_jax.evals.instruments import Instruments, autoencoded
from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.editing.methods import EditRequest, edit
from sdd_jax.jobs.sdd.cost import training_cost
from sdd_jax.jobs.sdd.editing import evaluations_of
from sdd_jax.jobs.sdd.pictures import make_editor, make_viewer
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models import hub
from sdd_jax.models.load import read_component
from sdd_jax.models.text import TextConfig
from sdd_jax.models.tokenizer import load_tokenizer
from sdd_jax.objectives.clip_guidance import CLIPGuidance
from sdd_jax.objectives.manipulators import LatentManipulator, StyleManipulator
from sdd_jax.objectives.sdd import SDD
from sdd_jax.runs import open_run
from sdd_jax.train import Job
from sdd_jax.types import Frozen, ModelBundle, Params

EDITORS = {"SDEdit": "sdedit", "DDIB": "ddib"}
COLUMNS = (*editing.COLUMNS, *directional.COLUMNS, "evaluations", "seconds")
BATCH = 32
SHOWN = 8
STEPS = (50,)
_log = logging.getLogger("sdd_jax")


class Run(NamedTuple):
    """A manipulator read back. edit: what its prompt asks of portraits, "attribute=value"."""

    job: Job
    params: Params
    step: int
    edit: str
    name: str

    @property
    def manipulator(self) -> LatentManipulator | StyleManipulator:
        """What was trained."""
        return self.job.objective.manipulator  # type: ignore[attr-defined]

    @property
    def evaluations(self) -> float:
        """F of an edit."""
        return evaluations_of(self.manipulator)


def open_manipulator(workdir: Path) -> Run:
    """Reads a run of SDD or of CLIP guidance on portraits.

    Raises:
        ValueError: a run on a folder, or a prompt without counterfactuals; or as `open_run`.
    """
    job, params, step = open_run(workdir)
    assert isinstance(job.objective, SDD | CLIPGuidance)
    source = job.config.data.source
    if source != "portraits":
        raise ValueError(f"--workdir={workdir} is a run on a {source}: counterfactuals are known for portraits")
    name = "SDD" if isinstance(job.objective, SDD) else "CLIP guidance"
    return Run(job, params, step, edit_of(job.config.data.prompt), name)


def manipulated(
    run: Run, pairs: EditPairs, strengths: Sequence[float] = ()
) -> tuple[np.ndarray, float, dict[float, np.ndarray]]:
    """(edits f32[n,64,64,3] of the pairs' images, seconds for one image, edits by the share of them that is made)."""
    one_pass = make_editor(run.manipulator)

    def at(strength: float) -> np.ndarray:
        return in_parts(
            lambda chosen: one_pass(run.params, run.job.frozen, pairs.image[chosen], strength), len(pairs.image)
        )

    seconds = measure_seconds(lambda: one_pass(run.params, run.job.frozen, pairs.image[:1], 1.0))
    return at(1.0), seconds, {strength: at(strength) for strength in strengths}


def edited(
    method: str,
    model: ModelBundle,
    frozen: Frozen,
    pairs: EditPairs,
    options: Mapping[str, Any],
    seed: int,
    timed: bool = True,
) -> tuple[np.ndarray, float, float]:
    """(edits of the pairs' images by an editing method, F for one image, seconds for one image: nan if not timed)."""
    counts = []

    def once(chosen: np.ndarray) -> np.ndarray:
        source, target = (tuple(texts[i] for i in chosen) for texts in (pairs.source, pairs.target))
        request = EditRequest(
            model=model,
            frozen=frozen,
            image=pairs.image[chosen],
            source=source,
            target=target,
            seed=seed,
            options=options,
        )
        result = edit(method, request)
        counts.append(result.evaluations)
        return result.image

    images = in_parts(once, len(pairs.image))
    return images, counts[0], measure_seconds(lambda: once(np.arange(1))) if timed else math.nan


def report(workdir: Path, flags: ReportFlags) -> str:
    """Measures a run of SDD or of CLIP guidance on portraits; see the module's text.

    flags: `steps` of the editors, 50 by default; `guidance` of theirs, one scale, by default their own.

    Raises:
        ValueError: as `open_manipulator`, or too few held-out portraits.
    """
    run, world = open_manipulator(workdir), world_directory(flags.world)
    instruments = read_instruments(world)
    pairs = edit_pairs([run.edit], flags.samples)
    if len(pairs.image) < flags.samples:
        raise ValueError(f"--samples={flags.samples}: {len(pairs.image)} held-out portraits change by {run.edit}")
    _log.info("%s, step %d, on %d held-out portraits", run.job.name, run.step, flags.samples)

    model, frozen = run.manipulator.model, run.job.frozen
    images: dict[str, np.ndarray] = {"original": pairs.image}
    count: dict[str, float] = {"original": 0, "generated": 0, run.name: run.evaluations, "counterfactual": 0}
    seconds: dict[str, float] = {}
    if isinstance(run.manipulator, StyleManipulator):
        view = make_viewer(run.manipulator)
        images["generated"] = in_parts(lambda chosen: view(frozen, {"image": pairs.image[chosen]}), len(pairs.image))
    images[run.name], seconds[run.name], _ = manipulated(run, pairs)
    for steps in flags.steps or STEPS:
        options = {"steps": steps, **({"guidance": flags.guidance[0]} if flags.guidance else {})}
        for title, method in EDITORS.items():
            row = f"{title}, {steps} steps"
            images[row], count[row], seconds[row] = edited(method, model, frozen, pairs, options, flags.seed)
            _log.info("%s: %.3f s an image", row, seconds[row])
    images["counterfactual"] = autoencoded(model, frozen["vae"], pairs.counterfactual, BATCH)

    scorer = world_scorer(world, instruments)
    rows: dict[str, dict[str, float | None]] = {
        row: {
            **measures(instruments, scorer, pairs, shown), "evaluations": count[row], "seconds": seconds.get(row)
        }
        for row, shown in images.items()
    }  # fmt: skip
    trained = training_cost(run.job, run.step)
    _log.info("training: %.0f s, a step %.3f s, the search %.0f s", trained.seconds, trained.step, trained.search)
    costs = {
        row: EditCost(train=trained.seconds, manipulator=seconds[run.name], editor=spent)
        for row, spent in seconds.items()
        if row != run.name
    }
    directory = workdir / "evaluation"
    write_grid(directory / "grid.png", [shown[:SHOWN] for shown in images.values()], list(images))
    attribute, _, value = run.edit.partition("=")
    summary = {
        "workdir": str(workdir),
        "step": run.step,
        "samples": flags.samples,
        "seed": flags.seed,
        "edit": {"attribute": attribute, "value": value, "prompt": run.job.config.data.prompt},
        "timesteps": run.job.fingerprint.get("timesteps"),
        "rows": rows,
        "cost": _cost_of(costs),
    }
    (directory / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    return f"{_table(rows)}\n\n{_cost_table(costs)}"


def world_scorer(world: Path, instruments: Instruments) -> TowerScorer:
    """The CLIP of a world, with the text encoder and the tokenizer that it was trained with."""
    configs = {part: hub.read_json(world / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    configs["scheduler"] = hub.read_json(world / "scheduler" / "scheduler_config.json")
    text = read_component(world, configs, "text_encoder")
    config = TextConfig.from_json(configs["text_encoder"])
    return TowerScorer(instruments.clip, config, text, load_tokenizer(world / "tokenizer"))


def in_parts(function: Callable[[np.ndarray], Any], count: int) -> np.ndarray:
    """Applies a function of places to 0..count-1 in batches, the last filled up from the start: one program."""
    parts = []
    for start in range(0, count, BATCH):
        chosen = np.arange(start, start + min(BATCH, count)) % count
        parts.append(np.asarray(function(chosen))[: count - start])
    return np.concatenate(parts)


def measures(
    instruments: Instruments, scorer: TowerScorer, pairs: EditPairs, images: np.ndarray
) -> dict[str, float | None]:
    """Edit metrics and CLIP scores of edits f32[n,64,64,3] of the pairs' images; None for what none of them has."""
    exact = edit_metrics(
        instruments, images, pairs.counterfactual, pairs.image, pairs.attribute, pairs.value, pairs.labels, pairs.mask
    )
    found = {**exact, **directional_scores(scorer, pairs.image, images, pairs.source, pairs.target)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _cost_of(costs: Mapping[str, EditCost]) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    first = next(iter(costs.values()))
    return {
        "train": first.train,
        "manipulator": first.manipulator,
        "editors": {row: cost.editor for row, cost in costs.items()},
        "break_even": {row: finite(cost.break_even) for row, cost in costs.items()},
    }


def _table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for name, metrics in rows.items():
        cells = ["" if metrics[c] is None else f"{metrics[c]:.4g}" for c in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cost_table(costs: Mapping[str, EditCost]) -> str:
    lines = [
        "| against | training, s | one pass, s | editor, s | break-even, images |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, cost in costs.items():
        cells = (cost.train, cost.manipulator, cost.editor, cost.break_even)
        lines.append(f"| {name} | {' | '.join(f'{cell:.4g}' for cell in cells)} |")
    return "\n".join(lines)
