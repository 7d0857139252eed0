"""Checks that compare rows run by run, beside those of `claims`: what holds in every seed is not the luck of one.

| check | holds when |
| --- | --- |
| `in_every_seed(metric, a, (b, c), d, better="lower")` | in each run a beats b and c, and both beat d |
| `leads_in_every_seed(metric, (a, b), (c, d), better=...)` | in each run a's lead over b exceeds c's over d |
| `closes_in_every_seed(metric, a, worst, best, share=0.7)` | in each run a closes that share of a gap |

Runs of one sampling seed read the same pictures from the same noise, and those of one training seed start from the same
weights and see the same stream: what pictures and starts differ in cancels between them, where the spread of `claims`
holds it. A row that trains nothing is read beside every training of the others. Two such runs are the least: a claim
is null below.
"""

from __future__ import annotations

from collections.abc import Callable

from sdd_jax.tables.claims import Group, Unmeasured, read
from sdd_jax.tables.types import Check, Measured, Stat, Verdict

LEAST = 2
_SIGN = {"higher": 1, "lower": -1}


def in_every_seed(metric: str, *ranking: Group, better: str, against: str = "") -> Check:
    """In every run each row of a group beats each row of the next one; groups and `against` as of `claims.order`."""
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in ranking]
    if len(groups) < 2:
        raise ValueError("in_every_seed compares two groups of rows or more")
    sign = _SIGN[better]
    names = metric if not against else f"{metric} against {against}"

    def decide(measured: Measured) -> Verdict:
        holds, shown = True, []
        for ahead, behind in zip(groups[:-1], groups[1:], strict=True):
            for best in ahead:
                for rest in behind:
                    one, two = read(measured, best, metric), read(measured, rest, against or metric)
                    won, runs = _count(lambda a, b: sign * (a - b) > 0, one, two)
                    holds &= won == runs
                    shown.append(f"{best} {one} beats {rest} {two} in {won} of {runs} runs")
        return Verdict(holds, f"{names} ({better} is better): {'; '.join(shown)}")

    return Check(tuple(dict.fromkeys(name for group in groups for name in group)), decide)


def leads_in_every_seed(metric: str, wide: tuple[str, str], narrow: tuple[str, str], *, better: str) -> Check:
    """In every run the lead of wide[0] over wide[1] exceeds that of narrow[0] over narrow[1]."""
    sign = _SIGN[better]

    def decide(measured: Measured) -> Verdict:
        stats = [read(measured, row, metric) for row in (*wide, *narrow)]
        won, runs = _count(lambda a, b, c, d: sign * (a - b) > sign * (c - d), *stats)
        leads = (sign * (one.mean - other.mean) for one, other in (stats[:2], stats[2:]))
        shown = ", ".join(
            f"{one} leads {other} by {lead:.3g}" for (one, other), lead in zip((wide, narrow), leads, strict=True)
        )
        return Verdict(won == runs, f"{metric}: {shown}; by more in {won} of {runs} runs")

    return Check(tuple(dict.fromkeys((*wide, *narrow))), decide)


def closes_in_every_seed(
    metric: str, row: str, worst: str, best: str, *, share: float, better: str, against: str = ""
) -> Check:
    """In every run `best` beats `worst` and the row closes at least `share` of what lies between them.

    against: the metric that these two are read at, `metric` by default.
    """
    sign = _SIGN[better]

    def decide(measured: Measured) -> Verdict:
        found, low, high = read(measured, row, metric), *(read(measured, n, against or metric) for n in (worst, best))
        won, runs = _count(lambda a, b, c: sign * (a - b) >= share * sign * (c - b) > 0, found, low, high)
        shown = f"{metric}: {worst} {low}, {best} {high}, {row} {found}"
        return Verdict(won == runs, f"{shown}; closes {share:.0%} of a gap in {won} of {runs} runs")

    return Check((row, worst, best), decide)


def always(holds: Callable[..., bool], *stats: Stat) -> bool:
    """Whether `holds` of the metrics' values in every run that all of them have; Unmeasured below `LEAST` runs."""
    won, runs = _count(holds, *stats)
    return won == runs


def aligned(*stats: Stat) -> list[tuple[float, ...]]:
    """Metrics' values in the runs that all of them have, a row that trains nothing beside every training."""
    tables = [dict(stat.values) for stat in stats]
    seeds = dict.fromkeys(key for table in tables for key in table)
    if any(training is not None for training, _ in seeds):
        seeds = dict.fromkeys(key for key in seeds if key[0] is not None)
    rows = ([table.get((training, seed), table.get((None, seed))) for table in tables] for training, seed in seeds)
    return [tuple(value for value in row if value is not None) for row in rows if None not in row]


def _count(holds: Callable[..., bool], *stats: Stat) -> tuple[int, int]:
    runs = aligned(*stats)
    if len(runs) < LEAST:
        raise Unmeasured(f"{len(runs)} runs of the same seeds, asked {LEAST}")
    return sum(bool(holds(*values)) for values in runs), len(runs)
