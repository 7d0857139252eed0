"""Checks along curves `metric@x`, where x makes a method stronger: editors compared where they succeed equally often.

An editor that changes nothing keeps everything, so fidelity says nothing without success beside it. `at_equal` reads
both rows at one level of success, the lower one of their highest, each on straight lines between its own points; where
a path meets the level more than once, each row counts at its best. A row without points `@x` is a single point, read as
it is. The evidence says at which level each row was read, for a curve that starts above it, or a single point, cannot
be read lower. `comparable` reads so too, for "no worse than most others".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from sdd_jax.tables.claims import Unmeasured, read
from sdd_jax.tables.types import Check, Measured, Stat, Verdict

LEAST, APART = 0.1, 0.05
GIVEN_BACK = 0.1


class Point(NamedTuple):
    """Of a row at some x: the level it reaches and the metric there."""

    level: Stat
    value: Stat


def at_equal(metric: str, best: str, rest: str, *, better: str, level: str = "success") -> Check:
    """`best` beats `rest` in `metric`, by more than the seeds' spread, where both reach the same `level`.

    The claim is null where one of them never reaches `LEAST`, and where the one that is ahead could only be read at a
    level lower than the other's by more than `APART`.
    """
    sign = {"higher": 1, "lower": -1}[better]

    def decide(measured: Measured) -> Verdict:
        one, other, shown = read_equal(measured, metric, best, rest, level=level, sign=sign)
        lead, spread = sign * (one.value.mean - other.value.mean), math.hypot(one.value.spread, other.value.spread)
        return Verdict(lead > spread, f"{metric} ({better} is better): {shown}; seeds' spread {spread:.2g}")

    return Check((best, rest), decide)


def comparable(metric: str, row: str, others: tuple[str, ...], *, margin: float, level: str = "success") -> Check:
    """The row's `metric` (higher is better) is within `margin` of another's, or above it, for most others.

    Both are read as `at_equal` reads them, and a pair that it could not compare decides nothing: null where the others
    leave it open. Most: more than half.
    """

    def decide(measured: Measured) -> Verdict:
        holds, shown, left = 0, [], 0
        for other in others:
            try:
                one, two, pair = read_equal(measured, metric, row, other, level=level, sign=1, margin=margin)
            except Unmeasured as reason:
                left += 1
                shown.append(f"not compared: {reason}")
                continue
            holds += one.value.mean >= two.value.mean - margin
            shown.append(pair)
        evidence = f"{metric} of {row} within {margin:g} for {holds} of {len(others)}: {'; '.join(shown)}"
        if holds <= len(others) / 2 < holds + left:
            raise Unmeasured(evidence)
        return Verdict(holds > len(others) / 2, evidence)

    return Check((row, *others), decide)


def read_equal(
    measured: Measured, metric: str, row: str, other: str, *, level: str, sign: int, margin: float = 0.0
) -> tuple[Point, Point, str]:
    """Two rows where both reach the same level, and the figures in words; margin: what the row is given.

    Raises:
        Unmeasured: a row never reaches `LEAST`; the one that is ahead, with the margin, does less by more than `APART`.
    """
    curves = [curve(measured, name, level, metric) for name in (row, other)]
    highest = [max(point.level.mean for point in points) for points in curves]
    if min(highest) < LEAST:
        low = (row, other)[highest.index(min(highest))]
        raise Unmeasured(f"{low} reaches {level} {min(highest):.3g} at most, asked {LEAST:g}: nothing to compare")
    one, two = (read_at(points, min(highest), sign) for points in curves)
    shown = ", ".join(
        f"{name} {point.value.mean:.4g} at {level} {point.level.mean:.3g}" for name, point in ((row, one), (other, two))
    )
    ahead, behind = (one, two) if sign * (one.value.mean - two.value.mean) + margin >= 0 else (two, one)
    if behind.level.mean - ahead.level.mean > APART:
        raise Unmeasured(f"{metric}: {shown}: ahead where it does less, so that nothing is compared")
    return one, two, shown


def levels_off(metric: str, row: str, first: str, middle: str, last: str) -> Check:
    """Along x the row's metric rises from `first` to `middle`, by more than from `middle` to `last`, and stays up.

    It may fall again by the seeds' spread, or by `GIVEN_BACK` of its rise.
    """

    def decide(measured: Measured) -> Verdict:
        a, b, c = (read(measured, row, f"{metric}@{x}") for x in (first, middle, last))
        early, late, spread = b.mean - a.mean, c.mean - b.mean, math.hypot(a.spread, b.spread, c.spread)
        return Verdict(
            early > spread and early - late > spread and late >= -max(spread, GIVEN_BACK * early),
            f"{row}: {metric} {a} at {first}, {b} at {middle}, {c} at {last}; seeds' spread {spread:.2g}",
        )

    return Check((row,), decide)


def curve(measured: Measured, row: str, level: str, metric: str) -> list[Point]:
    """A row's points in the order of x; a row without any is one point. Raises Unmeasured where it has neither."""
    stats = measured[row]
    xs = [name.partition("@")[2] for name in stats if name.startswith(f"{level}@")]
    found = sorted((x for x in xs if f"{metric}@{x}" in stats), key=float)
    if not found:
        return [Point(read(measured, row, level), read(measured, row, metric))]
    return [Point(stats[f"{level}@{x}"], stats[f"{metric}@{x}"]) for x in found]


def read_at(points: Sequence[Point], level: float, sign: int = 1) -> Point:
    """The best value (the largest, or with sign -1 the least) on a path at a level; off it, of its nearest points."""
    met = [point for point in points if point.level.mean == level]
    for a, b in itertools.pairwise(points):
        if (a.level.mean - level) * (b.level.mean - level) < 0:
            share = (level - a.level.mean) / (b.level.mean - a.level.mean)
            value = a.value.mean + share * (b.value.mean - a.value.mean)
            spread, runs = max(a.value.spread, b.value.spread), min(a.value.runs, b.value.runs)
            met.append(Point(Stat(level, 0.0, runs), Stat(value, spread, runs)))
    if not met:
        nearest = min(abs(point.level.mean - level) for point in points)
        met = [point for point in points if abs(point.level.mean - level) == nearest]
    return max(met, key=lambda point: sign * point.value.mean)
