"""Checks of iCD's claims, beside those of `claims`, `paired` and `curves`: points are metrics `metric@x` of a row.

| check | holds when |
| --- | --- |
| `rises(metric, row)` | with x the metric never falls in every run, and is higher at the end in every run |
| `exponential(metric, row)` | a straight line in x fits the metric's logarithm better than the metric |
| `undominated(x, row, ...)` | no point of the rows beats the row's at x in both of two metrics in every run |
| `at_most_share(metric, row, of=...)` | a metric of a row is at most a share of another one of it |
"""

from __future__ import annotations

import numpy as np

from sdd_jax.tables.claims import Unmeasured, read
from sdd_jax.tables.paired import always
from sdd_jax.tables.types import Check, Measured, Stat, Verdict

Points = list[tuple[float, Stat]]


def points(measured: Measured, row: str, metric: str, least: int = 2) -> Points:
    """(x, value) of a row's `metric@x` by x; Unmeasured for fewer than `least`."""
    found = [
        (float(name.partition("@")[2]), value) for name, value in measured[row].items() if name.startswith(f"{metric}@")
    ]
    if len(found) < least:
        raise Unmeasured(f"{row} did not measure {metric} along a curve")
    return sorted(found, key=lambda point: point[0])


def rises(metric: str, row: str) -> Check:
    """With x the metric rises: no step back that every run makes, and on the whole a rise in every run."""

    def decide(measured: Measured) -> Verdict:
        found = points(measured, row, metric)
        values = [value for _, value in found]
        falling = any(always(_above, before, after) for before, after in zip(values, values[1:], strict=False))
        shown = ", ".join(f"{x:g}: {value}" for x, value in found)
        return Verdict(always(_above, values[-1], values[0]) and not falling, f"{row}, {metric} at {shown}")

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
    x: float, row: str, others: tuple[str, ...], *, lower: str = "mse", higher: str = "clip_score"
) -> Check:
    """No point of the rows is better than the row's at x in both metrics in every run."""

    def decide(measured: Measured) -> Verdict:
        mine = tuple(dict(points(measured, row, metric)).get(x) for metric in (lower, higher))
        if mine[0] is None or mine[1] is None:
            raise Unmeasured(f"{row} did not measure {lower} and {higher} at {x:g}")
        better = []
        for name in dict.fromkeys((row, *others)):
            up = dict(points(measured, name, higher, least=1))
            for at, low in points(measured, name, lower, least=1):
                if at not in up or (name, at) == (row, x):
                    continue
                if always(_above, mine[0], low) and always(_above, up[at], mine[1]):
                    better.append(f"{name} at {at:g} ({lower} {low}, {higher} {up[at]})")
        shown = f"{row} at {x:g}: {lower} {mine[0]}, {higher} {mine[1]}"
        return Verdict(not better, f"{shown}; better in both: {'; '.join(better) or 'none'}")

    return Check(tuple(dict.fromkeys((row, *others))), decide)


def at_most_share(metric: str, row: str, *, of: str, share: float) -> Check:
    """A row's metric is at most `share` of another metric of it."""

    def decide(measured: Measured) -> Verdict:
        one, whole = read(measured, row, metric), read(measured, row, of)
        part = one.mean / whole.mean
        return Verdict(part <= share, f"{row}: {metric} {one}, {of} {whole}: {part:.3g} of it, asked {share:g} or less")

    return Check((row,), decide)


def _above(one: float, other: float) -> bool:
    return one > other


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of the least-squares line."""
    return float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) > 0 else 1.0
