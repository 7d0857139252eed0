"""Editing methods measured on the same edits of portraits, whose answers are known exactly.

Every method answers all pairs of `data.edit_pairs`, in batches. Two rows frame them: the original returned as it is,
and the counterfactual through the autoencoder, the most that a latent method can reach. Wall-clock is seconds an image,
without compilation: the clock starts after the first batch, which runs twice where it is the only one. (Real images,
whose answers are not known, are measured by `python -m sdd_jax.evaluate --protocol=editing`.)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.data.edit_pairs import EDITS, EditPairs, edit_pairs, parse_edit
from sdd_jax.evals.editing import COLUMNS, edit_metrics
from sdd_jax.evals.instruments import autoencoded
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.methods import EditRequest, EditResult, edit
from sdd_jax.jobs.editing.options import options_of
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.types import Frozen, ModelBundle

SHOWN = 10
COST = ("evaluations", "seconds")
FRAMES = ("source", "autoencoder")
_log = logging.getLogger("sdd_jax")


class Run(NamedTuple):
    """A method's answers f32[n,H,W,3], F an image, and seconds an image."""

    images: np.ndarray
    evaluations: float
    seconds: float


class Measurement(NamedTuple):
    """metrics: {row: {"all" or edit: metrics}}, rows "source", "autoencoder" and the methods; answers: f32[n,H,W,3]."""

    metrics: dict[str, dict[str, dict[str, float]]]
    pairs: EditPairs
    answers: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Editor:
    """Methods on a model. options: see `options_of`.

    kept: of each batch, what methods keep for the next run on the same pictures with other options; None: nothing.
    """

    model: ModelBundle
    frozen: Frozen
    methods: tuple[str, ...]
    options: Mapping[str, Any]
    seed: int = 0
    batch: int = 16
    kept: dict[int, dict[Any, Any]] | None = None

    def run(self, method: str, image: np.ndarray, source: Sequence[str], target: Sequence[str]) -> Run:
        """Edits all images, in batches of one size."""
        options = options_of(method, self.methods, self.options)

        def one(start: int) -> EditResult:
            rows = [row % len(image) for row in range(start, start + min(self.batch, len(image)))]
            request = EditRequest(
                model=self.model,
                frozen=self.frozen,
                image=image[rows],
                source=tuple(source[row] for row in rows),
                target=tuple(target[row] for row in rows),
                seed=self.seed,
                options=options,
                kept=None if self.kept is None else self.kept.setdefault(start, {}),
            )
            return edit(method, request)

        results = [one(0)]
        began = time.monotonic()
        timed = [one(start) for start in range(self.batch, len(image), self.batch)] or [one(0)]
        seconds = (time.monotonic() - began) / (len(timed) * min(self.batch, len(image)))
        results += timed if len(image) > self.batch else []
        images = np.concatenate([result.image for result in results])[: len(image)]
        return Run(images, float(np.mean([result.evaluations for result in results])), seconds)


def report_pairs(
    editor: Editor, out: Path, samples: int = 16, edits: Sequence[str] = EDITS, world: str = "portraits"
) -> str:
    """Measures methods on `samples` pairs of each edit; writes OUT/editing.json and .png, returns a table."""
    for one in edits:
        parse_edit(one)
    metrics, pairs, answers = measure_pairs(editor, samples, edits, world)
    shown = np.linspace(0, len(pairs.edits) - 1, min(SHOWN, len(pairs.edits))).astype(int)
    rows = {"source": pairs.image, "answer": pairs.counterfactual, **answers}
    columns = [pairs.edits[i].split("=")[1] for i in shown]
    write_grid(out / "editing.png", [images[shown] for images in rows.values()], list(rows), columns)
    content = {"model": editor.model.source, "samples": samples, "seed": editor.seed, "edits": list(edits)}
    (out / "editing.json").write_text(json.dumps({**content, "rows": metrics}, indent=2) + "\n")
    return _table({name: row["all"] for name, row in metrics.items()}, (*COLUMNS, *COST))


def measure_pairs(editor: Editor, samples: int, edits: Sequence[str], world: str, block: int = 0) -> Measurement:
    """An editor's methods on the `block`-th `samples` pairs of each edit."""
    instruments, pairs = read_instruments(world_directory(world)), edit_pairs(edits, samples, block)

    def measured(images: np.ndarray) -> dict[str, dict[str, float]]:
        found = {}
        for name in ("all", *edits):
            rows = np.flatnonzero([name in ("all", one) for one in pairs.edits])
            found[name] = edit_metrics(
                instruments, images[rows], pairs.counterfactual[rows], pairs.image[rows], pairs.attribute[rows],
                pairs.value[rows], pairs.labels[rows], pairs.mask[rows],
            )  # fmt: skip
        return found

    answer = autoencoded(editor.model, editor.frozen["vae"], pairs.counterfactual, editor.batch)
    metrics = {"source": measured(pairs.image), "autoencoder": measured(answer)}
    answers = {}
    for method in editor.methods:
        run = editor.run(method, pairs.image, pairs.source, pairs.target)
        answers[method] = run.images
        metrics[method] = measured(run.images)
        metrics[method]["all"] |= {"evaluations": run.evaluations, "seconds": run.seconds}
        _log.info("%s: %d edits, %.2f s each", method, len(pairs.edits), run.seconds)
    return Measurement(metrics, pairs, answers)


def _table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    lines = [f"| method | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, row in rows.items():
        cells = [f"{row[column]:.4g}" if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
