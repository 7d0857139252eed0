"""Checks of a paper's claims, computed from rows' metrics and never written down by hand.

| check | holds when |
| --- | --- |
| `order(metric, a, (b, c), d, better="lower")` | a beats b and c, and both beat d |
| `close(metric, a, b, margin=2)` | a and b differ by no more than the margin, or with `relative` that share of b |
| `nearer(metric, a, b, to=1)` | a lies nearer to the value than b |
| `not_worse(metric, a, b, better=...)` | a beats b or lies within the seeds' spread of it |
| `beyond(metric, a, bound, better="higher")` | a is at least as good as the bound |
| `reaches(metric, a, b, share=0.8)` | a is at least that share of b, where higher is better |
| `closes(metric, a, worst, best, share=0.8)` | of the gap from worst to best, a closes that share or more |
| `gap(metric, (a, b), (c, d), better=...)` | a's lead over b exceeds c's lead over d |
| `monotone(metrics, a, better=...)` | along the list of metrics a only gets better |
| `every(check, ...)` | all of them hold |

One mean beats another only by more than the seeds' spread, sqrt(spread_a^2 + spread_b^2): a difference within it does
not hold a claim, and the evidence says so. `against=` names the metric that the other side is read at, for comparisons
along curves: `order("psnr@4", a, b, against="psnr@1", better="higher")` compares a at 4 steps with b at 1. Where rows
of one seed differ less than seeds do, `paired` compares run by run.

A claim is null where a row that it needs was not run or did not measure the metric; `settled` makes it null, too, while
a row that is planned with several seeds has only its first, whose spread of 0 any lead would exceed. A table with
another kind of claim builds a `Check(rows, decide)` of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sdd_jax.tables.types import Check, Claim, Measured, Row, Stat, Table, Verdict

Group = str | Sequence[str]


class Unmeasured(ValueError):
    """A row lacks a metric that a check reads."""


def order(metric: str, *ranking: Group, better: str, against: str = "") -> Check:
    """Every row of a group beats every row of the next one; a group is a row's name or several in a tuple."""
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in ranking]
    if len(groups) < 2:
        raise ValueError("order compares two groups of rows or more")
    _sign(better)

    def decide(measured: Measured) -> Verdict:
        parts = [
            _beats((best, read(measured, best, metric)), (rest, read(measured, rest, against or metric)), better=better)
            for ahead, behind in zip(groups[:-1], groups[1:], strict=True)
            for best in ahead
            for rest in behind
        ]
        names = metric if not against else f"{metric} against {against}"
        return _join(f"{names} ({better} is better)", parts)

    return Check(tuple(dict.fromkeys(name for group in groups for name in group)), decide)


def close(metric: str, row: str, to: str, *, margin: float, against: str = "", relative: bool = False) -> Check:
    """The two means differ by no more than `margin`, in the metric's unit, or as a share of the second."""

    def decide(measured: Measured) -> Verdict:
        one, other = read(measured, row, metric), read(measured, to, against or metric)
        apart = abs(one.mean - other.mean)
        names = metric if not against else f"{metric} against {against}"
        allowed = margin * abs(other.mean) if relative else margin
        return Verdict(
            apart <= allowed, f"{names}: {row} {one}, {to} {other}; {apart:.3g} apart, the margin is {allowed:.3g}"
        )

    return Check(tuple(dict.fromkeys((row, to))), decide)


def nearer(metric: str, row: str, other: str, *, to: float) -> Check:
    """The row's mean lies nearer to the value `to` than the other's, by more than the seeds' spread."""

    def decide(measured: Measured) -> Verdict:
        one, two = ((name, read(measured, name, metric)) for name in (row, other))
        off = [(name, found._replace(mean=abs(found.mean - to))) for name, found in (one, two)]
        return _join(f"distance of {metric} ({one[1]}, {two[1]}) from {to:g}", [_beats(*off, better="lower")])

    return Check((row, other), decide)


def not_worse(metric: str, row: str, other: str, *, better: str) -> Check:
    """The row's mean is better than the other's, or worse by no more than the seeds' spread."""
    sign = _sign(better)

    def decide(measured: Measured) -> Verdict:
        one, two = read(measured, row, metric), read(measured, other, metric)
        spread = math.hypot(one.spread, two.spread)
        shown = f"{metric} ({better} is better): {row} {one}, {other} {two}, seeds' spread {spread:.2g}"
        return Verdict(sign * (one.mean - two.mean) >= -spread, shown)

    return Check((row, other), decide)


def closes(metric: str, row: str, worst: str, best: str, *, share: float, at_most: bool = False) -> Check:
    """Of the gap from `worst` to `best` the row closes at least `share`; with `at_most`, no more than it.

    Where `best` does not beat `worst` there is no gap, and the claim does not hold.
    """

    def decide(measured: Measured) -> Verdict:
        found, low, high = (read(measured, name, metric) for name in (row, worst, best))
        gap, spread = high.mean - low.mean, math.hypot(high.spread, low.spread)
        shown = f"{metric}: {worst} {low}, {best} {high}, {row} {found}"
        if abs(gap) <= spread:
            return Verdict(False, f"{shown}; there is no gap to close (seeds' spread {spread:.2g})")
        part = (found.mean - low.mean) / gap
        holds = part <= share if at_most else part >= share
        return Verdict(holds, f"{shown}; closes {part:.0%} of the gap, asked: {'<=' if at_most else '>='} {share:.0%}")

    return Check((row, worst, best), decide)


def beyond(metric: str, row: str, bound: float, *, better: str) -> Check:
    """The row's mean is at least as good as `bound`."""
    sign = _sign(better)

    def decide(measured: Measured) -> Verdict:
        value = read(measured, row, metric)
        return Verdict(
            sign * (value.mean - bound) >= 0, f"{metric}: {row} {value}, {better} is better, the bound is {bound:g}"
        )

    return Check((row,), decide)


def reaches(metric: str, row: str, of: str, *, share: float) -> Check:
    """The row's mean is at least `share` of the mean of the row `of`, say of a ceiling; higher is better."""

    def decide(measured: Measured) -> Verdict:
        value, whole = read(measured, row, metric), read(measured, of, metric)
        bound = share * whole.mean
        return Verdict(
            value.mean >= bound, f"{metric}: {row} {value}, {of} {whole}, asked: {share:.0%} of it, {bound:.4g}"
        )

    return Check((row, of), decide)


def gap(metric: str, wide: tuple[str, str], narrow: tuple[str, str], *, better: str, against: str = "") -> Check:
    """The lead of wide[0] over wide[1] exceeds that of narrow[0] over narrow[1] by more than the seeds' spread.

    against: the metric that the narrow pair is read at, `metric` by default.
    """
    sign = _sign(better)

    def decide(measured: Measured) -> Verdict:
        pairs = [(*wide, metric), (*narrow, against or metric)]
        stats = [[read(measured, row, name) for row in (one, other)] for one, other, name in pairs]
        leads = [sign * (one.mean - other.mean) for one, other in stats]
        spread = math.hypot(*(value.spread for pair in stats for value in pair))
        shown = "; ".join(
            f"{name}: {one} leads {other} by {lead:.3g}" for (one, other, name), lead in zip(pairs, leads, strict=True)
        )
        return Verdict(leads[0] - leads[1] > spread, f"{shown} (seeds' spread {spread:.2g})")

    return Check(tuple(dict.fromkeys((*wide, *narrow))), decide)


def monotone(metrics: Sequence[str], row: str, *, better: str) -> Check:
    """Along `metrics`, as ("psnr@1", "psnr@2", "psnr@4"), the row gets better at every step."""
    sign = _sign(better)

    def decide(measured: Measured) -> Verdict:
        values = [read(measured, row, metric) for metric in metrics]
        rises = [sign * (after.mean - before.mean) > 0 for before, after in zip(values, values[1:], strict=False)]
        shown = ", ".join(f"{metric} {value}" for metric, value in zip(metrics, values, strict=True))
        return Verdict(all(rises), f"{row}: {shown} ({better} is better)")

    return Check((row,), decide)


def every(*checks: Check) -> Check:
    """All of the checks hold; the evidence is all of theirs."""

    def decide(measured: Measured) -> Verdict:
        verdicts = [check.decide(measured) for check in checks]
        return Verdict(all(verdict.holds for verdict in verdicts), "; ".join(verdict.evidence for verdict in verdicts))

    return Check(tuple(dict.fromkeys(row for check in checks for row in check.rows)), decide)


def settled(table: Table) -> Table:
    """The table with claims that wait for a second seed of every row that is planned with several.

    The seeds are the training's where it has several, else the sampling's.
    """
    least = {row.name: _least_runs(row) for row in table.rows}

    def waiting(check: Check) -> Check:
        def decide(measured: Measured) -> Verdict:
            for name in check.rows:
                if max((found.runs for found in measured[name].values()), default=0) < least[name]:
                    raise Unmeasured(f"{name} has one seed so far: nothing says what a seed does")
            return check.decide(measured)

        return Check(check.rows, decide)

    claims = tuple(dataclasses.replace(claim, check=waiting(claim.check)) for claim in table.claims)
    return dataclasses.replace(table, claims=claims)


def _least_runs(row: Row) -> int:
    trained = row.training is not None and len(row.seeds) > 1
    return 1 + len(row.sampling_seeds) if trained else min(2, len(row.sampling_seeds))


def judge(claim: Claim, measured: Measured) -> Verdict:
    """Decides a claim; `holds` is None, with the reason as evidence, where a row or a metric is not measured."""
    missing = [row for row in claim.check.rows if row not in measured]
    if missing:
        return Verdict(None, f"not run: {'; '.join(missing)}")
    try:
        return claim.check.decide(measured)
    except Unmeasured as error:
        return Verdict(None, str(error))


def read(measured: Measured, row: str, metric: str) -> Stat:
    """A row's metric; raises Unmeasured, which makes a claim null, where the row does not have it."""
    if metric not in measured[row]:
        raise Unmeasured(f"{row} did not measure {metric}")
    return measured[row][metric]


def _sign(better: str) -> int:
    if better not in ("higher", "lower"):
        raise ValueError(f"better={better!r} must be 'higher' or 'lower'")
    return 1 if better == "higher" else -1


def _beats(best: tuple[str, Stat], rest: tuple[str, Stat], *, better: str) -> Verdict:
    (name, one), (other, two) = best, rest
    lead, spread = _sign(better) * (one.mean - two.mean), math.hypot(one.spread, two.spread)
    remark = f", within the seeds' spread {spread:.2g}" if abs(lead) <= spread else ""
    return Verdict(lead > spread, f"{name} {one} {'beats' if lead > spread else 'does not beat'} {other} {two}{remark}")


def _join(head: str, parts: Sequence[Verdict]) -> Verdict:
    return Verdict(all(part.holds for part in parts), f"{head}: {'; '.join(part.evidence for part in parts)}")
