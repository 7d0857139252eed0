"""The data of conditional jobs: which condition (`config.condition`), of which pictures (`config.data`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import conditions
from sdd_jax.data.conditions import Condition
from sdd_jax.data.decode import read_image
from sdd_jax.data.degrade_spec import DegradeSpec, preset
from sdd_jax.data.latent_records import LatentRecords
from sdd_jax.data.latent_rows import degraded_latents, plain_latents
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.records import PortraitSource, Transform
from sdd_jax.data.restoration import degraded_images, degraded_portraits
from sdd_jax.data.sources import ImageOptions, Partners, augmented, open_source
from sdd_jax.data.sources.images import SOURCES
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.jobs.streams.portraits import PortraitData, stream_of
from sdd_jax.types import ModelBundle, Params

TASKS = ("superres", "depth", "edit", "inpaint", "canny", "none")
PAIRED = ("depth", "edit")
DESCRIPTIONS = {
    "superres": "super-resolution",
    "depth": "depth-to-image",
    "edit": "instructed editing",
    "inpaint": "inpainting",
    "canny": "edges-to-image",
    "none": "text-to-image",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalData(ImageOptions):
    """Config of the pictures.

    source: "portraits"; images on disk: "folder", "tar", "tfds" or "coco", at `path` (see `data.sources`); "latents":
        what `precompute` made of either at `path`, with its prompts.
    split: of portraits, tfds and coco. count: of portraits. size: image side of images on disk.
    degradation: of super-resolution, a preset's name; "": "portraits" for portraits, "real_esrgan" for all else.
    captions: as prompts: "random", "none", and "full" (portraits: every attribute named) or "first" (of several).
    """

    source: str = "portraits"
    path: str = ""
    split: str = "train"
    count: int = 24_000
    size: int = 64
    degradation: str = ""
    captions: str = "random"

    def __post_init__(self) -> None:
        known = {"portraits": ("random", "full", "none"), "latents": ("random",)}.get(
            self.source, ("random", "first", "none")
        )
        for name, choices in (("source", ("portraits", "latents", *SOURCES)), ("captions", known)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use {', '.join(choices)}")
        if self.source in ("portraits", "latents"):
            self.check_unused(self.source)
        else:
            self.images()
        if self.source == "portraits":
            PortraitData(split=self.split, count=self.count)
        if self.source == "latents" and not self.path:
            raise ValueError("source='latents' needs a path: set config.data.path to what precompute wrote")
        _ = self.degrade_spec

    @property
    def degrade_spec(self) -> DegradeSpec:
        """How super-resolution spoils the pictures; ValueError for an unknown preset."""
        return preset(self.degradation or ("portraits" if self.source == "portraits" else "real_esrgan"), self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """Config of the condition.

    task: superres, depth, edit, inpaint, canny or none. thresholds: of canny. path: of depth and edit on images on
    disk, where the depth maps are, or the pictures before the edit: of a folder a second directory, with files named as
    the images are; of tar the rest of their members' names, "depth.png" of 000001.depth.png beside 000001.jpg.
    """

    task: str = "superres"
    thresholds: tuple[float, ...] = conditions.THRESHOLDS
    path: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is not a condition; use {', '.join(TASKS)}")
        if len(self.thresholds) != 2 or not 0 < self.thresholds[0] <= self.thresholds[1]:
            raise ValueError(f"thresholds={self.thresholds}: give Canny's low and high threshold")

    @property
    def channels(self) -> int:
        """Channels of the condition."""
        return {"inpaint": 4, "none": 0}.get(self.task, 3)


def read_data(config: Mapping[str, Any]) -> tuple[ConditionalData, ConditionConfig]:
    """Reads `config.data` and `config.condition` (a config without one is super-resolution's).

    Raises:
        ValueError: a value that is not known, or two that do not go together.
    """
    data = validate(config["data"], ConditionalData, "config.data")
    condition = validate(config.get("condition", {}), ConditionConfig, "config.condition")
    if data.degradation and condition.task != "superres":
        raise ValueError(f"config.data.degradation={data.degradation!r} has no effect on {condition.task}: leave it ''")
    if data.source == "latents" and condition.task not in ("superres", "none"):
        raise ValueError(f"config.data.source=latents holds no condition for {condition.task}: read the images instead")
    if data.source != "portraits" and condition.task in PAIRED:
        if data.source not in ("folder", "tar") or not condition.path:
            raise ValueError(
                f"{condition.task} of images on disk reads pairs of files: set config.data.source=folder (or tar), "
                "config.data.path and config.condition.path"
            )
        if data.crop != "center" or data.flip:
            raise ValueError(
                f"{condition.task} of images on disk reads pairs of files, which are cropped alike in the middle: set "
                "config.data.crop=center and config.data.flip=false"
            )
    return data, condition


def conditional_stream(
    config: ConfigDict, data: ConditionalData, condition: ConditionConfig, bundle: ModelBundle, vae: Params
) -> Callable[[int], Iterator[HostBatch]]:
    """Returns start_step -> this process's batches; pictures are rendered, encoded or opened when it is called."""

    def stream(start_step: int) -> Iterator[HostBatch]:
        if data.source == "latents":
            records = LatentRecords(data.path, bundle.content_hash, data.max_bad_share)
            degrades = condition.task == "superres"
            rows = degraded_latents(records, data.degrade_spec) if degrades else plain_latents(records)
            return stream_of(config, records, rows)(start_step)
        if data.source != "portraits":
            source = open_source(data.images(), partners_of(condition))
            return stream_of(config, source, augmented(data.images(), _file_rows(data, condition, bundle)))(start_step)
        portraits = PortraitSource(data.split, data.count)
        sharpens = condition.task == "superres" and data.degrade_spec.sharpen_weight
        moments = None if sharpens else encoded_portraits(bundle, vae, portraits)
        maps = conditions.rendered_depth(data.split, data.count) if condition.task == "depth" else None
        return stream_of(config, portraits, _portrait_rows(data, condition, bundle, moments, maps))(start_step)

    return stream


def heldout_rows(
    data: ConditionalData, bundle: ModelBundle, count: int, condition: ConditionConfig | None = None
) -> dict[str, np.ndarray]:
    """The first `count` held-out portraits and their conditions: `image`, `condition`, `input_ids`, `index`."""
    source = PortraitSource("heldout", count, cached=False)
    transform = _portrait_rows(data, condition or ConditionConfig(), bundle)
    rows = [transform(source[i], heldout_rng(i)) for i in range(count)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "index": np.asarray(source.indices)}


def heldout_rng(position: int) -> np.random.Generator:
    """The generator that a held-out example is made with."""
    return np.random.default_rng([7, position])


def _portrait_rows(
    data: ConditionalData,
    condition: ConditionConfig,
    bundle: ModelBundle,
    moments: np.ndarray | None = None,
    maps: np.ndarray | None = None,
) -> Transform:
    if condition.task == "superres":
        return degraded_portraits(bundle.tokenize, data.degrade_spec, data.captions, moments, bundle.tokenize_2)
    makers: dict[str, Condition] = {
        "depth": conditions.portrait_depth(maps),
        "edit": conditions.portrait_edit,
        "inpaint": conditions.portrait_inpainting,
        "canny": conditions.canny((condition.thresholds[0], condition.thresholds[1])),
        "none": conditions.no_condition,
    }
    caption = conditions.portrait_caption(data.captions)
    return conditions.conditioned_rows(bundle.tokenize, makers[condition.task], caption, moments, bundle.tokenize_2)


def file_condition(condition: ConditionConfig) -> Condition:
    """What makes a record's condition of images on disk; of all but super-resolution, which changes its target too."""
    makers: dict[str, Condition] = {
        "inpaint": conditions.inpainting,
        "canny": conditions.canny((condition.thresholds[0], condition.thresholds[1])),
        "none": conditions.no_condition,
        "depth": conditions.file_depth,
        "edit": conditions.file_edit,
    }
    return makers[condition.task]


def _file_rows(data: ConditionalData, condition: ConditionConfig, bundle: ModelBundle) -> Transform:
    if condition.task == "superres":
        return degraded_images(bundle.tokenize, data.degrade_spec, bundle.tokenize_2)
    make, caption = file_condition(condition), conditions.file_caption
    return conditions.conditioned_rows(bundle.tokenize, make, caption, tokenize_2=bundle.tokenize_2)


def partners_of(condition: ConditionConfig) -> Partners | None:
    """The second images that a condition reads beside images on disk, None for none."""
    if condition.task not in PAIRED:
        return None
    return Partners(condition.path, conditions.read_depth if condition.task == "depth" else read_image)
