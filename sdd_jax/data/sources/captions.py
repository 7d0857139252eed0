"""Captions beside images: `metadata.jsonl`, `captions.csv`, or a text file of the same name as the image.

| file | what it holds |
| --- | --- |
| `metadata.jsonl` | one JSON object a line: `file_name` and the caption, as Hugging Face's image folders have it |
| `captions.csv` | a header with a column of file names and one of captions, as benchmarks have it, and any others |
| `NAME.txt` | the caption of `NAME.png` |

A listing names exactly the records, in its order; a file named several times has several captions. Without a listing
every image of the folder is a record, captioned by its text file, where it has one.
"""

from __future__ import annotations

import csv
import reprlib
from collections.abc import Iterator
from pathlib import Path

from sdd_jax.data.sources.raw import parse_json

LISTINGS = ("metadata.jsonl", "captions.csv")
FILE_KEYS = ("file_name", "filename", "image", "path", "file")
CAPTION_KEYS = ("text", "caption", "captions", "prompt")


def read_listing(path: Path, caption_key: str = "") -> list[tuple[str, tuple[str, ...]]]:
    """(file name, captions) of every record of a listing, in the order of first mention.

    Args:
        caption_key: the field or column of captions; "" for the first of `text`, `caption`, `captions`, `prompt`.

    Raises:
        ValueError: no such fields, a line that is not JSON, no UTF-8, or no records; with the line's number.
    """
    try:
        rows = _jsonl(path) if path.suffix == ".jsonl" else _csv(path)
        listed: dict[str, list[str]] = {}
        for number, row in rows:
            name = _field(row, FILE_KEYS, f"{path}, line {number}")
            captions = _field(row, (caption_key,) if caption_key else CAPTION_KEYS, f"{path}, line {number}")
            if not isinstance(name, str):
                raise ValueError(f"{path}, line {number}: the file's name is {name!r}, not a text")
            listed.setdefault(name, []).extend(as_captions(captions, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): convert it") from None
    if not listed:
        raise ValueError(f"{path} lists no images: give it one line each, or remove it")
    return [(name, tuple(captions)) for name, captions in listed.items()]


def as_captions(value: object, where: str) -> list[str]:
    """A caption field as a list of texts: a text, a list of texts, or nothing; ValueError for anything else."""
    if value is None or value == "":
        return []
    values: list[object] = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in values if isinstance(text, str)]
    if len(texts) != len(values):
        raise ValueError(f"{where}: a caption is {reprlib.repr(value)}, not a text")
    return texts


def read_caption(path: Path) -> str:
    """Reads a caption, empty where there is no such file; ValueError for one that is not UTF-8 text."""
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): convert or remove it") from None


def _jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object")
            yield number, row


def _csv(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _field(row: dict, keys: tuple[str, ...], where: str) -> object:
    key = next((key for key in keys if key in row), None)
    if key is None:
        found = ", ".join(str(name) for name in row if name) or "nothing"
        raise ValueError(f"{where}: none of {', '.join(keys)} among {found}")
    return row[key]
