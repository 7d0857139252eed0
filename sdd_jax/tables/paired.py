"""Checks that compare rows run by run, beside those of `claims`: what holds in every seed is not the luck of one.

| check | holds when |
| --- | --- |
| `in_every_seed(metric, a, (b, c), d, better="lower")` | in each run a beats b and c, and both beat d |
| `leads_in_every_seed(metric, (a, b), (c, d), better=...)` | in each run a's lead over b exceeds c's over d |
| `closes_in_every_seed(metric, a, worst, best, share=0.7)` | in each run a closes that share of a gap |

`at_shared_seeds(table)` reads every claim, of any check, at the training seeds that its rows share.

Runs of one sampling seed read the same pictures from the same noise, and those of one training seed start from the same
weights and see the same stream: what pictures and starts differ in cancels between them, where the spread of `claims`
holds it. A row that trains nothing is read beside every training of the others. Two such runs are the least: a claim
is null below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from sdd_jax.tables.claims import Group, Unmeasured, read, settled
from sdd_jax.tables.types import Check, Claim, Measured, Stat, Table, Verdict, stat

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


def at_shared_seeds(table: Table) -> Table:
    """`settled`, with each claim read at the training seeds that all its trained rows are planned with.

    The evidence names the rows that are trained once.
    """
    claims = tuple(dataclasses.replace(claim, check=_at_shared_seeds(table, claim)) for claim in table.claims)
    return dataclasses.replace(table, claims=claims)


def _at_shared_seeds(table: Table, claim: Claim) -> Check:
    planned = {row.name: row.seeds for row in table.rows if row.training and row.name in claim.check.rows}
    shared = tuple(seed for seed in next(iter(planned.values()), ()) if all(seed in own for own in planned.values()))
    rows = tuple(dataclasses.replace(row, seeds=shared) if row.name in planned else row for row in table.rows)
    check = settled(dataclasses.replace(table, rows=rows, claims=(claim,))).claims[0].check
    once = ", ".join(name for name, seeds in planned.items() if len(seeds) == 1)

    def decide(measured: Measured) -> Verdict:
        verdict = check.decide({**measured, **{name: _of_seeds(measured[name], shared) for name in planned}})
        said = f"; of training seed {shared[0]}, the only one of {once}" if once else ""
        return verdict._replace(evidence=verdict.evidence + said)

    return Check(check.rows, decide)


def _of_seeds(metrics: Mapping[str, Stat], training: tuple[int, ...]) -> dict[str, Stat]:
    """A trained row's metrics over the runs of these training seeds; those that have none are left out."""
    kept = {name: {seeds: x for seeds, x in found.values if seeds[0] in training} for name, found in metrics.items()}
    return {name: stat(values) for name, values in kept.items() if values}


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
