"""Editing methods measured for iCD's tables, with a run or on a teacher: (workdir, seed, options) -> metrics.

`editing` gives `evals.editing` over all pairs, success of each edit, evaluations and seconds; `editing_curve` the same
at each of `points`, as `metric@x`. Options: `EditingOptions`. The methods "source" (nothing is done) and "autoencoder"
(the answer through it) frame a table.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.config import validate
from sdd_jax.data.cache import cache_dir, renderer_hash
from sdd_jax.data.edit_pairs import EDITS
from sdd_jax.images import to_uint8, write_grid
from sdd_jax.jobs.editing.methods import METHODS, frozen_of
from sdd_jax.jobs.editing.report import FRAMES, SHOWN, Editor, Measurement, measure_pairs
from sdd_jax.jobs.icd.job import editing_model
from sdd_jax.jobs.icd.subjects import guided_scale
from sdd_jax.models.load import load
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle

BATCH = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditingOptions:
    """What is measured.

    Fields:
        method: a name of `jobs.editing`, or one that frames.
        settings: the method's own options; guidance None is `subjects.guided_scale`.
        samples: of each of the `edits`; seed s takes the s-th so many portraits that fit.
        grid: a PNG that shows the answers of seed 0 beside those of the other rows that name it; "" for none.
        model, world: the teacher where no run edits, and whose instruments measure.
    """

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: int = 8
    edits: tuple[str, ...] = EDITS
    grid: str = ""
    model: str = "portraits"
    world: str = "portraits"


def editing(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """A method's metrics over all pairs, and `success, EDIT` of each edit."""
    wanted = validate(options, EditingOptions, "options")
    found = _measured(_opened(workdir, wanted), wanted, seed)
    if wanted.grid and seed == 0:
        show(wanted, found)
    rows = found.metrics[wanted.method]
    return {**rows["all"], **{f"success, {edit}": rows[edit]["success"] for edit in wanted.edits}}


def editing_curve(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """`metric@x` at each of options["points"], {x: settings of the method that differ there}, x a number as text."""
    wanted = validate({name: value for name, value in options.items() if name != "points"}, EditingOptions, "options")
    subject = _opened(workdir, wanted)
    metrics: dict[str, float] = {}
    for x, settings in options["points"].items():
        at_x = dataclasses.replace(wanted, settings={**wanted.settings, **settings})
        found = _measured(subject, at_x, seed).metrics[wanted.method]["all"]
        metrics |= {f"{name}@{float(x):g}": value for name, value in found.items()}
    return metrics


def _opened(workdir: Path | None, wanted: EditingOptions) -> tuple[ModelBundle, Frozen]:
    if workdir is None:
        model, params = load(wanted.model)
        return model, frozen_of(model, params)
    job, trained, _ = open_run(workdir)
    return editing_model(job, trained)


def _measured(subject: tuple[ModelBundle, Frozen], wanted: EditingOptions, seed: int) -> Measurement:
    model, frozen = subject
    settings, frames = dict(wanted.settings), wanted.method in FRAMES
    if not frames and settings.get("guidance", 0) is None:
        settings["guidance"] = guided_scale(wanted.model, wanted.world)
    methods = () if frames else (wanted.method,)
    editor = Editor(model=model, frozen=frozen, methods=methods, options=settings, seed=seed, batch=BATCH)
    return measure_pairs(editor, wanted.samples, wanted.edits, wanted.world, block=seed)


def show(wanted: EditingOptions, found: Measurement) -> None:
    """Adds a method's answers to the grid at `wanted.grid`, below the sources and the exact answers.

    The answers wait in the cache, under what they answer, until all methods that were measured are drawn again.
    """
    path, pairs = Path(wanted.grid), found.pairs
    shown = np.linspace(0, len(pairs.edits) - 1, min(SHOWN, len(pairs.edits))).astype(int)
    what = f"{path.stem} {renderer_hash()} {load(wanted.model)[0].content_hash} {wanted.edits} {wanted.samples}"
    folder = cache_dir() / "edits" / hashlib.sha256(what.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    if wanted.method not in FRAMES:
        np.save(folder / f"{wanted.method}.npy", to_uint8(found.answers[wanted.method][shown]))
    rows = {"source": pairs.image[shown], "answer": pairs.counterfactual[shown]}
    rows |= {name: np.load(folder / f"{name}.npy") for name in METHODS if (folder / f"{name}.npy").is_file()}
    write_grid(path, list(rows.values()), list(rows), [pairs.edits[i].split("=")[1] for i in shown])
