"""Benchmarks as published: CSVs of prompts and edits, PIE-bench's mapping file, folders of pairs.

What the published files hold, and what is made of it:

| file | quirk | here |
| --- | --- | --- |
| any CSV | unnamed index columns | left out |
| generation | one file name for several captions | samples are numbered by row |
| generation, COCO itself | five captions an image | the first; images in the order of their ids |
| editing, COCO | `blended_words` written as a tuple: `"('child', 'lion')"` | the two words |
| editing, PIE-bench | two `blended_words`, a blank, or three (`And chair rock`) | two, none, the last two |
| editing, PIE-bench | blended words that their prompt does not have (`puppy`, `person`) | none: no local blend |
| PIE-bench `mapping_file.json` | `[ ]` around the changed words of a prompt | removed |
| PIE-bench `mapping_file.json` | run-length masks of 512x512 with gaps at the border | the border counts as edited |
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.data.sources.coco import CocoSource
from sdd_jax.data.sources.folder import FolderSource
from sdd_jax.data.sources.raw import inside, read_object
from sdd_jax.evals.preprocess import image_paths

MASK_SIDE = 512
GENERATION = ("caption",)
EDITING = ("file_name", "old_caption", "edited_caption")


class Item(NamedTuple):
    """One sample of a benchmark.

    id: unique in the benchmark, fit for a file name. source: what `image` shows; target: what the result should show.
    image: the picture to start from; reference: the one to compare the result with. blend: the word of each prompt
    whose attention says where to edit. mask: run lengths (first, count) of the edited pixels, row by row, of 512x512.
    condition: the second file of a pair: a depth map, or the picture before an edit.
    """

    id: str
    target: str
    source: str = ""
    image: Path | None = None
    reference: Path | None = None
    blend: tuple[str, str] | None = None
    mask: tuple[int, ...] | None = None
    condition: Path | None = None


def read_generation(path: str | Path) -> list[Item]:
    """Prompts of a CSV with the column `caption`; errors as `rows`."""
    return [
        Item(id=f"{number:06d}", target=row["caption"].strip()) for number, row in enumerate(rows(path, GENERATION))
    ]


def read_coco(directory: str | Path) -> list[Item]:
    """Prompts of COCO as it is published: its validation images' first captions; the images beside them for FID.

    Raises:
        FileNotFoundError: no captions of a validation split, or images that they name are missing.
        ValueError: captions of several such splits, or of another form.
    """
    folder, prefix = Path(directory) / "annotations", "captions_"
    splits = [path.stem.removeprefix(prefix) for path in sorted(folder.glob(f"{prefix}val*.json"))]
    if not splits:
        raise FileNotFoundError(f"{folder} holds no {prefix}val*.json: give COCO's directory as --data, or a --csv")
    if len(splits) > 1:
        raise ValueError(f"{folder} holds captions of {' and '.join(splits)}: keep those of one split")
    source = CocoSource(directory, splits[0])
    return [Item(id=f"{number:06d}", target=source[number].captions[0]) for number in range(len(source))]


def read_inversion(path: str | Path, images: str | Path) -> list[Item]:
    """Images of a CSV with the columns `file_name` and `caption`; errors as `rows`, and missing images."""
    items = []
    for number, row in enumerate(rows(path, ("file_name", "caption"))):
        image = inside(Path(images), row["file_name"].strip(), str(path))
        caption = row["caption"].strip()
        items.append(Item(id=f"{number:06d}", target=caption, source=caption, image=image, reference=image))
    return _present(items, path)


def read_editing(path: str | Path, images: str | Path) -> list[Item]:
    """Edits of a CSV with iCD's published columns; errors as `rows`, and missing images."""
    items = []
    for number, row in enumerate(rows(path, EDITING)):
        source, target = row["old_caption"].strip(), row["edited_caption"].strip()
        image = inside(Path(images), row["file_name"].strip(), str(path))
        blend = blended_words(row.get("blended_words") or "", source, target)
        items.append(Item(id=f"{number:06d}", target=target, source=source, image=image, reference=image, blend=blend))
    return _present(items, path)


def read_pie_bench(directory: str | Path) -> list[Item]:
    """PIE-bench as its authors ship it: `mapping_file.json` and `annotation_images/`.

    Raises:
        FileNotFoundError: no mapping file, or images that it names are missing.
        ValueError: a mapping file of another form.
    """
    root = Path(directory)
    file = root / "mapping_file.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give PIE-bench's directory, or a CSV of edits")
    items = []
    for key, entry in read_object(file).items():
        try:
            source, target = (_unbracketed(entry[name]) for name in ("original_prompt", "editing_prompt"))
            image = inside(root / "annotation_images", entry["image_path"], str(file))
            mask = tuple(entry.get("mask") or ()) or None
            blend = blended_words(entry.get("blended_word") or "", source, target)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}, entry {key!r}: {error} is missing or of another kind") from None
        if not re.fullmatch(r"[\w.-]+", key) or not _is_mask(mask):
            raise ValueError(f"{file}, entry {key!r}: the name or the mask is not of PIE-bench's kind")
        items.append(Item(key, target, source, image, image, blend, mask))
    if not items:
        raise ValueError(f"{file} lists no edits")
    return _present(items, file)


def read_pairs(images: str | Path, originals: str | Path, conditions: str | Path = "") -> list[Item]:
    """The images of a folder and their captions as `FolderSource` reads them, with originals of the same names.

    conditions: a directory that has a second file of the same name for each image; "" for none.

    Raises:
        FileNotFoundError: no images, or one without its original or its second file.
        ValueError: names that differ by their suffix alone; captions as `FolderSource`.
    """
    truths, root = _by_stem(Path(originals)), Path(images)
    _by_stem(root)  # what is wrong with the folder, in the words of a flag and not of a config
    source, items = FolderSource(root, partners=conditions), []
    for record in (source[i] for i in range(len(source))):
        path, partner = Path(record.name), record.partner
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem not in truths:
            raise FileNotFoundError(f"{originals} has no original of {path}: {len(truths)} images of other names")
        caption = record.captions[0] if record.captions else ""
        condition = partner if isinstance(partner, Path) else None
        items.append(Item(stem.replace("/", "_"), caption, image=path, reference=truths[stem], condition=condition))
    return items


def rows(path: str | Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV that has `columns`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such columns, a row that lacks one, no UTF-8 or no rows; with the line's number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--csv={path}: no such file")
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            found = [name for name in reader.fieldnames or () if name]
            missing = [name for name in columns if name not in found]
            if missing:
                raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(found) or 'none'}")
            empty_file = True
            for row in reader:
                empty_file = False
                empty = [name for name in columns if not (row[name] or "").strip()]
                if empty:
                    raise ValueError(f"{path}, line {reader.line_num}: {empty[0]} is empty")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: not CSV in UTF-8 ({error})") from None
    if empty_file:
        raise ValueError(f"{path} has no rows")


def blended_words(text: str, source: str, target: str) -> tuple[str, str] | None:
    """The words of both prompts that local blending follows, from any of the published spellings; None without."""
    text = text.strip()
    words: Sequence[Any] = text.split()
    if text.startswith("("):
        try:
            words = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return None
    if len(words) < 2 or not all(isinstance(word, str) for word in words):
        return None
    first, second = words[-2:]
    return (first, second) if first in _words(source) and second in _words(target) else None


def decode_mask(runs: Sequence[int], side: int) -> np.ndarray:
    """A run-length mask as f32[side, side, 1], 1 where any part of the pixel may change by PIE-bench's edit."""
    flat = np.zeros(MASK_SIDE**2, np.float32)
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        flat[first : first + count] = 1.0
    mask = flat.reshape(MASK_SIDE, MASK_SIDE)
    mask[[0, -1], :] = mask[:, [0, -1]] = 1.0
    cells = np.arange(side) * MASK_SIDE // side
    if side > MASK_SIDE:
        return mask[cells][:, cells, None]
    return np.maximum.reduceat(np.maximum.reduceat(mask, cells, axis=0), cells, axis=1)[..., None]


def _is_mask(mask: tuple[Any, ...] | None) -> bool:
    return mask is None or (len(mask) % 2 == 0 and all(type(value) is int and value >= 0 for value in mask))


def _words(prompt: str) -> list[str]:
    return [word.strip(".,;:!?\"'") for word in prompt.split()]


def _unbracketed(prompt: str) -> str:
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def _by_stem(root: Path) -> dict[str, Path]:
    paths = image_paths(root)
    stems = {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}
    if len(stems) != len(paths):
        raise ValueError(f"{root} holds images whose names differ by their suffix alone; keep one of each")
    return stems


def _present(items: list[Item], listing: str | Path) -> list[Item]:
    missing = sorted({str(item.image) for item in items if item.image is None or not item.image.is_file()})
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such image, one of {len(missing)} that {listing} names")
    return items
