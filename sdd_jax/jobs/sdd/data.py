"""The images that SDD's jobs manipulate, and what each kind of manipulator brings to its job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import defaults_of, validate
from sdd_jax.data.cache import renderer_hash
from sdd_jax.data.pipeline import HostBatch, Source
from sdd_jax.data.prompts import FOLDER_FIELDS, PORTRAIT_FIELDS, check_template
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.data.sources.images import SOURCES, ImageOptions, open_source
from sdd_jax.jobs.streams.portraits import PortraitData
from sdd_jax.objectives.manipulators import Manipulator
from sdd_jax.types import Frozen, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditData(ImageOptions):
    """Config of the images to manipulate, and of the edit.

    source: "portraits"; images on disk: "folder", "tar", "tfds" or "coco", at `path` (see `data.sources`). split: of
    portraits, tfds and coco. count: of portraits. size: image side of images on disk. prompt: what edited images show,
    a template (`data.prompts`).
    """

    source: str = "portraits"
    path: str = ""
    split: str = "train"
    count: int = 6_000
    size: int = 64
    prompt: str

    def __post_init__(self) -> None:
        if self.source not in ("portraits", *SOURCES):
            raise ValueError(f"source={self.source!r} is not known; use portraits, {', '.join(SOURCES)}")
        if self.source == "portraits":
            PortraitData(split=self.split, count=self.count)
            self.check_unused(self.source)
        else:
            self.images()
        check_template(self.prompt, PORTRAIT_FIELDS if self.source == "portraits" else FOLDER_FIELDS)

    @property
    def facts(self) -> dict[str, Any]:
        """What the images are made of, for the name of a search's file: manipulators of the same images share it."""
        usual = {**defaults_of(ImageOptions), "truncation": 1.0, "prompt": self.prompt}
        named = {key: value for key, value in dataclasses.asdict(self).items() if value != usual.get(key)}
        if self.source == "portraits":
            return {**named, "renderer": renderer_hash()}
        return {**named, "files": _state_of(Path(self.path))} if self.path else named

    def open(self) -> Source:
        """The images as records, square; portraits rendered as they are asked for."""
        if self.source == "portraits":
            return PortraitSource(self.split, self.count, cached=False)
        return open_source(self.images(crop="center"))


def _state_of(path: Path) -> str:
    """A hash of the names, sizes and times of a file, or of the files in and below a directory, or of a pattern."""
    found = path.rglob("*") if path.is_dir() else [path] if path.exists() else path.parent.glob(path.name)
    files = sorted(file for file in found if file.is_file())
    state = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.stat(),)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def edit_data(config: ConfigDict) -> EditData:
    """The images that a run of either manipulator edits; not those of a generator's codes."""
    names = {field.name for field in dataclasses.fields(EditData)}
    return validate({name: value for name, value in config.data.items() if name in names}, EditData, "config.data")


class Parts(NamedTuple):
    """A manipulator with what it reads and writes.

    frozen: the model's, with its own networks. images: those that timesteps are searched on; made_of names them.
    stream, export: as of `Job`. examples: count -> a batch to look at, `image` or `codes`. title: its networks, for the
    log, or "". generates: pictures come from codes, so that unedited ones are worth a look too. fingerprint: of its
    networks.
    """

    manipulator: Manipulator
    frozen: Frozen
    images: Callable[[], Source]
    made_of: Mapping[str, Any]
    stream: Callable[[int], Iterator[HostBatch]]
    export: Callable[[Params, Path], None]
    examples: Callable[[int], HostBatch]
    title: str = ""
    generates: bool = False
    fingerprint: Mapping[str, Any] = {}


def first_images(source: Source, count: int) -> HostBatch:
    """A batch of a source's first images: `image` f32[b,H,W,3] in [-1, 1]."""
    return {"image": np.stack([to_float(source[i]["image"]) for i in range(min(count, len(source)))])}
