"""Checks of iCD's claims along curves, beside those of `claims`: points are metrics `metric@x` of a row.

| check | holds when |
| --- | --- |
| `rises(metric, row)` | with x the metric never falls by more than the seeds' spread, and is higher at the end |
| `exponential(metric, row)` | a straight line in x fits the metric's logarithm better than the metric |
| `undominated(x, row, ...)` | no point of the rows beats the row's at x in both of two metrics |
| `comparable(metric, row, others, ...)` | where both succeed equally often, it is no worse than most of the others |
| `settles(metric, row)` | the last stretch between points changes the metric by a small share of the whole way |
"""

from __future__ import annotations

import math

import numpy as np

from sdd_jax.tables.claims import Unmeasured
from sdd_jax.tables.curves import LEAST, curve, read_at
from sdd_jax.tables.types import Check, Measured, Stat, Verdict

Points = list[tuple[float, Stat]]


def points(measured: Measured, row: str, metric: str) -> Points:
    """(x, value) of a row's `metric@x` by x; Unmeasured for fewer than two."""
    found = [
        (float(name.partition("@")[2]), value) for name, value in measured[row].items() if name.startswith(f"{metric}@")
    ]
    if len(found) < 2:
        raise Unmeasured(f"{row} did not measure {metric} along a curve")
    return sorted(found, key=lambda point: point[0])


def rises(metric: str, row: str) -> Check:
    """With x the metric rises: no step back beyond the seeds' spread, and on the whole more than it."""

    def decide(measured: Measured) -> Verdict:
        found = points(measured, row, metric)
        values = [value for _, value in found]
        falling = any(_beats(before, after, 1) for before, after in zip(values, values[1:], strict=False))
        shown = ", ".join(f"{x:g}: {value}" for x, value in found)
        return Verdict(_beats(values[-1], values[0], 1) and not falling, f"{row}, {metric} at {shown}")

    return Check((row,), decide)


def exponential(metric: str, row: str) -> Check:
    """log(metric) is nearer to a straight line in x than the metric: R^2 of both is compared."""

    def decide(measured: Measured) -> Verdict:
        found = points(measured, row, metric)
        x, y = np.asarray([at for at, _ in found]), np.asarray([value.mean for _, value in found])
        if y.min() <= 0:
            raise Unmeasured(f"{row}: {metric} is not positive everywhere")
        curved, straight = _explained(x, np.log(y)), _explained(x, y)
        shown = f"{row}: R^2 of a line through log({metric}) {curved:.3f}, through {metric} {straight:.3f}"
        return Verdict(curved > straight, shown)

    return Check((row,), decide)


def undominated(
    x: float, row: str, others: tuple[str, ...], *, lower: str = "mse", higher: str = "attributes"
) -> Check:
    """No point of the rows is better than the row's at x in both metrics by more than the seeds' spread."""

    def decide(measured: Measured) -> Verdict:
        mine = tuple(dict(points(measured, row, metric)).get(x) for metric in (lower, higher))
        if mine[0] is None or mine[1] is None:
            raise Unmeasured(f"{row} did not measure {lower} and {higher} at {x:g}")
        better = []
        for name in dict.fromkeys((row, *others)):
            up = dict(points(measured, name, higher))
            for at, low in points(measured, name, lower):
                if at in up and _beats(low, mine[0], -1) and _beats(up[at], mine[1], 1):
                    better.append(f"{name} at {at:g} ({lower} {low}, {higher} {up[at]})")
        shown = f"{row} at {x:g}: {lower} {mine[0]}, {higher} {mine[1]}"
        return Verdict(not better, f"{shown}; better in both: {'; '.join(better) or 'none'}")

    return Check(tuple(dict.fromkeys((row, *others))), decide)


def comparable(metric: str, row: str, others: tuple[str, ...], *, margin: float, level: str = "success") -> Check:
    """The row's `metric` is no lower than another's minus `margin` where both reach one `level`, for most others.

    Read as `curves.at_equal` reads; Unmeasured where a row never reaches `curves.LEAST`. Most: more than half.
    """

    def decide(measured: Measured) -> Verdict:
        holds, shown = [], []
        for other in others:
            paths = [curve(measured, name, level, metric) for name in (row, other)]
            reached = min(max(point.level.mean for point in path) for path in paths)
            if reached < LEAST:
                raise Unmeasured(f"{row} or {other} reaches {level} {reached:.3g} at most, asked {LEAST:g}")
            one, two = (read_at(path, reached) for path in paths)
            holds.append(one.value.mean >= two.value.mean - margin)
            shown.append(
                f"{one.value.mean:.4g} at {level} {one.level.mean:.3g}, {other} {two.value.mean:.4g} at "
                f"{two.level.mean:.3g}"
            )
        return Verdict(
            sum(holds) > len(holds) / 2,
            f"{metric} of {row} within {margin:g} for {sum(holds)} of {len(holds)}: {'; '.join(shown)}",
        )

    return Check((row, *others), decide)


def settles(metric: str, row: str, *, share: float = 0.1) -> Check:
    """Between the last two points the metric changes by at most `share` of its way from the first to the last."""

    def decide(measured: Measured) -> Verdict:
        values = [value.mean for _, value in points(measured, row, metric)]
        whole, last = abs(values[-1] - values[0]), abs(values[-1] - values[-2])
        shown = ", ".join(f"{x:g}: {value}" for x, value in points(measured, row, metric))
        return Verdict(
            whole > 0 and last <= share * whole, f"{row}, {metric} at {shown}; last {last:.3g} of {whole:.3g}"
        )

    return Check((row,), decide)


def _beats(one: Stat, other: Stat, sign: int) -> bool:
    return sign * (one.mean - other.mean) > math.hypot(one.spread, other.spread)


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of the least-squares line."""
    return float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) > 0 else 1.0
