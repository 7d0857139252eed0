"""What a paper's table is made of: rows that train and measure, claims over their metrics, plots.

A `Training` names a config; a `Row` is one line of the table: a training (or none, for a model that needs none) and an
evaluation of it; a `Claim` is a sentence of the paper and a check that decides it from the rows' metrics. All of it is
data: nothing here trains, and `run` decides what is cached and what is still to do.

An evaluation is any function

    evaluation(workdir: Path | None, seed: int, options: Mapping) -> {metric: float}

of the training's workdir (None where the row trains nothing), the sampling seed and the row's options. A metric that is
measured along an axis (numbers of sampling steps, guidance scales) is returned as one entry a point, named `metric@x`:
`{"psnr@1": 21.3, "psnr@4": 24.0}`; plots are drawn over x.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A training run that rows measure, or that other trainings start from.

    Two trainings with the same resolved config, weights, needs and revision are one: it runs once, whoever asks.

    Fields:
        config: "configs/NAME.py:variant".
        overrides: "dotted.key=value", as after `--config.` on the command line; `seed` is set by the row.
        needs: {config key: the training whose workdir is put there}, as {"teacher.workdir": FINETUNED}; it runs first,
            with the same seed.
        revision: raise it when the method's code changes what it computes, so that older runs are not taken for it.
        minutes: expected time of one run on two CPU cores, until it has been measured.
    """

    config: str
    overrides: tuple[str, ...] = ()
    needs: Mapping[str, Training] = dataclasses.field(default_factory=dict)
    revision: int = 1
    minutes: float = 15.0

    @property
    def stages(self) -> tuple[Training, ...]:
        """All trainings that this one needs, in the order in which they run, and itself."""
        return (*(stage for needed in self.needs.values() for stage in needed.stages), self)

    def __str__(self) -> str:
        """The command line that runs it, without `python -m sdd_jax.main --config=`, workdir and seed."""
        words = [self.config, *(f"--config.{override}" for override in self.overrides)]
        words += [f"--config.{key}=[{training}]" for key, training in self.needs.items()]
        return " ".join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Fields:
        name: as the paper calls it, with what distinguishes it ("CCD, 4 steps"); unique in the table.
        training: what is measured; None for a row of the untrained teacher or of no model.
        seeds, sampling_seeds: of training and of the evaluation; every pair of them is measured.
        evaluation: "module:function"; options: its options, which JSON can hold; revision: as `Training.revision`.
        minutes: expected time of one evaluation.
        not_run: why the row is never run here (external method, missing weights); such a row has no evaluation.
        note: what a reader of the table should know.
    """

    name: str
    training: Training | None = None
    seeds: tuple[int, ...] = (0,)
    sampling_seeds: tuple[int, ...] = (0, 1)
    evaluation: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    revision: int = 1
    minutes: float = 1.0
    not_run: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if bool(self.not_run) == bool(self.evaluation):
            raise ValueError(f"row {self.name!r} needs either an evaluation or a reason in not_run")
        if self.evaluation and not (self.seeds and self.sampling_seeds and ":" in self.evaluation):
            raise ValueError(f"row {self.name!r} needs seeds and an evaluation as 'module:function'")

    @property
    def training_seeds(self) -> tuple[int | None, ...]:
        """The training seeds; one None where nothing is trained."""
        return (None,) if self.training is None else self.seeds

    @property
    def slug(self) -> str:
        """The name as a command line takes it: "CCD, 4 steps" is ccd-4-steps."""
        return re.sub(r"[^a-z0-9.+]+", "-", self.name.lower()).strip("-")

    @property
    def config(self) -> str:
        """What the row is made with, as one string: the training's command line and the evaluation's options."""
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        parts = [str(self.training)] if self.training else []
        return "; ".join([*parts, *([f"evaluation {options}"] if options else [])])


Seeds = tuple[int | None, int]
Have = AbstractSet[tuple[str, Seeds]]
"""Evaluations of a table that are there: (row's name, seeds)."""


class Stat(NamedTuple):
    """A metric over seeds: its mean, its spread, how many runs measured it, and what each of them did.

    The spread is the sample standard deviation between training seeds (each averaged over its sampling seeds), or
    between sampling seeds where there is one training; 0 for a single value. values: by (training seed, sampling seed).
    """

    mean: float
    spread: float
    runs: int
    values: tuple[tuple[Seeds, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.runs < 2 else f"{self.mean:.4g} ± {self.spread:.2g}"


Measured = Mapping[str, Mapping[str, Stat]]


class Verdict(NamedTuple):
    """Whether a claim holds (None: it cannot be decided), and the figures that say so."""

    holds: bool | None
    evidence: str


@dataclasses.dataclass(frozen=True)
class Check:
    """Decides a claim: the rows it needs, and a function of measured rows -> {metric: Stat}."""

    rows: tuple[str, ...]
    decide: Callable[[Measured], Verdict]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper (or of an issue) and the check that decides it; see `claims` for checks."""

    text: str
    check: Check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A metric that the Markdown table shows; the JSON has all. better: "higher", "lower" or "" for neither."""

    metric: str
    title: str = ""
    better: str = ""

    def __str__(self) -> str:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[self.better]
        return f"{self.title or self.metric}{arrow}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure `TABLE-NAME.png`: one line a row and metric through its points `metric@x`.

    Fields:
        metric: what is drawn upwards; more: other metrics in the same unit, drawn beside it.
        label: what x is ("sampling steps").
        against: another metric measured at the same x, drawn to the right instead of x itself (a trade-off curve); a
            row without '@' metrics is a single point in it.
        rows: which rows, all by default. log: logarithmic x.
    """

    name: str
    metric: str
    more: tuple[str, ...] = ()
    label: str = "sampling steps"
    against: str = ""
    rows: tuple[str, ...] = ()
    log: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A paper's table or figure. `paper` says which; `note` what differs here (the world, the sizes, the budget)."""

    name: str
    title: str
    paper: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    columns: tuple[Column, ...] = ()
    plots: tuple[Plot, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        names, slugs = [row.name for row in self.rows], [row.slug for row in self.rows]
        for name, slug in zip(names, slugs, strict=True):
            if slugs.count(slug) > 1:
                raise ValueError(f"table {self.name!r} has two rows {name!r}")
        used = [(f"claim {claim.text!r}", claim.check.rows) for claim in self.claims]
        used += [(f"plot {plot.name!r}", plot.rows) for plot in self.plots]
        for user, rows in used:
            unknown = [name for name in rows if name not in names]
            if unknown:
                raise ValueError(f"table {self.name!r}: {user} needs the row {unknown[0]!r}, which is not there")

    def select(self, patterns: Sequence[str]) -> tuple[Row, ...]:
        """The rows whose slug matches one of the patterns (`ccd-*`), all for none; ValueError for one without match."""
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(row.slug, pattern) for row in self.rows):
                known = ", ".join(row.slug for row in self.rows)
                raise ValueError(f"--rows={pattern}: {self.name} has no such row; rows: {known}")
        return tuple(
            row for row in self.rows if not patterns or any(fnmatch.fnmatchcase(row.slug, p) for p in patterns)
        )


def stat(values: Mapping[Seeds, float]) -> Stat:
    """Returns a metric's `Stat` from its values by (training seed, sampling seed)."""
    by_training: dict[int | None, list[float]] = {}
    for (training, _), value in values.items():
        by_training.setdefault(training, []).append(value)
    means = [math.fsum(group) / len(group) for group in by_training.values()]
    spread = _deviation(means if len(means) > 1 else next(iter(by_training.values())))
    return Stat(math.fsum(means) / len(means), spread, len(values), tuple(values.items()))


def _deviation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
