"""The picture of a search: HQS with standard errors and the selected timesteps, H, N, gradients as thumbnails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdd_jax.jobs.sdd.hqs import Search

IN_A_ROW = 12
"""Thumbnails, at most; longer grids take several rows."""


def plot_search(path: Path, search: Search, maps: np.ndarray) -> None:
    """Writes the picture as a PNG, atomically. maps: mean |d| at each timestep, f32[m,s,s]."""
    rows = -(-len(search.t) // IN_A_ROW)
    thumbnails = 0.7 + 1.2 * rows
    figure = Figure(figsize=(10, 6.2 + thumbnails), layout="constrained")
    FigureCanvasAgg(figure)
    above = figure.add_gridspec(2, 1, height_ratios=(6.2, thumbnails))
    top, bottom = (figure.add_subfigure(above[i]) for i in (0, 1))
    axes = top.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    t, hqs = np.asarray(search.t), np.asarray(search.hqs)
    chosen = np.isin(t, search.selected)
    axes[0].errorbar(t, hqs, yerr=search.stderr, color="0.4", marker="o", markersize=3, capsize=2)
    axes[0].plot(t[chosen], hqs[chosen], "o", color="tab:red", label=f"selected by {search.rule}")
    if search.rule.startswith("threshold"):
        axes[0].axhline(float(search.rule.partition(":")[2]), color="tab:red", linewidth=0.8, linestyle="--")
    axes[0].set_ylabel("HQS")
    axes[0].legend(loc="best", frameon=False)
    axes[0].set_title(f"{search.prompt!r}, {search.model}, {search.options['images']} images", fontsize=10)
    axes[1].plot(t, search.H, marker="o", markersize=3, color="tab:blue")
    axes[1].set_ylabel("entropy H, nats")
    axes[2].plot(t, search.N, marker="o", markersize=3, color="tab:green")
    axes[2].set_ylabel("magnitude N")
    axes[2].set_xlabel("timestep t")
    for axis in axes:
        axis.grid(alpha=0.3)
    pictures = bottom.subplots(rows, -(-len(t) // rows), squeeze=False).ravel()
    for axis in pictures:
        axis.set_axis_off()
    for axis, timestep, selected, shown in zip(pictures, t, chosen, maps, strict=False):
        axis.imshow(shown, cmap="magma", vmax=np.quantile(shown, 0.995))
        axis.set_title(f"t = {timestep}", fontsize=8, color="tab:red" if selected else "black")
    bottom.suptitle("|d| of one image, each timestep on its own scale", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.rename(path)
