"""Plots of a table: a metric against sampling steps (or any x of `metric@x`), or against another metric."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdd_jax.tables.types import Measured, Plot, Stat

Point = tuple[float, Stat]


def curve(plot: Plot, stats: dict[str, Stat]) -> list[Point]:
    """A row's points (x, value), in the order of '@' values; x is the metric `against` where the plot has one.

    A row without '@' values is a single point, where x is a metric; without those of x, too.
    """
    points = []
    varied = any(name.startswith(f"{plot.against or plot.metric}@") for name in stats)
    for name, value in stats.items():
        metric, at, x = name.partition("@")
        if metric != plot.metric or (not at and (varied or not plot.against)):
            continue
        order = float(x) if at else 0.0
        if not plot.against:
            points.append((order, order, value))
        elif f"{plot.against}{at}{x}" in stats:
            points.append((order, stats[f"{plot.against}{at}{x}"].mean, value))
    return [(x, value) for _, x, value in sorted(points, key=lambda point: point[0])]


def curves(plot: Plot, measured: Measured) -> dict[str, list[Point]]:
    """The lines of a figure by their names: a row's, with the metric where there are several; without empty ones."""
    found = {
        f"{row}, {metric}" if plot.more else row: curve(dataclasses.replace(plot, metric=metric), dict(stats))
        for row, stats in measured.items()
        if not plot.rows or row in plot.rows
        for metric in (plot.metric, *plot.more)
    }
    return {name: points for name, points in found.items() if points}


def draw(plot: Plot, measured: Measured, path: Path) -> bool:
    """Writes the figure; returns False, and writes none, where no row has anything to draw."""
    rows = curves(plot, measured)
    if not rows:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(rows.items()):
        x, y, spread = zip(*((x, value.mean, value.spread) for x, value in points), strict=True)
        axes.errorbar(x, y, yerr=spread, label=name, marker="osD^vP*X"[i % 8], markersize=4, capsize=2, linewidth=1.2)
    if plot.log:
        ticks = sorted({x for points in rows.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(plot.against or plot.label)
    axes.set_ylabel(plot.name if plot.more else plot.metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
    partial.rename(path)
    return True
