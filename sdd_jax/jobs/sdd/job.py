"""Jobs of SDD and of its baseline, CLIP guidance: the same manipulator of the teacher's latents, data and prompt."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import defaults_of, validate
from sdd_jax.data.edit_pairs import edit_pairs
from sdd_jax.data.pipeline import HostBatch, Source
from sdd_jax.data.prompts import FOLDER_FIELDS, PORTRAIT_FIELDS, check_template, edit_of, literal, prompted
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.data.sources.images import SOURCES, ImageOptions, augmented, open_source
from sdd_jax.evals.preprocess import CLIP_MEAN, CLIP_STD
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.sdd.hqs import DEFAULT_RULE, TimestepConfig, job_search, read_search
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.jobs.streams.portraits import PortraitData, stream_of
from sdd_jax.jobs.world.directory import read_tower, world_directory
from sdd_jax.models.clip_vision import load_clip
from sdd_jax.models.load import load
from sdd_jax.models.text import TextConfig
from sdd_jax.models.translator import Translator, save_translator
from sdd_jax.objectives.clip_guidance import CLIPGuidance, CLIPNetwork, PublishedCLIP, TowerCLIP
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.identity import Identity, TowerIdentity
from sdd_jax.objectives.manipulators import LatentManipulator, Manipulator
from sdd_jax.objectives.sdd import SDD
from sdd_jax.objectives.selection import BLIND, parse_rule, select
from sdd_jax.train import Job, Previews
from sdd_jax.types import Frozen, ModelBundle, Params

PREVIEW = 8
_log = logging.getLogger("sdd_jax")

Array = jax.Array | np.ndarray
Editor = Callable[[Params, Frozen, Array], jax.Array]


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

    def open(self) -> Source:
        """The images as records, square; portraits rendered as they are asked for."""
        if self.source == "portraits":
            return PortraitSource(self.split, self.count, cached=False)
        return open_source(self.images(crop="center"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManipulatorConfig:
    """Config of the manipulator: the translator's output (`models.translator`); reencode: see `LatentManipulator`."""

    output: str = "residual"
    reencode: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """Config of the network that recognises individuals: kind "none" or "regressor", of the world at `path`."""

    kind: str = "none"
    path: str = "portraits"

    def __post_init__(self) -> None:
        if self.kind not in ("none", "regressor"):
            raise ValueError(f"kind={self.kind!r} recognises nobody; use none, regressor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Config of the guiding CLIP: kind "world", of the world at `path`; or "clip", a directory as OpenAI's CLIP's."""

    kind: str = "world"
    path: str = "portraits"

    def __post_init__(self) -> None:
        if self.kind not in ("world", "clip"):
            raise ValueError(f"kind={self.kind!r} is no CLIP; use world, clip")


class _Parts(NamedTuple):
    data: EditData
    bundle: ModelBundle
    frozen: Frozen
    manipulator: LatentManipulator
    identity: Identity | None


def sdd(config: ConfigDict) -> Job:
    """Distils the teacher's edit at the selected timesteps into a manipulator."""
    steps = validate(config.timesteps, TimestepConfig, "config.timesteps")
    options = validate(config.search, HQSOptions, "config.search")
    parts = _parts(config)
    timesteps, probabilities = _timesteps(steps, options, parts)
    settings = {
        **config.objective,
        "model": parts.bundle,
        "manipulator": parts.manipulator,
        "timesteps": timesteps,
        "probabilities": probabilities,
        "identity": parts.identity,
    }
    objective = validate(settings, SDD, "config.objective")
    _log.info("timesteps: %s", ", ".join(map(str, timesteps)))
    return _job("SDD", config, parts, objective, {"timesteps": list(timesteps)})


def clip_guidance(config: ConfigDict) -> Job:
    """Trains the manipulator by CLIP in place of the teacher."""
    section = validate(config.clip, CLIPConfig, "config.clip")
    parts = _parts(config)
    network, params, source = _clip(section, parts.bundle)
    parts.frozen["clip"] = params
    settings = {**config.objective, "manipulator": parts.manipulator, "clip": network, "identity": parts.identity}
    return _job("CLIP guidance", config, parts, validate(settings, CLIPGuidance, "config.objective"), {"clip": source})


def make_editor(manipulator: Manipulator) -> Editor:
    """Returns edit(params, frozen, image f32[b,H,W,3]) -> edited f32[b,H,W,3] in [-1, 1]; one pass, one program."""

    @jax.jit
    def edit(params: Params, frozen: Frozen, image: jax.Array) -> jax.Array:
        code = manipulator.source(frozen, {"image": image}, None)
        return jnp.clip(manipulator.image(frozen, manipulator.apply(params, frozen, code)), -1.0, 1.0)

    return lambda params, frozen, image: edit(params, frozen, jnp.asarray(image))


def _parts(config: ConfigDict) -> _Parts:
    data = validate(config.data, EditData, "config.data")
    chosen = validate(config.manipulator, ManipulatorConfig, "config.manipulator")
    identity_config = validate(config.identity, IdentityConfig, "config.identity")
    bundle, params = load(config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.remat)
    frozen = frozen_of(bundle, params)
    phrase = [literal(data.prompt)]
    frozen["phrase"] = (bundle.tokenize(phrase), None if bundle.tokenize_2 is None else bundle.tokenize_2(phrase))
    try:
        translator = Translator(model=bundle, output=chosen.output)
    except ValueError as error:
        raise ValueError(f"config.manipulator: {error}") from None
    identity = None
    if identity_config.kind == "regressor":
        tower, frozen["identity"], _ = read_tower(world_directory(identity_config.path), "regressor")
        identity = TowerIdentity(tower=tower)
    manipulator = LatentManipulator(model=bundle, translator=translator, reencode=chosen.reencode)
    return _Parts(data, bundle, frozen, manipulator, identity)


def _timesteps(
    steps: TimestepConfig, options: HQSOptions, parts: _Parts
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    data, bundle = parts.data, parts.bundle
    if steps.given:
        return steps.given, None
    if not steps.path and steps.rule and parse_rule(steps.rule)[0] in BLIND and steps.weights == "uniform":
        times = options.times(len(bundle.alphas_cumprod))
        return tuple(select(steps.rule, times, np.zeros(len(times)), options.seed).tolist()), None
    if steps.path:
        search = read_search(steps.path)
        if (search.model, search.prompt) != (bundle.source, data.prompt):
            _log.warning("%s was searched on %s for %r", steps.path, search.model, search.prompt)
    else:
        left_out = {**defaults_of(ImageOptions), "prompt": data.prompt}
        made_of = {key: value for key, value in dataclasses.asdict(data).items() if value != left_out.get(key)}
        search = job_search(bundle, parts.frozen, data.open(), data.prompt, options, made_of)
        search = search if steps.rule else search.with_rule(DEFAULT_RULE)
    search = search.with_rule(steps.rule, options.seed) if steps.rule else search
    weights = None if steps.weights == "uniform" else tuple(search.weights(steps.weights).tolist())
    return search.selected, weights


def _clip(config: CLIPConfig, bundle: ModelBundle) -> tuple[CLIPNetwork, Params, str]:
    if config.kind == "world":
        tower, params, _ = read_tower(world_directory(config.path), "clip")
        text = TextConfig.from_json(bundle.configs["text_encoder"])
        width = params["text_projection"]["kernel"].shape[0]
        if text.hidden_size != width:
            raise ValueError(
                f"config.clip: the CLIP of {config.path} reads text states of width {width}, {bundle.source} has "
                f"{text.hidden_size}; use kind='clip' and a directory as of openai/clip-vit-base-patch32"
            )
        return TowerCLIP(tower=tower, text=text), params, config.path
    clip = load_clip(config.path)
    network = PublishedCLIP(vision=clip.vision, text=clip.text, mean=CLIP_MEAN, std=CLIP_STD)
    return network, clip.params, config.path


def _job(
    method: str, config: ConfigDict, parts: _Parts, objective: SDD | CLIPGuidance, fingerprint: dict[str, object]
) -> Job:
    data, bundle, frozen = parts.data, parts.bundle, parts.frozen

    def export(params: Params, directory: Path) -> None:
        save_translator(
            parts.manipulator.translator, params, {"vae": frozen["vae"], **frozen["text"]}, [data.prompt], directory
        )

    return Job(
        name=f"{method}, {data.prompt!r}, data {data.path or data.source}, teacher {bundle.source}",
        objective=objective,
        frozen=frozen,
        stream=_stream(config, parts),
        previews=_previews(parts),
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": bundle.source, "teacher_hash": bundle.content_hash, **fingerprint},
        export=export,
    )


def _stream(config: ConfigDict, parts: _Parts) -> Callable[[int], Iterator[HostBatch]]:
    data, bundle = parts.data, parts.bundle

    def stream(start_step: int) -> Iterator[HostBatch]:
        if data.source != "portraits":
            images = data.images()
            transform = augmented(images, prompted(bundle.tokenize, data.prompt, None, bundle.tokenize_2))
            return stream_of(config, open_source(images), transform)(start_step)
        source = PortraitSource(data.split, data.count)
        moments = encoded_portraits(bundle, parts.frozen["vae"], source)
        transform = prompted(bundle.tokenize, data.prompt, moments, bundle.tokenize_2)
        return stream_of(config, source, transform)(start_step)

    return stream


def _previews(parts: _Parts) -> Previews:
    """Rows of originals, edits, and for portraits the exact counterfactuals."""
    editor, data = make_editor(parts.manipulator), parts.data

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        if data.source == "portraits":
            pairs = edit_pairs([edit_of(data.prompt)], PREVIEW)
            images, truth = pairs.image, [pairs.counterfactual]
        else:
            folder = data.open()
            images = np.stack([to_float(folder[i]["image"]) for i in range(min(PREVIEW, len(folder)))])
            truth = []
        edited = np.asarray(editor(params if ema is None else ema, frozen, images))
        rows = [images, edited, *truth]
        write_grid(directory / f"{step:08d}.png", rows, ["original", "edited", "counterfactual"][: len(rows)])

    return previews
