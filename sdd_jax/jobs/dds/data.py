"""What a translator is trained on: images, their captions, and the captions that each task makes of them.

| source | images | captions |
| --- | --- | --- |
| `portraits` | renders, encoded once | canonical; a task's target ("lion", "white fur") is read as an attribute |
| `teacher` | samples of the frozen teacher, drawn once and kept (the paper) | `captions`, else those of portraits |
| `folder`, `tar`, `tfds`, `coco` | pictures on disk at `path` (`data.sources`) | the first of each |

Outside of the portraits' grammar a task replaces its `source` words by its `target`, and appends the target where a
caption does not hold them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.cache import cached_array
from sdd_jax.data.decode import square
from sdd_jax.data.pipeline import Source
from sdd_jax.data.records import PortraitSource, Record, Transform, to_float
from sdd_jax.data.sources.images import SOURCES, ImageData, ImageOptions, augmented, open_source
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.jobs.editing.methods import guided_unet
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.objectives.inputs import text_of
from sdd_jax.sampling.editing import constant_guidance, prompted
from sdd_jax.sampling.generate import initial_noise, sample
from sdd_jax.types import Frozen, ModelBundle

EXACT = -30.0  # the log-variance of latents that are known exactly
Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationTask:
    """One task: the words it puts in, those it takes out, and a describing phrase (default: the words put in)."""

    target: str
    source: str = ""
    phrase: str = ""

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("target='' says nothing: name what the pictures should show")

    @property
    def description(self) -> str:
        """What the task's embedding starts from."""
        return self.phrase or self.target

    def edit(self, caption: str) -> str:
        """The caption with the task's words in place."""
        pattern = rf"\b{re.escape(self.source)}\b"
        if self.source and re.search(pattern, caption, re.IGNORECASE):
            return re.sub(pattern, lambda _: self.target, caption, flags=re.IGNORECASE)
        return f"{caption}, {self.target}" if caption else self.description


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationData(ImageOptions):
    """Config of the images.

    source, path: see the table; size: side of images on disk. split: of portraits, tfds and coco. count: portraits or
    samples.
    only: words that all portraits share ("cat"; '' takes any). captions: of teacher samples, used in turn; none:
    portraits'. guidance, sampling_steps, sampling_batch: of teacher samples.
    """

    source: str = "portraits"
    path: str = ""
    size: int = 64
    split: str = "train"
    count: int = 5000
    only: str = ""
    captions: tuple[str, ...] = ()
    guidance: float = 3.0
    sampling_steps: int = 50
    sampling_batch: int = 32

    def __post_init__(self) -> None:
        if self.source not in ("portraits", "teacher", *SOURCES):
            raise ValueError(f"source={self.source!r} is not known; use portraits, teacher, {', '.join(SOURCES)}")
        if self.source in SOURCES:
            self.images()
        else:
            self.check_unused(self.source)
            portraits.split_indices(self.split)
        if self.count < 1 or self.sampling_batch < 1:
            raise ValueError(f"count={self.count}, sampling_batch={self.sampling_batch}: give at least 1 of each")
        sampling_times(self.sampling_steps)
        if self.only and not portraits.parse_caption(self.only):
            raise ValueError(f"only={self.only!r} names no attribute of portraits: write it as their captions do")

    def images(self, **changes: Any) -> ImageData:
        """The section as `open_source` takes it; its `captions` are of teacher samples."""
        return super().images(captions="first", **changes)

    @property
    def speaks_portraits(self) -> bool:
        """Whether captions are the portraits' own."""
        return self.source == "portraits" or (self.source == "teacher" and not self.captions)


class Stock(NamedTuple):
    """Images to train on, and what of a record is the network's input, its caption, and its caption after a task.

    augment: what is done at random to a record before a transform reads it.
    """

    source: Source
    inputs: Callable[[Record], Inputs]
    caption: Callable[[Record], str]
    edited: Callable[[Record, TranslationTask], str]
    augment: Callable[[Transform], Transform] = lambda transform: transform


class MatchingPortraits(PortraitSource):
    """The first `count` portraits of a split that `only` describes, rendered when read."""

    def __init__(self, split: str, count: int, only: str = "") -> None:
        wanted = portraits.parse_caption(only)
        self.split = f"{split}-{'-'.join(sorted(wanted.values()))}" if wanted else split
        self.indices = list(itertools.islice(matching_indices(split, only), count))  # type: ignore[assignment]
        self.images = None
        if len(self.indices) < count:
            raise ValueError(f"count={count}: the split {split!r} has {len(self.indices)} portraits of {only!r}")


def matching_indices(split: str, only: str = "") -> Iterator[int]:
    """The portraits of a split that have what `only` names, in order; all of them for ''."""
    wanted = portraits.parse_caption(only)
    for index in portraits.split_indices(split):
        attributes = portraits.portrait(index).attributes
        if all(getattr(attributes, name) == value for name, value in wanted.items()):
            yield index


class TeacherSamples:
    """Samples as records {"latents": f16[h,w,c], "caption"} and, of portraits' captions, "index"."""

    def __init__(self, latents: np.ndarray, captions: Sequence[str], indices: Sequence[int] = ()) -> None:
        self.latents, self.captions, self.indices = latents, captions, indices

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, position: int) -> Record:
        record = {"latents": np.asarray(self.latents[position]), "caption": self.captions[position]}
        return {**record, "index": self.indices[position]} if len(self.indices) else record


def open_stock(data: TranslationData, bundle: ModelBundle, frozen: Frozen, seed: int) -> Stock:
    """The images of a config; encodes or samples what is not cached yet."""
    if data.source in SOURCES:
        images = data.images()
        return Stock(
            open_source(images),
            lambda record: {"image": to_float(square(record["image"], data.size))},
            _own_caption,
            _replaced,
            functools.partial(augmented, images),
        )
    if data.source == "teacher":
        chosen = [] if data.captions else MatchingPortraits(data.split, data.count, data.only).indices
        captions = [portrait_caption(i) for i in chosen] or [
            data.captions[i % len(data.captions)] for i in range(data.count)
        ]
        latents = teacher_samples(bundle, frozen, captions, data, seed)
        edited = _counterfactual if data.speaks_portraits else _replaced
        as_moments = functools.partial(exact_moments, scale=bundle.latent_scale)
        return Stock(TeacherSamples(latents, captions, chosen), as_moments, _own_caption, edited)
    source = MatchingPortraits(data.split, data.count, data.only)
    moments = encoded_portraits(bundle, frozen["vae"], source)

    def inputs(record: Record) -> Inputs:
        return {"moments": np.asarray(moments[record["position"]], np.float32)}

    unrendered: list[Record] = [{"index": index, "position": position} for position, index in enumerate(source.indices)]
    return Stock(unrendered, inputs, lambda record: portrait_caption(record["index"]), _counterfactual)


def translated(bundle: ModelBundle, stock: Stock, tasks: Sequence[TranslationTask]) -> Transform:
    """A stock's record -> its inputs, a `task` drawn at random, `source_ids` and `input_ids` (and those of SDXL)."""

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        k = int(rng.integers(len(tasks)))
        texts = [stock.edited(record, tasks[k]), stock.caption(record)]
        row: dict[str, Any] = {**stock.inputs(record), "task": np.int32(k)}
        row["input_ids"], row["source_ids"] = bundle.tokenize(texts)
        if bundle.tokenize_2 is not None:
            row["input_ids_2"], row["source_ids_2"] = bundle.tokenize_2(texts)
        return row

    return stock.augment(transform)


def teacher_samples(
    bundle: ModelBundle, frozen: Frozen, captions: Sequence[str], data: TranslationData, seed: int
) -> np.ndarray:
    """The teacher's scaled latents for captions, f16 [n,h,w,c], by guided DDIM; drawn once, with progress, and kept.

    Zeros of a teacher that has shapes and no weights (`sdd_jax.aot`).
    """
    schedule = Schedule(bundle.alphas_cumprod)
    times = sampling_times(data.sampling_steps, T=schedule.num_timesteps)
    shape = (data.sampling_batch, bundle.sample_size, bundle.sample_size, bundle.latent_channels)

    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen["teacher"])):
        return np.zeros((len(captions), *shape[1:]), np.float16)

    @jax.jit
    def draw(frozen: Frozen, ids: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
        context, added = text_of(bundle, frozen, ids)
        conditions = {} if added is None else {"added_cond": added}
        network = prompted(guided_unet(bundle, frozen), context, constant_guidance(data.guidance), **conditions)
        return sample(network, initial_noise(rng, shape), times, schedule, bundle.prediction)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(captions), data.sampling_batch):
            part = list(captions[start : start + data.sampling_batch])
            texts = part + part[-1:] * (data.sampling_batch - len(part))
            ids = {"input_ids": jnp.asarray(bundle.tokenize(texts))}
            if bundle.tokenize_2 is not None:
                ids["input_ids_2"] = jnp.asarray(bundle.tokenize_2(texts))
            rng = jax.random.fold_in(jax.random.key(seed), start)
            yield np.asarray(draw(frozen, ids, rng), np.float16)[: len(part)]

    said = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    key = f"{bundle.content_hash} {said} {data.sampling_steps} {data.guidance} {data.sampling_batch} {seed}"
    return cached_array("teacher-samples", key, (len(captions), *shape[1:]), "float16", chunks)


def exact_moments(record: Record, scale: float) -> Inputs:
    """A record's known latents f[h,w,c] as the `moments` f32[h,w,2c] of a posterior without variance."""
    mean = record["latents"].astype(np.float32) / scale
    return {"moments": np.concatenate([mean, np.full_like(mean, EXACT)], -1)}


def portrait_caption(index: int) -> str:
    """The canonical caption of a portrait."""
    return portraits.caption(portraits.portrait(index).attributes)


def check_tasks(tasks: Mapping[str, TranslationTask], data: TranslationData) -> None:
    """Raises ValueError for no task, or one that the portraits' grammar does not understand."""
    if not tasks:
        raise ValueError("config.tasks is empty: name at least one task")
    for name, task in tasks.items():
        if data.speaks_portraits and not portraits.parse_caption(task.target):
            raise ValueError(
                f"config.tasks.{name}.target={task.target!r} names no attribute of portraits: write it as their "
                "captions do, as in lion, white fur, smiling, wearing glasses, facing left, at night, snowing"
            )


def edited_attributes(attributes: portraits.Attributes, task: TranslationTask) -> portraits.Attributes:
    """A portrait's attributes after a task."""
    return dataclasses.replace(attributes, **portraits.parse_caption(task.target))


def _counterfactual(record: Record, task: TranslationTask) -> str:
    return portraits.caption(edited_attributes(portraits.portrait(record["index"]).attributes, task))


def _replaced(record: Record, task: TranslationTask) -> str:
    return task.edit(record["caption"])


def _own_caption(record: Record) -> str:
    return record["caption"]
