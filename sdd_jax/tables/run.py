"""Runs a table: says what is to do, then trains and measures what the cache does not have, row by row.

All rows' first training seeds come first: the table fills before it refines. Every training is a process of
`python -m sdd_jax.main`, which resumes inside a run; every evaluation one of `sdd_jax.tables.measure`. Results are
written after each. A training that the runner of another table is at is waited for. A row that fails is reported, and
the others go on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdd_jax.config import to_plain
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.children import Children, Failed, locked
from sdd_jax.tables.report import write_results
from sdd_jax.tables.types import Have, Row, Table, Training

TRAIN = (sys.executable, "-m", "sdd_jax.main")
MEASURE = (sys.executable, "-m", "sdd_jax.tables.measure")
_log = logging.getLogger("sdd_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """A training to run for a row."""

    training: Training
    seed: int
    row: Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """An evaluation to make of a row."""

    row: Row
    training_seed: int | None
    sampling_seed: int


Task = Train | Measure


def tasks(rows: Sequence[Row], cache: Cache, have: Have = frozenset()) -> list[Task]:
    """Returns what is still to do for the rows, in order; a training that several rows share comes once.

    A training is left out where all its evaluations are cached, even if its workdir is gone, or in `have`.
    """
    todo: list[Task] = []
    seen: set[str] = set()
    for nth in range(max((len(row.training_seeds) for row in rows), default=0)):
        for row in rows:
            if row.not_run or nth >= len(row.training_seeds):
                continue
            seed = row.training_seeds[nth]
            open_ = [
                sampling
                for sampling in row.sampling_seeds
                if (row.name, (seed, sampling)) not in have and not cache.evaluation(row, seed, sampling)
            ]
            if open_ and row.training is not None and seed is not None:
                for training in row.training.stages:
                    key = cache.key(training, seed)
                    if key not in seen and not cache.is_trained(training, seed):
                        todo.append(Train(training=training, seed=seed, row=row))
                    seen.add(key)
            todo += [Measure(row=row, training_seed=seed, sampling_seed=sampling) for sampling in open_]
    return todo


def estimate(todo: Sequence[Task], cache: Cache, slowness: float = 1.0) -> float:
    """Returns the minutes that the tasks will take: as measured before, else as expected times `slowness`."""
    minutes = 0.0
    for task in todo:
        if isinstance(task, Train):
            left = 1 - cache.step(task.training, task.seed) / max(cache.config(task.training, task.seed).steps, 1)
            minutes += task.training.minutes * left * slowness
        else:
            done = [cache.evaluation(task.row, *seeds) for seeds in _seeds(task.row)]
            known = [record["seconds"] / 60 for record in done if record]
            minutes += sum(known) / len(known) if known else task.row.minutes * slowness
    return minutes


def slowness(table: Table, cache: Cache) -> float:
    """Measured over expected minutes of the table's finished trainings; 1 where there are none."""
    spent = expected = 0.0
    for row in table.rows:
        for seed in row.training_seeds:
            if row.training is None or seed is None or not cache.is_trained(row.training, seed):
                continue
            seconds = cache.seconds(row.training, seed)
            if seconds:
                spent, expected = spent + seconds / 60, expected + row.training.minutes
    return spent / expected if expected else 1.0


def _seeds(row: Row) -> Iterator[tuple[int | None, int]]:
    return ((training, sampling) for training in row.training_seeds for sampling in row.sampling_seeds)


def plan(table: Table, rows: Sequence[Row], cache: Cache, have: Have = frozenset()) -> str:
    """Describes what is cached and what is to do, row by row, and the time it will take.

    Raises:
        FileNotFoundError, ValueError: a config of one of the rows that does not resolve.
    """
    todo, slow = tasks(rows, cache, have), slowness(table, cache)
    lines = [f"{table.name}: {table.title} ({table.paper})"]
    for row in rows:
        if row.not_run:
            lines.append(f"  {row.slug}: not run, {row.not_run}")
            continue
        mine = tasks([row], cache, have)
        parts = []
        for task in mine:
            if isinstance(task, Train):
                step, steps = cache.step(task.training, task.seed), cache.config(task.training, task.seed).steps
                started = f" from step {step} of {steps}" if step else ""
                name = "trains" if task.training == row.training else f"first {task.training.config}"
                parts.append(f"{name} seed {task.seed}{started} ({estimate([task], cache, slow):.0f} min)")
        total = len(list(_seeds(row)))
        parts.append(f"{total - sum(isinstance(task, Measure) for task in mine)} of {total} measured")
        lines.append(f"  {row.slug}: {', '.join(parts)}")
    trainings = sum(isinstance(task, Train) for task in todo)
    counts = f"{trainings} trainings and {len(todo) - trainings} evaluations to do"
    return "\n".join([*lines, f"  {counts}, about {clock(estimate(todo, cache, slow))} (shared trainings count once)"])


def run_table(table: Table, rows: Sequence[Row], cache: Cache, out: Path, have: Have = frozenset()) -> None:
    """Trains and measures what the rows lack, but for `have`, and writes the table's results after every evaluation.

    Raises:
        Stopped: the user asked to stop; the same call goes on from there.
        ValueError: another runner is at this table, or rows failed (the rest is done and written).
    """
    lock = cache.root / f"{table.name}.lock"
    with locked(lock, f"{table.name} is being run by another process") as held, Children(held) as children:
        problems: dict[str, str] = {}
        broken: dict[str, str] = {}
        todo = tasks(rows, cache, have)
        write_results(table, cache, out, problems)
        for i, task in enumerate(todo):
            seed = (
                f"seed {task.seed}" if isinstance(task, Train) else f"seeds {task.training_seed}/{task.sampling_seed}"
            )
            what = "train" if isinstance(task, Train) else "measure"
            left = clock(estimate(todo[i:], cache, slowness(table, cache)))
            _log.info(
                "[%d/%d] %s: %s, %s; %s left", i + 1, len(todo), table.name, f"{what} {task.row.name}", seed, left
            )
            try:
                _perform(task, cache, children, broken)
            except Failed as error:
                problems.setdefault(task.row.name, str(error))
                _log.error("%s FAILED: %s (log: %s)", task.row.name, error, error.log or "see above")
            if isinstance(task, Measure) or task.row.name in problems:
                write_results(table, cache, out, problems)
        _log.info("wrote %s", out / f"{table.name}.md")
    if problems:
        shown = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
        raise ValueError(f"{len(problems)} rows of {table.name} failed: {shown}")


def _perform(task: Task, cache: Cache, children: Children, broken: dict[str, str]) -> None:
    """Runs one task; a failed training is remembered in `broken`, and what builds on it fails without running."""
    if isinstance(task, Train):
        key = cache.key(task.training, task.seed)
        try:
            _needs_are_trained(task.training, task.seed, cache, broken)
            _train(task, cache, children)
        except Failed as error:
            broken[key] = str(error)
            raise
        return
    if task.row.training is not None and task.training_seed is not None:
        key = cache.key(task.row.training, task.training_seed)
        if key in broken:
            raise Failed(broken[key])
    _measure(task, cache, children)


def _needs_are_trained(training: Training, seed: int, cache: Cache, broken: dict[str, str]) -> None:
    for needed in training.needs.values():
        key = cache.key(needed, seed)
        if key in broken:
            raise Failed(f"needs {needed.config}, which failed: {broken[key]}")


def _train(task: Train, cache: Cache, children: Children) -> None:
    training, seed = task.training, task.seed
    if to_plain(Cache(cache.root).config(training, seed)) != to_plain(cache.config(training, seed)):
        raise Failed(f"{training.config} changed while the table was running; start it again")
    workdir = cache.workdir(training, seed)
    log, lock = workdir / "train.log", workdir.with_name(f"{workdir.name}.lock")
    with locked(lock, f"{training.config} is being trained by another process", wait=children.check):
        if cache.is_trained(training, seed):
            return
        began = time.monotonic()
        try:
            children.run([*TRAIN, *cache.arguments(training, seed)], log)
        finally:
            cache.add_seconds(training, seed, time.monotonic() - began)
    if not cache.is_trained(training, seed):
        raise Failed(f"the training stopped at step {cache.step(training, seed)}", log)
    minutes = cache.seconds(training, seed) / 60
    _log.info("%s trained in %.1f min (expected %.0f)", task.row.name, minutes, training.minutes)


def _measure(task: Measure, cache: Cache, children: Children) -> None:
    row, out = task.row, cache.evaluation_path(task.row, task.training_seed, task.sampling_seed)
    arguments = [row.evaluation, f"--seed={task.sampling_seed}", f"--options={json.dumps(dict(row.options))}"]
    if row.training is not None and task.training_seed is not None:
        arguments.append(f"--workdir={cache.workdir(row.training, task.training_seed)}")
    children.run([*MEASURE, *arguments, f"--row={row.name}", f"--out={out}"], out.with_suffix(".log"))


def clock(minutes: float) -> str:
    """Minutes as h:mm."""
    return f"{round(minutes) // 60}:{round(minutes) % 60:02d} h"
