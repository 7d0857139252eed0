"""Precomputed latents and text states on disk: a directory of ArrayRecord shards and a manifest.

    manifest.json                what is in here: model, data, arrays, shards; `complete` when it is all there
    records-00000.array_record   ...
    null_context.npy             the empty prompt's text states f32[1,n,d], once (null_pooled.npy f32[1,e] for SDXL)

A record is the bytes of its arrays, one after another, in the order that the manifest gives with shapes and dtypes:

| array | what | SD 1.5, 512 px |
| --- | --- | --- |
| `moments` f16[h,w,2c] | posterior mean and log-variance of the picture, so that every epoch draws anew | 65 KB |
| `image` u8[H,W,3] | the picture, for jobs that draw a condition from it at every step | 786 KB |
| `context` f16[n,d] | text states; left out where the caption is empty | 118 KB |
| `pooled` f16[e] | SDXL's pooled text; left out where the caption is empty | |

A directory that is unfinished, cut off or of another model is one line of error; a damaged record is skipped, as
`data.tolerance` says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from sdd_jax.data.records import Record
from sdd_jax.data.tolerance import Tolerance

MANIFEST = "manifest.json"
VERSION = 1
TEXT = ("context", "pooled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a directory of latents holds.

    model, model_hash: source and content hash of the weights that made it. data: the settings of its pictures and
    captions. count: records. shard_size: records of every shard but the last.
    arrays: name -> (shape, dtype), in the order of a record's bytes; the text comes last.
    complete: all shards are there. sizes: bytes of each shard's file, once complete. version: of this format.
    """

    model: str
    model_hash: str
    data: Mapping[str, Any]
    count: int
    shard_size: int
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    complete: bool = False
    sizes: tuple[int, ...] = ()
    version: int = VERSION

    @property
    def shards(self) -> list[str]:
        """The names of the shards' files."""
        return [f"records-{index:05d}.array_record" for index in range(-(-self.count // self.shard_size))]

    def shard_count(self, index: int) -> int:
        """Records of a shard."""
        return min(self.shard_size, self.count - index * self.shard_size)


def read_manifest(directory: Path) -> Manifest | None:
    """Reads a directory's manifest, None where there is none.

    Raises:
        ValueError: it is damaged, or of another version of the format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        arrays = {name: (tuple(shape), str(dtype)) for name, (shape, dtype) in content.pop("arrays").items()}
        manifest = Manifest(**{**content, "arrays": arrays, "sizes": tuple(content["sizes"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a readable manifest of latents ({error}): precompute into another --out"
        ) from None
    if manifest.version != VERSION:
        raise ValueError(f"{path} is of version {manifest.version}, this program reads {VERSION}: precompute again")
    return manifest


class LatentRecords:
    """Random access to precomputed latents: `moments`, `context`, `pooled` f32, `image` u8, as far as they are stored.

    Attributes:
        manifest: what is in the directory. null_context f32[1,n,d], null_pooled f32[1,e] or None: the empty prompt's.

    Args:
        expected_hash: the `content_hash` of the model that will read them.
        max_bad_share: damaged records that are tolerated.

    Raises:
        FileNotFoundError: no such directory, or a shard is missing.
        ValueError: made by another model, unfinished, cut off or damaged.
    """

    def __init__(self, path: str | Path, expected_hash: str, max_bad_share: float = 0.001) -> None:
        self._root = Path(path)
        manifest = read_manifest(self._root)
        if manifest is None:
            raise FileNotFoundError(
                f"{path} holds no latents (no {MANIFEST}): make them with python -m sdd_jax.precompute --out={path}"
            )
        if manifest.model_hash != expected_hash:
            raise ValueError(
                f"the latents in {path} were made by {manifest.model} ({manifest.model_hash[:12]}), the job's model is "
                f"{expected_hash[:12]}: set config.model to that one, or precompute for this one"
            )
        if not manifest.complete:
            raise ValueError(f"the latents in {path} are not finished: the same precompute command goes on with them")
        self.manifest = manifest
        for name, size in zip(manifest.shards, manifest.sizes, strict=True):
            file = self._root / name
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: the command that made it makes what is missing again")
            if file.stat().st_size != size:
                raise ValueError(
                    f"{file} is cut off or changed ({file.stat().st_size} of {size} bytes): the precompute command "
                    "that made it makes it again"
                )
        null = {name: self._null(name) for name in TEXT if name in manifest.arrays}
        self.null_context: np.ndarray = null["context"]
        self.null_pooled: np.ndarray | None = null.get("pooled")
        self._spans = _spans(manifest.arrays)
        self._without_text = min(start for name, (start, _) in self._spans.items() if name in TEXT)
        self._whole = max(stop for _, stop in self._spans.values())
        try:
            self._source = grain.sources.ArrayRecordDataSource([str(self._root / name) for name in manifest.shards])
            found = len(self._source)
        except Exception as error:
            raise ValueError(f"the latents in {path} are damaged ({' '.join(str(error).split())})") from None
        if found != manifest.count:
            raise ValueError(f"{path} holds {found} records, its {MANIFEST} says {manifest.count}: precompute it again")
        self._tolerance = Tolerance(f"the latents in {path}", manifest.count, max_bad_share)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def bad(self) -> tuple[str, ...]:
        """What was wrong with each damaged record that this process met."""
        return self._tolerance.bad

    def __getitem__(self, position: int) -> Record:
        return self._tolerance.read(position, self._read)

    def _read(self, position: int) -> Record:
        try:
            data = self._source[position]
        except Exception as error:  # ArrayRecord raises types of its own on damaged records
            raise self._damaged(position, " ".join(str(error).split())) from None
        if len(data) not in (self._whole, self._without_text):
            raise self._damaged(position, f"{len(data)} of {self._whole} bytes")
        record: Record = {"position": position}
        for name, (shape, dtype) in self.manifest.arrays.items():
            start, stop = self._spans[name]
            if name in TEXT and len(data) == self._without_text:
                record[name] = (self.null_context if name == "context" else self.null_pooled)[0]  # type: ignore[index]
                continue
            value = np.frombuffer(data[start:stop], np.dtype(dtype)).reshape(shape)
            record[name] = value.astype(np.float32) if value.dtype == np.float16 else value
        return record

    def _null(self, name: str) -> np.ndarray:
        path = self._root / f"null_{name}.npy"
        shape = (1, *self.manifest.arrays[name][0])
        try:
            value = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not readable ({error}): precompute it again") from None
        if value.shape != shape:
            raise ValueError(f"{path} is {value.shape}, the manifest says {shape}: precompute it again")
        return value

    def _damaged(self, position: int, what: str) -> ValueError:
        shard = self._root / self.manifest.shards[position // self.manifest.shard_size]
        return ValueError(f"record {position} in {shard} is damaged ({what}): remove that file and precompute it again")


def _spans(arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, tuple[int, int]]:
    spans, start = {}, 0
    for name, (shape, dtype) in arrays.items():
        stop = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        spans[name] = (start, stop)
        start = stop
    return spans
