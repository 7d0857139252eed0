"""Arrays computed once and kept on disk: rendered portraits and their latents.

A cache file is one `.npy`, named after a hash of everything it was made from (renderer source, split, count, model), so
that a change of any of them is a new file and never a stale one. It is written beside its final name and renamed when
complete, and opened memory-mapped. The directory is `$SDD_JAX_CACHE`, else `~/.cache/sdd_jax`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sdd_jax.data import portraits

CHUNK = 2000


def cache_dir() -> Path:
    """The directory of cached arrays, made if missing."""
    path = Path(os.environ.get("SDD_JAX_CACHE", Path.home() / ".cache" / "sdd_jax"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def renderer_hash() -> str:
    """A hash of the renderer's source: what a cached render depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(portraits.__file__).parent.glob("portraits*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cached_array(
    name: str, key: str, shape: tuple[int, ...], dtype: str, chunks: Callable[[], Iterator[np.ndarray]]
) -> np.ndarray:
    """Returns the array `name` of `shape`, memory-mapped; computes it from `chunks` (along axis 0) if not cached.

    Args:
        key: says what the values depend on; hashed into the file's name with shape and dtype.
        chunks: yields consecutive pieces that add up to `shape`.
    """
    digest = hashlib.sha256(repr((name, key, shape, dtype)).encode()).hexdigest()[:16]
    path = cache_dir() / f"{name}-{digest}.npy"
    if not path.is_file():
        scratch = path.with_suffix(f".{uuid.uuid4().hex[:12]}.tmp")
        array = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.dtype(dtype), shape=shape)
        try:
            done, start = 0, time.monotonic()
            for chunk in chunks():
                array[done : done + len(chunk)] = chunk
                done += len(chunk)
                rate = done / max(time.monotonic() - start, 1e-9)
                left = (shape[0] - done) / rate
                print(f"{name}: {done}/{shape[0]}, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr)
            if done != shape[0]:
                raise RuntimeError(f"{name}: made {done} rows of {shape[0]}")
            array.flush()
            del array
            scratch.rename(path)
        finally:
            scratch.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def rendered_portraits(split: str, count: int) -> np.ndarray:
    """The first `count` pictures of a split: uint8 [count, 64, 64, 3], rendered once."""
    indices = portraits.split_indices(split)[:count]

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(indices), CHUNK):
            yield np.stack([portraits.image(i) for i in indices[start : start + CHUNK]])

    size = portraits.SIZE
    return cached_array(f"portraits-{split}", renderer_hash(), (len(indices), size, size, 3), "uint8", chunks)
