"""Results sample by sample, as JSON lines that survive an interruption at any byte.

The first line says what the results depend on; a log is continued only by a run of which that is true. Each further
line is one sample, `{"id": ..., ...}`, written and flushed when it is done. A line that a kill cut off is taken away
when the log is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class SampleLog:
    """A JSON-lines file of results by id.

    Args:
        settings: what results depend on, as JSON.

    Raises:
        ValueError: the file belongs to other settings, or is no such log.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([{"settings": settings}])
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            os.truncate(path, len(whole))
        lines = whole.decode("utf-8").splitlines()
        try:
            records = [json.loads(line) for line in lines]
            found = records[0]["settings"] if records else settings
            self.rows = {row["id"]: row for row in records[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no log of samples ({error}): remove it, or give another --out") from None
        different = sorted(key for key in {**found, **settings} if found.get(key) != settings.get(key))
        if different:
            key = different[0]
            raise ValueError(
                f"{path} holds results of another run ({key}: {found.get(key)!r}, now {settings.get(key)!r}): "
                "remove it, or give another --out"
            )
        if not records:
            self._write([{"settings": settings}])

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends samples, each with its `id`; on disk when this returns."""
        done = [dict(row) for row in rows]
        self._write(done)
        self.rows |= {row["id"]: row for row in done}

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
