"""Writes precomputed latents, in the format of `latent_records`.

A shard gets its name when it is whole, and the manifest says `complete` when all shards are, so a killed writer leaves
what the next one goes on from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from sdd_jax.data.latent_records import MANIFEST, TEXT, Manifest, read_manifest

Arrays = Mapping[str, np.ndarray]


class LatentWriter:
    """Writes a directory of latents shard by shard, going on from whatever whole shards are there.

    Raises:
        ValueError: the directory holds other latents, or cannot be written.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = dataclasses.replace(manifest, complete=False, sizes=())
        before = read_manifest(directory)
        if before is not None:
            _check_same(directory, before, self._manifest)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if before is None:
                self._write_manifest(self._manifest)
        except OSError as error:
            raise ValueError(f"--out={directory} cannot be written ({error.strerror}); use another") from error
        self._sizes = before.sizes if before is not None else ()

    def missing(self) -> list[int]:
        """The indices of the shards that are not there, or not as large as a finished directory's manifest says."""
        missing = []
        for index, name in enumerate(self._manifest.shards):
            path = self._directory / name
            cut = bool(self._sizes) and path.is_file() and path.stat().st_size != self._sizes[index]
            if cut or not path.is_file():
                missing.append(index)
        return missing

    def write_shard(self, index: int, rows: Iterable[Arrays]) -> None:
        """Writes shard `index`; a row without the text arrays is one of the empty prompt.

        Raises:
            ValueError: rows of other shapes or dtypes, or not as many as the shard takes.
        """
        path = self._directory / self._manifest.shards[index]
        partial = _beside(path)
        count = 0
        # group_size 1: one record is what a random access reads; float16 noise does not compress
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        try:
            for row in rows:
                writer.write(_pack(row, self._manifest.arrays))
                count += 1
            writer.close()
            if count != self._manifest.shard_count(index):
                raise ValueError(f"{path}: made {count} records of {self._manifest.shard_count(index)}")
            partial.rename(path)
        finally:
            if writer.is_open():
                writer.close()
            partial.unlink(missing_ok=True)

    def finish(self, null: Arrays) -> None:
        """Stores the empty prompt's states and marks the directory complete; all shards must be there."""
        if missing := self.missing():
            raise ValueError(f"{self._directory} lacks {len(missing)} shards, the first {missing[0]}")
        for name, value in null.items():
            path = self._directory / f"null_{name}.npy"
            partial = _beside(path)
            with partial.open("wb") as file:
                np.save(file, value.astype(np.float32))
            partial.rename(path)
        sizes = tuple((self._directory / name).stat().st_size for name in self._manifest.shards)
        self._write_manifest(dataclasses.replace(self._manifest, complete=True, sizes=sizes))

    def _write_manifest(self, manifest: Manifest) -> None:
        partial = _beside(self._directory / MANIFEST)
        with partial.open("w") as file:
            json.dump(dataclasses.asdict(manifest), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._directory / MANIFEST)


def _beside(path: Path) -> Path:
    """A name for what will be renamed to `path`, which no other process or machine writes to."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")


def _pack(row: Arrays, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> bytes:
    parts = []
    for name, (shape, dtype) in arrays.items():
        if name in TEXT and name not in row:
            continue
        value = row[name]
        if value.shape != tuple(shape) or value.dtype != np.dtype(dtype):
            raise ValueError(f"{name} is {value.dtype}{list(value.shape)}, the manifest says {dtype}{list(shape)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite in {dtype}: look at the picture or caption it was made from")
        parts.append(value.tobytes())
    return b"".join(parts)


def _check_same(directory: Path, before: Manifest, now: Manifest) -> None:
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    for key in ("model_hash", "data", "count", "shard_size", "arrays"):
        if old[key] != new[key]:
            shown = ("model", "model_hash") if key == "model_hash" else (key,)
            there, here = (", ".join(str(side[name])[:200] for name in shown) for side in (old, new))
            raise ValueError(
                f"--out={directory} holds other latents: {key} is {there} there and {here} here; use another --out, "
                "or the command that made it"
            )
