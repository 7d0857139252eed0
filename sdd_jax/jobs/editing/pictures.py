"""Picture files edited in batches of one shape: what `python -m sdd_jax.edit` does with --image and --out."""

from __future__ import annotations

import argparse
import collections
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sdd_jax.command import directory
from sdd_jax.data.decode import SUFFIXES, image_files, picture_size, read_picture
from sdd_jax.data.records import to_float
from sdd_jax.jobs.editing.methods import EditRequest, EditResult, edit
from sdd_jax.types import Frozen, ModelBundle

_log = logging.getLogger("sdd_jax")


class Picture(NamedTuple):
    """path: of the file. name: its answer's in a directory of answers."""

    path: Path
    name: Path


def find_pictures(given: Sequence[Path]) -> tuple[Picture, ...]:
    """The pictures that --image names, of a directory those in it and below, sorted.

    Raises:
        FileNotFoundError: no such picture, or a directory without any.
        ValueError: a file that is no picture.
    """
    found = []
    for path in given:
        files = image_files(path) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"--image={path}: no pictures in it ({', '.join(SUFFIXES)})")
        root = path if path.is_dir() else path.parent
        found += [Picture(file, file.relative_to(root).with_suffix(".png")) for file in files]
    for picture in found:
        picture_size(picture.path)
    return tuple(found)


def is_grid(out: Path) -> bool:
    """Whether --out names one grid of all answers, a .png, and not a directory of them."""
    return out.suffix.lower() in SUFFIXES and not out.is_dir()


def answer_files(out: Path, pictures: Sequence[Picture]) -> tuple[Path, ...]:
    """The files that --out stands for: one grid, or one for each picture.

    Raises:
        ValueError: a grid that is no .png, two answers of one name, or one in the place of a picture that is read.
    """
    if is_grid(out) and out.suffix.lower() != ".png":
        raise ValueError(f"--out={out}: name a .png, for all answers in a grid, or a directory")
    files = (out,) if is_grid(out) else tuple(out / picture.name for picture in pictures)
    try:
        directory(str(out.parent if is_grid(out) else out))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--out={out}: {error}") from None
    name, count = collections.Counter(files).most_common(1)[0]
    if count > 1:
        raise ValueError(f"--image: {count} pictures would be answered in {name}: rename them, or edit them apart")
    read = {picture.path.resolve() for picture in pictures}
    for file in files:
        if file.resolve() in read:
            raise ValueError(f"--out={out}: {file} is a picture that is read; write elsewhere")
    return files


def edit_pictures(
    method: str,
    model: ModelBundle,
    frozen: Frozen,
    pictures: Sequence[Picture],
    prompts: tuple[Sequence[str], Sequence[str]],
    *,
    size: tuple[int, int],
    batch: int,
    seed: int,
    options: Mapping[str, Any],
) -> Iterator[tuple[np.ndarray, EditResult]]:
    """Yields pictures f32[b,H,W,3] and what became of them, up to `batch` at once, in order.

    prompts: a source and a target of each. Every batch has as many rows, for one program: the last is padded, and cut.
    """
    count = len(pictures)
    for start in range(0, count, batch):
        rows = [row % count for row in range(start, start + min(batch, count))]
        source, target = (tuple(part[row] for row in rows) for part in prompts)
        image = np.stack([read_image(pictures[row].path, size) for row in rows])
        result = edit(
            method,
            EditRequest(model=model, frozen=frozen, image=image, source=source, target=target, seed=seed + start,
                        options=options),
        )  # fmt: skip
        done = min(batch, count - start)
        frames = None if result.frames is None else result.frames[:, :done]
        yield image[:done], result._replace(image=result.image[:done], frames=frames)
        if count > batch:
            _log.info("%s: %d of %d pictures", method, start + done, count)


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """An image file as f32[h,w,3] in [-1, 1], scaled to cover `size` (h, w) and cropped at its centre."""
    height, width = size
    return to_float(
        np.asarray(ImageOps.fit(read_picture(path, upright=True), (width, height), Image.Resampling.BICUBIC))
    )
