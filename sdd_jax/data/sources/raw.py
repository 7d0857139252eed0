"""What every source of images looks like before anything is decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class RawRecord(NamedTuple):
    """image: encoded bytes, or the path of a file. captions: all there are, () for none. name: for messages.

    partner: the second image of a pair, likewise; None where there are no pairs.
    """

    name: str
    image: bytes | Path
    captions: tuple[str, ...]
    partner: bytes | Path | None = None


class Partners(NamedTuple):
    """Second images of pairs; `read(file or bytes, size, name)` makes an array of one.

    place: of a folder's images a second directory, `place/a/b.*` for `a/b.jpg`; in tar shards the rest of the member's
        name, `depth.png` for `000001.depth.png` beside `000001.jpg`.
    """

    place: str
    read: Callable[[Path | bytes, int, str], np.ndarray]


class RawSource(Protocol):
    """Random access to encoded images and their captions; must pickle, for the stream's worker processes.

    Reading raises ValueError or OSError for a record that is damaged; opening raises for what is wrong with the whole.
    """

    @property
    def title(self) -> str:
        """What messages call the source."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawRecord: ...


def inside(root: Path, name: str, where: str) -> Path:
    """`root / name`, for a name that a data set's own files give.

    Raises:
        ValueError: a name that leads out of the directory.
    """
    relative = Path(name.replace("\\", "/"))
    if not name or relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{where} names {name!r}, which is not a file inside {root}")
    return root / relative


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; ValueError in one line for anything else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def parse_json(text: str) -> Any:
    """`json.loads` for text that nobody vouches for: ValueError for all that is wrong with it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
