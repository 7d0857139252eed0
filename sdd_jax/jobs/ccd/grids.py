"""Grids of held-out portraits: the condition, outputs and the truth below what each column was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.conditions import edge_image
from sdd_jax.images import to_uint8, write_grid
from sdd_jax.jobs.ccd.conditional import condition_images
from sdd_jax.jobs.ccd.heldout import NAMES, Heldout, Rows

SHOWN = 8
NAMED = ("species", "expression", "accessory")
"""Of a prompt that names every attribute, those above a column."""


def show(heldout: Heldout, outputs: Rows, path: Path) -> None:
    """Writes a grid of the first portraits: condition, outputs, truth; of edges, those of the model's last row too."""
    shown: Rows = {}
    if "condition" in heldout.rows:
        shown["condition"] = condition_images(heldout.rows["condition"])
    if heldout.condition.task == "superres":
        shown = {"degraded": heldout.rows["condition"][:, 2::4, 2::4].repeat(4, 1).repeat(4, 2)}
    for name, images in outputs.items():
        shown[name] = images
        if heldout.condition.task == "canny" and name == _last_of_the_model(heldout, outputs):
            shown["its edges"] = _edges(images[:SHOWN], heldout.condition.thresholds)
    shown["truth"] = heldout.rows["image"]
    write_grid(path, [images[:SHOWN] for images in shown.values()], list(shown), asked(heldout))


def asked(heldout: Heldout) -> list[str]:
    """What each column's prompt asks for, in lines that fit above it; [] where the condition says it."""
    if heldout.condition.task == "edit":
        return [f"{edit.attribute}=\n{edit.new}" for edit in heldout.edits[:SHOWN]]
    if heldout.condition.task == "none":
        wanted = [portraits.portrait(int(index)).attributes for index in heldout.rows["index"][:SHOWN]]
        return ["\n".join(getattr(attributes, name) for name in NAMED) for attributes in wanted]
    return []


def _last_of_the_model(heldout: Heldout, outputs: Rows) -> str:
    return [name for name in outputs if name.startswith(NAMES[heldout.job.config.task])][-1]


def _edges(images: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    return np.stack([edge_image(image, (thresholds[0], thresholds[1])) for image in to_uint8(images)])
