"""Jobs of SDD and of its baseline, CLIP guidance: the same manipulator, data and prompt.

`config.manipulator.kind` says what is trained: "latent", a translator of the teacher's latents (`jobs.sdd.latent`), or
"stylegan", a mapper of a generator's codes (`jobs.sdd.style`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data.edit_pairs import edit_pairs
from sdd_jax.data.prompts import edit_of
from sdd_jax.evals.preprocess import CLIP_MEAN, CLIP_STD
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.sdd.data import EditData, Parts
from sdd_jax.jobs.sdd.hqs import DEFAULT_RULE, TimestepConfig, job_search, read_search
from sdd_jax.jobs.sdd.latent import LatentConfig, latent_parts
from sdd_jax.jobs.sdd.style import RANDOM, StyleConfig, StyleData, read_networks, style_parts
from sdd_jax.jobs.world.directory import read_tower, world_directory
from sdd_jax.models.clip_vision import load_clip
from sdd_jax.models.irse import load_ir_se50, random_recogniser
from sdd_jax.models.load import load
from sdd_jax.models.text import TextConfig
from sdd_jax.objectives.clip_guidance import CLIPGuidance, CLIPNetwork, PublishedCLIP, TowerCLIP
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.identity import FaceIdentity, Identity, TowerIdentity
from sdd_jax.objectives.manipulators import Manipulator
from sdd_jax.objectives.sdd import SDD, time_distribution
from sdd_jax.objectives.selection import select
from sdd_jax.train import Job, Previews
from sdd_jax.types import Frozen, ModelBundle, Params

PREVIEW = 8
_log = logging.getLogger("sdd_jax")

Array = jax.Array | np.ndarray
Editor = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """Config of the network that recognises individuals.

    kind: "none"; "regressor", of the world at `path`; or "arcface", IR-SE50 (`models.irse`) in the file `path`, or with
    path "random:" at random.
    """

    kind: str = "none"
    path: str = "portraits"

    def __post_init__(self) -> None:
        if self.kind not in ("none", "regressor", "arcface"):
            raise ValueError(f"kind={self.kind!r} recognises nobody; use none, regressor, arcface")
        if self.kind == "arcface" and self.path in ("", "portraits"):
            raise ValueError("kind='arcface' has no weights: set config.identity.path to model_ir_se50.pth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Config of the guiding CLIP: kind "world", of the world at `path`; or "clip", a directory as OpenAI's CLIP's."""

    kind: str = "world"
    path: str = "portraits"

    def __post_init__(self) -> None:
        if self.kind not in ("world", "clip"):
            raise ValueError(f"kind={self.kind!r} is no CLIP; use world, clip")
        if self.kind == "clip" and self.path in ("", "portraits"):
            raise ValueError("kind='clip' has no weights: set config.clip.path to a directory as of openai/clip-vit-*")


class _Kind(NamedTuple):
    """A kind of manipulator. prepare: (data, options) -> what is read before the model, as `parts`' first arguments."""

    data: type[EditData]
    options: type[Any]
    prepare: Callable[[Any, Any], tuple[Any, ...]]
    parts: Callable[..., Parts]


_KINDS = {
    "latent": _Kind(EditData, LatentConfig, lambda data, options: (), latent_parts),
    "stylegan": _Kind(StyleData, StyleConfig, lambda data, options: (read_networks(data, options),), style_parts),
}


class _Setting(NamedTuple):
    data: EditData
    bundle: ModelBundle
    parts: Parts
    identity: Identity | None


def sdd(config: ConfigDict) -> Job:
    """Distils the teacher's edit at the selected timesteps into a manipulator."""
    steps = validate(config.timesteps, TimestepConfig, "config.timesteps")
    options = validate(config.search, HQSOptions, "config.search")
    setting = _setting(config)
    settings = {
        **config.objective,
        "model": setting.bundle,
        "manipulator": setting.parts.manipulator,
        "identity": setting.identity,
    }
    objective = validate(settings, SDD, "config.objective")
    timesteps, weights = _timesteps(steps, options, setting)
    try:
        distribution = time_distribution(timesteps, len(setting.bundle.alphas_cumprod), weights)
    except ValueError as error:
        raise ValueError(f"config.timesteps: {error}") from None
    setting.parts.frozen["timesteps"] = distribution
    _log.info("timesteps: %s", ", ".join(map(str, timesteps)))
    return _job("SDD", config, setting, objective, {"timesteps": list(timesteps)})


def clip_guidance(config: ConfigDict) -> Job:
    """Trains the manipulator by CLIP in place of the teacher."""
    section = validate(config.clip, CLIPConfig, "config.clip")
    setting = _setting(config)
    network, params, source = _clip(section, setting.bundle)
    setting.parts.frozen["clip"] = params
    settings = {
        **config.objective,
        "manipulator": setting.parts.manipulator,
        "clip": network,
        "identity": setting.identity,
    }
    objective = validate(settings, CLIPGuidance, "config.objective")
    return _job("CLIP guidance", config, setting, objective, {"clip": source})


def make_editor(manipulator: Manipulator) -> Editor:
    """Returns edit(params, frozen, image f32[b,H,W,3], strength=1) -> edited f32[b,H,W,3] in [-1, 1], in one pass.

    strength: the share s of the edit that is made, code + s (code' - code); one program for all.
    """
    edit = _batch_editor(manipulator)

    def editor(params: Params, frozen: Frozen, image: Array, strength: float = 1.0) -> jax.Array:
        return edit(params, frozen, {"image": jnp.asarray(image)}, strength)

    return editor


def make_viewer(manipulator: Manipulator) -> Callable[[Frozen, Mapping[str, Array]], jax.Array]:
    """Returns view(frozen, batch) -> the pictures of a batch's codes, unedited, f32[b,H,W,3] in [-1, 1]."""
    return jax.jit(
        lambda frozen, batch: _shown(manipulator.image(frozen, manipulator.source(frozen, batch, None)), batch)
    )


def _batch_editor(manipulator: Manipulator) -> Callable[..., jax.Array]:
    @jax.jit
    def edit(params: Params, frozen: Frozen, batch: dict[str, jax.Array], strength: float = 1.0) -> jax.Array:
        code = manipulator.source(frozen, batch, None)
        changed = manipulator.apply(params, frozen, code)
        changed = jax.tree.map(lambda before, after: before + strength * (after - before), code, changed)
        return _shown(manipulator.image(frozen, changed), batch)

    return edit


def _shown(picture: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Clipped, and as large as the batch's images where it has any: a generator has a size of its own."""
    if "image" in batch and batch["image"].shape[1:3] != picture.shape[1:3]:
        picture = jax.image.resize(picture, batch["image"].shape, "bilinear")
    return jnp.clip(picture, -1.0, 1.0)


def _setting(config: ConfigDict) -> _Setting:
    name = config.manipulator.get("kind", "latent")
    if name not in _KINDS:
        raise ValueError(f"config.manipulator.kind={name!r} is no manipulator; use {', '.join(_KINDS)}")
    kind = _KINDS[name]
    data = validate(config.data, kind.data, "config.data")
    chosen = validate(config.manipulator, kind.options, "config.manipulator")
    identity_config = validate(config.identity, IdentityConfig, "config.identity")
    prepared = kind.prepare(data, chosen)
    identity, recogniser = _identity(identity_config)
    bundle, params = load(config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.remat)
    parts = kind.parts(*prepared, config, data, chosen, bundle, frozen_of(bundle, params))
    if identity is not None:
        parts.frozen["identity"] = recogniser
    return _Setting(data, bundle, parts, identity)


def _identity(config: IdentityConfig) -> tuple[Identity | None, Params]:
    if config.kind == "regressor":
        tower, params, _ = read_tower(world_directory(config.path), "regressor")
        return TowerIdentity(tower=tower), params
    if config.kind == "arcface":
        return FaceIdentity(), random_recogniser() if config.path == RANDOM else load_ir_se50(config.path)
    return None, {}


def _timesteps(
    steps: TimestepConfig, options: HQSOptions, setting: _Setting
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    data, bundle, parts = setting.data, setting.bundle, setting.parts
    if steps.given:
        return steps.given, None
    if not steps.path and not steps.searches:
        times = options.times(len(bundle.alphas_cumprod))
        return tuple(select(steps.rule, times, np.zeros(len(times)), options.seed).tolist()), None
    if steps.path:
        search = read_search(steps.path)
        if (search.model, search.prompt) != (bundle.source, data.prompt):
            _log.warning("%s was searched on %s for %r", steps.path, search.model, search.prompt)
    else:
        search = job_search(bundle, parts.frozen, parts.images(), data.prompt, options, parts.made_of)
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
    method: str, config: ConfigDict, setting: _Setting, objective: SDD | CLIPGuidance, fingerprint: dict[str, object]
) -> Job:
    data, bundle, parts = setting.data, setting.bundle, setting.parts
    named = [f"{method}, {data.prompt!r}", parts.title, f"data {data.path or data.source}", f"teacher {bundle.source}"]
    teacher = {"teacher": bundle.source, "teacher_hash": bundle.content_hash}
    return Job(
        name=", ".join(filter(None, named)),
        objective=objective,
        frozen=parts.frozen,
        stream=parts.stream,
        previews=_previews(data, parts),
        batch_size=config.batch_size,
        config=config,
        fingerprint={**teacher, **parts.fingerprint, **fingerprint},
        export=parts.export,
    )


def _previews(data: EditData, parts: Parts) -> Previews:
    """Rows of originals, what codes make of them unedited, edits, and for portraits the exact counterfactuals."""
    edit, view = _batch_editor(parts.manipulator), make_viewer(parts.manipulator)

    @functools.cache
    def examples() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        if data.source != "portraits":
            return parts.examples(PREVIEW), {}
        pairs = edit_pairs([edit_of(data.prompt)], PREVIEW)
        return {"image": pairs.image}, {"counterfactual": pairs.counterfactual}

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        batch, truth = examples()
        rows = {"original": batch["image"]} if "image" in batch else {}
        if parts.generates:
            rows["generated"] = np.asarray(view(frozen, batch))
        rows["edited"] = np.asarray(edit(params if ema is None else ema, frozen, batch))
        rows |= truth
        write_grid(directory / f"{step:08d}.png", list(rows.values()), list(rows))

    return previews
