"""Results sample by sample, as JSON lines that survive an interruption at any byte, of one process or of several.

The first line says what the results depend on; a log is continued only by a run of which that is true. Each further
line is one sample, `{"id": ..., ...}`, written and flushed when it is done. A line that a kill cut off is taken away
when the log is opened again.

Of several processes each writes a file of its own, `LOG.jsonl`, `LOG.1.jsonl`, `LOG.2.jsonl`, ...; all read all of
them. `merge` puts the samples of all, each once, into the first. A run that was killed before may be continued by any
number of processes.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class SampleLog:
    """A JSON-lines file of results by id.

    Args:
        settings: what results depend on, as JSON.
        process: whose file this one appends to.

    Raises:
        ValueError: the file belongs to other settings, or is no such log.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], process: int = 0) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._own = path.with_name(f"{path.stem}.{process}.jsonl") if process else path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = self._read()
        whole = len(_whole_lines(self._own))
        if self._own.is_file() and whole != self._own.stat().st_size:
            os.truncate(self._own, whole)
        if not whole:
            self._write([{"settings": self._settings}])

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends samples, each with its `id`; on disk when this returns."""
        done = [dict(row) for row in rows]
        self._write(done)
        self.rows |= {row["id"]: row for row in done}

    def merge(self, ids: Iterable[str]) -> None:
        """Leaves one file with the samples of all processes' files, in the order of `ids`; for one process to call.

        A kill in the middle of it loses nothing: the merged file takes its place at once, the others go after it.
        """
        self.rows = self._read()
        others = [file for file in self._files() if file != self.path]
        if others:
            scratch = self.path.with_name(f"{self.path.name}.partial")
            content = [{"settings": self._settings}, *(self.rows[name] for name in ids if name in self.rows)]
            _write_lines(scratch, content, "w")
            scratch.rename(self.path)
            for file in others:
                file.unlink()

    def _files(self) -> list[Path]:
        """The first process's file, and those of others that there are."""
        return [self.path, *sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}.[0-9]*.jsonl"))]

    def _read(self) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for file in self._files():
            rows |= self._rows_of(file)
        return rows

    def _rows_of(self, file: Path) -> dict[str, Row]:
        try:
            records = [json.loads(line) for line in _whole_lines(file).decode("utf-8").splitlines()]
            found = records[0]["settings"] if records else self._settings
            rows = {row["id"]: row for row in records[1:]}
            different = sorted(key for key in {**found, **self._settings} if found.get(key) != self._settings.get(key))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no log of samples ({error}): remove it, or give another --out") from None
        if different:
            key = different[0]
            raise ValueError(
                f"{file} holds results of another run ({key}: {found.get(key)!r}, now {self._settings.get(key)!r}): "
                "remove it, or give another --out"
            )
        return rows

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        _write_lines(self._own, rows, "a")


def _whole_lines(file: Path) -> bytes:
    """What a file holds up to its last line end; nothing of one that is not there."""
    data = file.read_bytes() if file.is_file() else b""
    return data[: data.rfind(b"\n") + 1]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]], mode: str) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())
