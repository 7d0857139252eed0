"""Editing methods measured for iCD's tables, with a run or on a teacher: (workdir, seed, options) -> metrics.

`editing` gives `evals.editing` over all pairs, success of each edit, evaluations and seconds; `editing_curve` the same,
without seconds, at each of `points`, as `metric@x`. Options: `EditingOptions`. The methods "source" (nothing is done)
and "autoencoder" (the answer through it) frame a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.config import validate
from sdd_jax.data.edit_pairs import EDITS, EditPairs
from sdd_jax.jobs.editing.methods import EditRequest, edit, frozen_of
from sdd_jax.jobs.editing.report import FRAMES, Editor, measure_pairs
from sdd_jax.jobs.icd.job import editing_model
from sdd_jax.models.load import load
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle

BATCH = 12
Opened = tuple[ModelBundle, Frozen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditingOptions:
    """What is measured.

    Fields:
        method: a name of `jobs.editing`, or one that frames.
        settings: the method's own options.
        samples: of each of the `edits`; seed s takes the s-th so many portraits that fit.
        model, world: the teacher where no run edits, and whose instruments measure.
    """

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: int = 8
    edits: tuple[str, ...] = EDITS
    model: str = "portraits"
    world: str = "portraits"


def editing(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """A method's metrics over all pairs, and `success, EDIT` of each edit."""
    wanted = validate(options, EditingOptions, "options")
    rows = _measured(_opened(workdir, wanted), wanted, seed)
    return {**rows["all"], **{f"success, {edit}": rows[edit]["success"] for edit in wanted.edits}}


def editing_curve(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """`metric@x` at each of options["points"], {x: settings of the method that differ there}, x a number as text.

    A method makes once what no setting changes (`EditRequest.kept`): its evaluations are counted as if it were made at
    every point, seconds would not tell.
    """
    wanted = validate({name: value for name, value in options.items() if name != "points"}, EditingOptions, "options")
    subject = _opened(workdir, wanted)
    kept: dict[int, dict[Any, Any]] = {}
    metrics: dict[str, float] = {}
    for x, settings in options["points"].items():
        at_x = dataclasses.replace(wanted, settings={**wanted.settings, **settings})
        found = _measured(subject, at_x, seed, kept)["all"]
        metrics |= {f"{name}@{float(x):g}": value for name, value in found.items() if name != "seconds"}
    return metrics


def answers(workdir: Path | None, seed: int, options: Mapping[str, Any], pairs: EditPairs) -> np.ndarray:
    """A method's pictures f32[n,64,64,3] of given pairs, with options as for `editing`."""
    wanted = validate(options, EditingOptions, "options")
    model, frozen = _opened(workdir, wanted)
    request = EditRequest(
        model=model, frozen=frozen, image=pairs.image, source=pairs.source, target=pairs.target, seed=seed,
        options=dict(wanted.settings),
    )  # fmt: skip
    return edit(wanted.method, request).image


def _opened(workdir: Path | None, wanted: EditingOptions) -> Opened:
    if workdir is None:
        model, params = load(wanted.model)
        return model, frozen_of(model, params)
    job, trained, _ = open_run(workdir)
    return editing_model(job, trained)


def _measured(
    subject: Opened, wanted: EditingOptions, seed: int, kept: dict[int, dict[Any, Any]] | None = None
) -> dict[str, dict[str, float]]:
    model, frozen = subject
    methods = () if wanted.method in FRAMES else (wanted.method,)
    editor = Editor(
        model=model, frozen=frozen, methods=methods, options=wanted.settings, seed=seed, batch=BATCH, kept=kept
    )
    return measure_pairs(editor, wanted.samples, wanted.edits, wanted.world, block=seed).metrics[wanted.method]
