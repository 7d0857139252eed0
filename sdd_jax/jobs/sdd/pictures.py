"""Pictures of a manipulator: its one pass as a function of images, what codes look like unedited, and previews."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data.edit_pairs import edit_pairs
from sdd_jax.data.prompts import edit_of
from sdd_jax.images import write_grid
from sdd_jax.jobs.sdd.data import EditData, Parts
from sdd_jax.objectives.manipulators import Manipulator
from sdd_jax.train import Previews
from sdd_jax.types import Frozen, Params

PREVIEW = 8
_log = logging.getLogger("sdd_jax")

Array = jax.Array | np.ndarray
Editor = Callable[..., jax.Array]


def make_editor(manipulator: Manipulator) -> Editor:
    """Returns edit(params, frozen, image f32[b,H,W,3], strength=1) -> edited f32[b,H,W,3] in [-1, 1], in one pass.

    strength: the share s of the edit that is made, code + s (code' - code); one program for all.
    """
    edit = _batch_editor(manipulator)

    def editor(params: Params, frozen: Frozen, image: Array, strength: float = 1.0) -> jax.Array:
        return edit(params, frozen, {"image": jnp.asarray(image)}, strength)

    return editor


def make_viewer(manipulator: Manipulator) -> Callable[[Frozen, Mapping[str, Array]], jax.Array]:
    """Returns view(frozen, batch) -> the pictures of a batch's codes, unedited, f32[b,H,W,3] in [-1, 1]."""
    return jax.jit(
        lambda frozen, batch: _shown(manipulator.image(frozen, manipulator.source(frozen, batch, None)), batch)
    )


def _batch_editor(manipulator: Manipulator) -> Callable[..., jax.Array]:
    @jax.jit
    def edit(params: Params, frozen: Frozen, batch: dict[str, jax.Array], strength: float = 1.0) -> jax.Array:
        code = manipulator.source(frozen, batch, None)
        changed = manipulator.apply(params, frozen, code)
        changed = jax.tree.map(lambda before, after: before + strength * (after - before), code, changed)
        return _shown(manipulator.image(frozen, changed), batch)

    return edit


def _shown(picture: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Clipped, and as large as the batch's images where it has any: a generator has a size of its own."""
    if "image" in batch and batch["image"].shape[1:3] != picture.shape[1:3]:
        picture = jax.image.resize(picture, batch["image"].shape, "bilinear")
    return jnp.clip(picture, -1.0, 1.0)


def _known_edit(data: EditData) -> str:
    """The edit whose exact answers the portraits have; "" for images on disk, and for prompts that ask for another."""
    if data.source != "portraits":
        return ""
    try:
        return edit_of(data.prompt)
    except ValueError as error:
        _log.info("previews have no exact answers: %s", error)
        return ""


def make_previews(data: EditData, parts: Parts) -> Previews:
    """Rows of originals, what codes make of them unedited, edits, and of portraits the exact answers if known."""
    edit, view = _batch_editor(parts.manipulator), make_viewer(parts.manipulator)

    @functools.cache
    def examples() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        known = _known_edit(data)
        if not known:
            return parts.examples(PREVIEW), {}
        pairs = edit_pairs([known], PREVIEW)
        return {"image": pairs.image}, {"counterfactual": pairs.counterfactual}

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        batch, truth = examples()
        rows = {"original": batch["image"]} if "image" in batch else {}
        if parts.generates:
            rows["generated"] = np.asarray(view(frozen, batch))
        rows["edited"] = np.asarray(edit(params if ema is None else ema, frozen, batch))
        rows |= truth
        write_grid(directory / f"{step:08d}.png", list(rows.values()), list(rows))

    return previews
