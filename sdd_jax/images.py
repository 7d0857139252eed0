"""Images at the edge: float [-1, 1] to uint8, grids with labels, PNG files.

A grid is rows of equally sized images, as few-step samples are looked at: one row a method or step count, one column
a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND = 255
_GAP = 2


def to_uint8(images: jax.Array | np.ndarray) -> np.ndarray:
    """Maps floats in [-1, 1] (clipped) to uint8 by round((x + 1) 127.5); uint8 passes as it is. Any shape."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    scaled = (np.asarray(images, np.float32) + 1.0) * 127.5
    return np.round(np.clip(np.nan_to_num(scaled), 0.0, 255.0)).astype(np.uint8)


def make_grid(
    rows: Sequence[jax.Array | np.ndarray], labels: Sequence[str] = (), columns: Sequence[str] = ()
) -> np.ndarray:
    """Returns the grid as uint8 [H, W, 3].

    Args:
        rows: each [n, h, w, 3] or [n, h, w, 1], floats in [-1, 1] or uint8; n may differ, h and w may not.
        labels: one text a row, left of it; none: no margin.
        columns: one text a column, above it, of one line or several.

    Raises:
        ValueError: images of different sizes, or a number of labels that is not the number of rows.
    """
    arrays = [to_uint8(row) for row in rows]
    sizes = {array.shape[1:3] for array in arrays}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs rows of images of one size, got {sorted(sizes)}")
    if labels and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels for {len(rows)} rows of a grid")
    ((height, width),) = sizes
    font = ImageFont.load_default(size=max(9, min(16, height // 6)))
    left = max((round(font.getlength(label)) + 8 for label in labels), default=0)
    line = round(font.getbbox("Ag")[3])
    lines = max((column.count("\n") + 1 for column in columns), default=0)
    top = lines * line + 4 if columns else 0
    count = max(len(array) for array in arrays)
    shape = (top + len(arrays) * (height + _GAP) - _GAP, left + count * (width + _GAP) - _GAP, 3)
    canvas = np.full(shape, _BACKGROUND, np.uint8)
    for row, array in enumerate(arrays):
        for column, image in enumerate(array):
            y, x = top + row * (height + _GAP), left + column * (width + _GAP)
            canvas[y : y + height, x : x + width] = image
    if not (labels or columns):
        return canvas
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(labels):
        draw.text((4, top + row * (height + _GAP) + height // 2), label, fill=(0, 0, 0), font=font, anchor="lm")
    for column, text in enumerate(columns):
        for i, part in enumerate(text.split("\n")):
            draw.text((left + column * (width + _GAP) + 2, 2 + i * line), part, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def write_png(path: Path, image: jax.Array | np.ndarray) -> None:
    """Writes one image [H, W, 3] or [H, W, 1] (floats in [-1, 1] or uint8) atomically, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = to_uint8(image)
    partial = path.with_name(f"{path.name}.partial")
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(partial, format="PNG")
    partial.rename(path)


def write_grid(
    path: Path,
    rows: Sequence[jax.Array | np.ndarray],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Writes `make_grid(rows, labels, columns)` as a PNG."""
    write_png(path, make_grid(rows, labels, columns))
