"""Files of many records with an index of where each one is: what random access to tar and tfrecord shards needs.

The index is made by one walk over the shards' headers and kept in the cache directory, under a hash of the shards'
names, sizes and times: a shard that changes is walked again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sdd_jax.data.cache import cache_dir

Scan = Callable[[Path], Sequence[tuple[int, ...]]]


def shard_index(kind: str, version: object, shards: Sequence[Path], scan: Scan, columns: int) -> np.ndarray:
    """int64 [n, 1 + columns]: the shard's number and what `scan` says of each of its records.

    Args:
        kind: names the file in the cache; version: of its format, and all else that `scan` depends on.
        scan: shard -> a row of integers a record; raises ValueError for a shard that is damaged.
    """
    stamps = [(str(path.absolute()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in shards]
    digest = hashlib.sha256(repr((version, stamps)).encode()).hexdigest()[:16]
    cached = cache_dir() / f"{kind}-index-{digest}.npy"
    if cached.is_file():
        return np.load(cached, allow_pickle=False)
    rows = [(number, *row) for number, path in enumerate(shards) for row in scan(path)]
    index = np.array(rows, np.int64).reshape(-1, 1 + columns)
    scratch = cached.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(scratch, index)
    scratch.rename(cached)
    return index


class ShardFiles:
    """Reads bytes at offsets of shards from any thread; pickles without its open files."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = list(shards)
        self._files: dict[int, int] = {}

    def read(self, shard: int, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; ValueError where the file has become shorter."""
        if shard not in self._files:
            opened = os.open(self._shards[shard], os.O_RDONLY)
            if self._files.setdefault(shard, opened) != opened:  # another thread was first
                os.close(opened)
        data = os.pread(self._files[shard], size, start)
        if len(data) != size:
            raise ValueError(f"{self._shards[shard]} became shorter since it was opened: {len(data)} of {size} bytes")
        return data

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)
