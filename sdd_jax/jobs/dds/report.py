"""Evaluation of a translator on held-out portraits, whose edits are known exactly: a table, `metrics.json` and a grid.

Rows: each task and all of them, and for all: the picture left as it is, and the exact answer through the autoencoder,
which no latent model can beat. Columns: those of `evals.editing`, and

| metric | better | what |
| --- | --- | --- |
| clip | higher | cosine of the output's CLIP embedding and the target caption's |
| diversity | 1 | variance within a task of the nuisance (place, size, shades) read off the outputs, over the answers' |

The time of one image is measured in one pass, and by SDEdit in 50 guided steps, in the same process; and that of the
autoencoder's two passes, which both include.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.config import validate
from sdd_jax.data.edit_pairs import EditPairs
from sdd_jax.evals.edit_cost import measure_seconds
from sdd_jax.evals.editing import COLUMNS, edit_metrics
from sdd_jax.evals.instruments import Instruments, autoencoded
from sdd_jax.evals.restoration import table
from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.dds.data import TranslationData
from sdd_jax.jobs.dds.job import editing_model, read_tasks
from sdd_jax.jobs.dds.pairs import batch_size, joined, part_of, task_pairs
from sdd_jax.jobs.editing.methods import EditRequest, decode, edit, encode
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.jobs.world.report import caption_embedder
from sdd_jax.objectives.dds import DDS
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle

BATCH = 24
SHOWN = 8
SDEDIT: dict[str, dict[str, Any]] = {"sdedit": {"steps": 50, "strength": 1.0}}
EDITORS: dict[str, dict[str, Any]] = {**SDEDIT, "pnp": {"steps": 50}}
Measure = Callable[[np.ndarray, EditPairs], dict[str, float]]
_log = logging.getLogger("sdd_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationOptions:
    """samples: held-out portraits of all tasks together. world: whose instruments measure.

    strengths: shares of the edit that are measured, too, as `metric@share`. timed: whether editors are timed beside it.
    """

    samples: int = 64
    world: str = "portraits"
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75)
    timed: bool = False


def report(workdir: Path, flags: ReportFlags) -> str:
    """Evaluates a run as `python -m sdd_jax.evaluate` asks; returns the table and the times."""
    if flags.steps or flags.guidance:
        raise ValueError("a translator takes one pass and no guidance: leave --steps and --guidance out")
    found = evaluate(workdir, flags.samples, flags.seed, world=flags.world)
    own, other = found["seconds"]["translator"], found["seconds"]["sdedit"]
    times = f"{own:.3g} s in one pass, {other:.3g} s by SDEdit in 50 guided steps, {other / own:.0f} times as long"
    return f"{table(found['rows'], (*COLUMNS, 'clip', 'diversity'))}\n\nOne image: {times}."


def evaluate(
    workdir: Path,
    samples: int,
    seed: int = 0,
    world: str = "portraits",
    editors: Mapping[str, Mapping[str, Any]] = SDEDIT,
    strengths: Sequence[float] = (),
) -> dict[str, Any]:
    """Evaluates a run; returns and writes {workdir, step, samples, seed, rows, seconds}.

    samples: held-out portraits of all tasks together. world: whose instruments measure. editors: methods of the same
    teacher, with their options, that are timed beside the translator. strengths: shares of the edit, a row of all tasks
    each.
    """
    instruments = read_instruments(world_directory(world))
    job, params, step = open_run(workdir)
    assert isinstance(job.objective, DDS)
    tasks, data = read_tasks(job.config), validate(job.config.data, TranslationData, "config.data")
    if not data.speaks_portraits:
        raise ValueError(f"--workdir={workdir} is a run on {data.path or 'captions of its own'}: evaluate measures "
                         "runs on portraits' captions")  # fmt: skip
    if samples < 2 * len(tasks):
        raise ValueError(f"--samples={samples}: evaluate takes two portraits a task or more, {2 * len(tasks)}")
    _log.info("%s, step %d, on %d held-out portraits", job.name, step, samples)
    model, frozen = editing_model(job, params)
    measure = make_measure(instruments, model, frozen)
    pairs = {name: task_pairs(task, data.only, samples // len(tasks)) for name, task in tasks.items()}
    outputs = {name: run_edits("translate", model, frozen, part, (name,), seed) for name, part in pairs.items()}
    rows = {name: measure(outputs[name], part) for name, part in pairs.items()}
    everything = joined(list(pairs.values()))
    rows["all tasks"] = measure(np.concatenate([outputs[name] for name in pairs]), everything)
    for share in strengths:
        weaker = [
            run_edits("translate", model, frozen, part, (name,), seed, {"strength": share})
            for name, part in pairs.items()
        ]
        rows[strength_row(share)] = measure(np.concatenate(weaker), everything)
    rows["source"] = measure(everything.image, everything)
    rows["answer, autoencoder"] = measure(
        autoencoded(model, frozen["vae"], everything.counterfactual, BATCH), everything
    )
    one = part_of(everything, slice(0, 1))
    seconds = {
        "translator": measure_seconds(lambda: run_edits("translate", model, frozen, one, (next(iter(tasks)),), seed)),
        "autoencoder": measure_seconds(lambda: [decode(x, encode(x)) for x in requests_of(model, frozen, one, 0, {})]),
    }
    for method, options in editors.items():
        run = functools.partial(run_edits, method, model, frozen, one, one.target, seed, options)
        seconds[method] = measure_seconds(run)
    directory = workdir / "evaluation"
    shown = {
        f"{name}{label}": images[:SHOWN]
        for name, part in pairs.items()
        for label, images in ((": source", part.image), ("", outputs[name]), (": answer", part.counterfactual))
    }
    write_grid(directory / "grid.png", list(shown.values()), list(shown))
    found = {"workdir": str(workdir), "step": step, "samples": samples, "seed": seed, "tasks": list(pairs)}
    found |= {"rows": rows, "seconds": seconds}
    known = {row: {name: value if np.isfinite(value) else None for name, value in rows[row].items()} for row in rows}
    (directory / "metrics.json").write_text(json.dumps({**found, "rows": known}, indent=2) + "\n")
    return found


def translation(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """A table's evaluation: the metrics over all tasks, success by task, and times of one image in this process.

    `seconds` is the translator's; where editors are timed, `seconds_M` is an editor M's in 50 steps, `speedup` SDEdit's
    over the translator's, and `speedup_latents` the same without the autoencoder's passes, where the clock sees a
    difference. `metric@s` is of a share s of the edit.
    """
    assert workdir is not None
    asked = validate(options, TranslationOptions, "options")
    found = evaluate(workdir, asked.samples, seed, asked.world, EDITORS if asked.timed else {}, asked.strengths)
    rows, every = found["rows"], found["rows"]["all tasks"]
    by_task = {f"success_{name}": rows[name]["success"] for name in found["tasks"]}
    along = {1.0: every, **{share: rows[strength_row(share)] for share in asked.strengths}} if asked.strengths else {}
    curve = {f"{name}@{share:g}": value for share, row in along.items() for name, value in row.items()}
    own = found["seconds"].pop("translator")
    times = {f"seconds_{name}": seconds for name, seconds in found["seconds"].items()}
    if not asked.timed:
        return finite({**every, **by_task, **curve, "seconds": own})
    slow, coding = times["seconds_sdedit"], times["seconds_autoencoder"]
    gains = {"speedup": slow / own, "speedup_latents": (slow - coding) / (own - coding) if own > coding else np.nan}
    return finite({**every, **by_task, **curve, "seconds": own, **times, **gains})


def strength_row(share: float) -> str:
    """The name of the row of a share of the edit."""
    return f"{share:g} of the edit"


def run_edits(
    method: str,
    model: ModelBundle,
    frozen: Frozen,
    pairs: EditPairs,
    target: tuple[str, ...],
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """A method's outputs f32[n,H,W,3], in batches. target: a prompt for each pair, or one for all."""
    prompts = target * len(pairs.image) if len(target) == 1 else target
    asked = requests_of(model, frozen, dataclasses.replace(pairs, target=prompts), seed, options or {})
    return np.concatenate([edit(method, request).image for request in asked])


def requests_of(
    model: ModelBundle, frozen: Frozen, pairs: EditPairs, seed: int, options: Mapping[str, Any]
) -> Iterator[EditRequest]:
    """Requests for the edits of pairs, in batches, each with a seed of its own."""
    size = batch_size(len(pairs.image), BATCH)
    for start in range(0, len(pairs.image), size):
        part = part_of(pairs, slice(start, start + size))
        yield EditRequest(
            model=model, frozen=frozen, image=part.image, source=part.source, target=part.target, seed=seed + start,
            options=options,
        )  # fmt: skip


def make_measure(instruments: Instruments, model: ModelBundle, frozen: Frozen) -> Measure:
    """Returns measure(outputs, pairs) -> the table's metrics."""
    embed = caption_embedder(model, frozen["text"], instruments.clip[1])

    def measure(outputs: np.ndarray, pairs: EditPairs) -> dict[str, float]:
        metrics = edit_metrics(
            instruments,
            outputs,
            pairs.counterfactual,
            pairs.image,
            pairs.attribute,
            pairs.value,
            pairs.labels,
            pairs.mask,
        )
        read, exact = instruments.read(outputs), instruments.read(pairs.counterfactual)
        said = embed(pairs.target)
        spread = [variance_within(x.nuisance, pairs.edits) for x in (read, exact)]
        return {
            **metrics,
            "clip": float(np.mean(np.sum(read.embedding * said, -1))),
            "diversity": spread[0] / spread[1] if spread[1] else np.nan,
        }

    return measure


def variance_within(values: np.ndarray, groups: Sequence[str]) -> float:
    """The variance of f32[n,k] within each of the groups that n samples are of, averaged over groups and columns."""
    names = np.asarray(groups)
    return float(np.mean([np.var(values[names == name], axis=0) for name in dict.fromkeys(groups)]))


MAY_LACK = ("psnr_outside", "diversity", "speedup_latents")


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers.

    None is psnr_outside where every picture changes everywhere, the diversity of one picture an edit, and a speedup
    that the clock does not see.

    Raises:
        ValueError: another one is not a number: pictures are not.
    """
    lacking = [name for name, value in metrics.items() if not np.isfinite(value)]
    broken = [name for name in lacking if name.partition("@")[0] not in MAY_LACK]
    if broken:
        raise ValueError(f"{', '.join(broken)} are not finite: an edit diverged; lower its step or guidance")
    return {name: value for name, value in metrics.items() if name not in lacking}
