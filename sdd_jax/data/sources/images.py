"""Any raw source as pictures of one size: decoding, filters, damaged records, augmentation.

Damaged records, and pairs of which one file is, are skipped as `data.tolerance` says. Opening reads 16 records spread
over the source, so that a data set that is wrong throughout fails before anything is compiled.

Filters (`min_size`, `max_aspect`) leave records out when the source is opened, by the images' headers: the length of
an epoch is exact and known, at the price of one look at every file.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.config import defaults_of
from sdd_jax.data.decode import picture_size, read_scaled, square
from sdd_jax.data.records import Record, Transform
from sdd_jax.data.sources.raw import Partners, RawRecord, RawSource
from sdd_jax.data.tolerance import Tolerance

SOURCES = ("folder", "tar", "tfds", "coco")
PROBED = 16

_log = logging.getLogger("sdd_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What every job's `config.data` may say of images on disk, beside its own fields.

    image_key, caption_key: the features of a tfds record, the latter also the column or JSON field of captions, "" for
        the usual names ("text", "caption").
    crop: "center" or "random". flip: mirror half of the pictures. caption_dropout: share of samples with an empty
        caption.
    min_size: least shorter side, pixels. max_aspect: largest longer / shorter side, 0 for any.
    max_bad_share: damaged records that are tolerated (`data.tolerance`).
    """

    image_key: str = "image"
    caption_key: str = ""
    crop: str = "center"
    flip: bool = False
    caption_dropout: float = 0.0
    min_size: int = 0
    max_aspect: float = 0.0
    max_bad_share: float = 0.001

    def images(self, **changes: Any) -> ImageData:
        """A job's section as `open_source` takes it; its `count`, where it has one, is of portraits and stays behind.

        Raises:
            ValueError: as `ImageData`.
        """
        shared = [field.name for field in dataclasses.fields(ImageData) if field.name != "count"]
        return ImageData(**{name: getattr(self, name) for name in shared if hasattr(self, name)} | changes)

    def check_unused(self, source: str) -> None:
        """Raises ValueError for an option that is set though `source` is no images on disk and does not read it."""
        read = ("max_bad_share",) if source == "latents" else ()
        for field in dataclasses.fields(ImageOptions):
            if field.name not in read and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} is of images on disk: source={source!r} does not read "
                    "it, leave it out"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData(ImageOptions):
    """Config of images from disk.

    source: "folder", "tar", "tfds" or "coco". path: see the package's table. size: side of the pictures.
    split: of tfds ("train", "train[:90%]") and of coco ("val2017").
    captions: "random" of several, "first", or "none".
    count: how many records there must be before filters, 0 for any.
    """

    source: str = "folder"
    path: str
    size: int = 512
    split: str = "train"
    captions: str = "first"
    count: int = 0

    def __post_init__(self) -> None:
        choices = {"source": SOURCES, "crop": ("center", "random"), "captions": ("first", "random", "none")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use {', '.join(known)}")
        if not self.path:
            raise ValueError(f"source={self.source!r} needs a path: set config.data.path")
        if self.size < 1 or self.min_size < 0 or self.count < 0:
            raise ValueError(f"size={self.size}, min_size={self.min_size}, count={self.count}: sizes are not negative")
        for name in ("caption_dropout", "max_bad_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is a share, from 0 to 1")
        if self.max_aspect and self.max_aspect < 1.0:
            raise ValueError(f"max_aspect={self.max_aspect} is longer / shorter side: at least 1, or 0 for any")


IMAGE_OPTIONS = {"data": defaults_of(ImageOptions)}
"""Keys that a command line may set though the config file does not write them out, as `load_config` takes them."""


def open_source(data: ImageData, partners: Partners | None = None) -> ImageSource:
    """Opens what a config names; everything that is wrong with it as a whole is raised here.

    Args:
        partners: of a folder or tar shards, second images that records hold as `partner`.

    Raises:
        FileNotFoundError: nothing there, or files missing that a listing names or that partners have.
        ValueError: truncated, of another count than it should be, unsafe names, no readable records, no records left.
    """
    source = ImageSource(open_raw(data, partners), data, partners)
    source.probe()
    return source


def open_raw(data: ImageData, partners: Partners | None = None) -> RawSource:
    """The encoded records that a config names, in their order; errors as `open_source`."""
    place = "" if partners is None else partners.place
    if data.source == "folder":
        from sdd_jax.data.sources.folder import FolderSource

        raw: RawSource = FolderSource(data.path, data.caption_key, place)
    elif data.source == "tar":
        from sdd_jax.data.sources.tar import TarSource

        raw = TarSource(data.path, data.caption_key, place)
    elif data.source == "coco":
        from sdd_jax.data.sources.coco import CocoSource

        raw = CocoSource(data.path, data.split)
    else:
        from sdd_jax.data.sources.tfds import TfdsSource

        raw = TfdsSource(data.path, data.split, data.image_key, data.caption_key)
    if data.count and len(raw) != data.count:
        raise ValueError(
            f"{raw.title} holds {len(raw)} records, config.data.count says {data.count}: a part is missing"
        )
    return raw


class ImageSource:
    """Records of pictures, as the package's docstring describes them."""

    def __init__(self, raw: RawSource, data: ImageData, partners: Partners | None = None) -> None:
        self._raw, self._data, self._partners = raw, data, partners
        self._kept = self._suitable()
        self._tolerance = Tolerance(raw.title, len(self), data.max_bad_share)

    def __len__(self) -> int:
        return len(self._raw) if self._kept is None else len(self._kept)

    @property
    def bad(self) -> tuple[str, ...]:
        """What was wrong with each damaged record that this process met."""
        return self._tolerance.bad

    def __getitem__(self, position: int) -> Record:
        return self._tolerance.read(position, self._read)

    def probe(self) -> None:
        """Reads a few records spread over the source, so that one that is wrong throughout fails now."""
        for position in np.unique(np.linspace(0, len(self) - 1, PROBED).astype(int)):
            self[int(position)]

    def _read(self, index: int) -> Record:
        raw = self._raw[index if self._kept is None else int(self._kept[index])]
        captions = raw.captions if self._data.captions != "none" else ()
        record: Record = {"image": self._picture(raw), "caption": captions[0] if captions else "", "captions": captions}
        if self._partners is not None and raw.partner is not None:
            name = str(raw.partner) if isinstance(raw.partner, Path) else f"{raw.name}, its {self._partners.place}"
            record["partner"] = self._partners.read(raw.partner, self._data.size, name)
        return {**record, "name": raw.name, "position": index}

    def _picture(self, record: RawRecord) -> np.ndarray:
        pixels = np.asarray(read_scaled(record.image, self._data.size, record.name))
        return pixels if self._data.crop == "random" else square(pixels, self._data.size)

    def _suitable(self) -> np.ndarray | None:
        """Positions of the records that the filters keep; None where there are no filters."""
        least, aspect = self._data.min_size, self._data.max_aspect or float("inf")
        if not least and aspect == float("inf"):
            return None

        def verdict(index: int) -> str:
            try:
                record = self._raw[index]
                width, height = picture_size(record.image, record.name)
            except (ValueError, OSError):
                return "kept"  # counted as damaged when it is read
            shorter, longer = sorted((width, height))
            return "small" if shorter < least else "long" if longer > aspect * shorter else "kept"

        with ThreadPoolExecutor(8) as pool:
            verdicts = np.array(list(pool.map(verdict, range(len(self._raw)), chunksize=64)))
        kept = np.flatnonzero(verdicts == "kept")
        small, long = (int(np.sum(verdicts == which)) for which in ("small", "long"))
        _log.info(
            "%s: kept %d of %d records; %d are smaller than min_size=%d, %d longer than max_aspect=%g",
            self._raw.title, len(kept), len(verdicts), small, least, long, aspect,
        )  # fmt: skip
        if not len(kept):
            raise ValueError(f"{self._raw.title}: min_size={least} and max_aspect={aspect:g} leave no record")
        return kept


def augmented(data: ImageData, transform: Transform) -> Transform:
    """`transform` after what the config asks for at random: crop, mirroring, choice and dropout of the caption.

    The generator of a sample is drawn from in a fixed order (crop, flip, caption, dropout) and only for what is asked.
    """
    steps: list[Callable[[Record, np.random.Generator], Record]] = []
    if data.crop == "random":
        steps.append(lambda record, rng: {**record, "image": square(record["image"], data.size, rng)})
    if data.flip:
        steps.append(
            lambda record, rng: record if rng.random() < 0.5 else {**record, "image": _mirror(record["image"])}
        )
    if data.captions == "random":
        steps.append(lambda record, rng: {**record, "caption": _choice(record["captions"], rng)})
    if data.caption_dropout:
        steps.append(lambda record, rng: {**record, "caption": ""} if rng.random() < data.caption_dropout else record)

    def transformed(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        for step in steps:
            record = step(record, rng)
        return transform(record, rng)

    return transformed


def _mirror(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def _choice(captions: Sequence[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))] if captions else ""
