"""Jobs of SDD and of its baseline, CLIP guidance: the same manipulator, data and prompt.

`config.manipulator.kind` says what is trained: "latent", a translator of the teacher's latents (`jobs.sdd.latent`), or
"stylegan", a mapper of a generator's codes (`jobs.sdd.style`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import defaults_of, validate
from sdd_jax.evals.preprocess import CLIP_MEAN, CLIP_STD
from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.sdd.data import EditData, Parts
from sdd_jax.jobs.sdd.hqs import DEFAULT_RULE, Search, TimestepConfig, job_search, read_search
from sdd_jax.jobs.sdd.latent import LatentConfig, latent_parts
from sdd_jax.jobs.sdd.pictures import make_previews
from sdd_jax.jobs.sdd.style import RANDOM, StyleConfig, StyleData, read_networks, style_parts
from sdd_jax.jobs.world.directory import read_tower, world_directory
from sdd_jax.models.clip_vision import load_clip
from sdd_jax.models.irse import load_ir_se50, random_recogniser
from sdd_jax.models.load import load
from sdd_jax.models.text import TextConfig
from sdd_jax.objectives.clip_guidance import CLIPGuidance, CLIPNetwork, PublishedCLIP, TowerCLIP
from sdd_jax.objectives.hqs import READING, HQSOptions
from sdd_jax.objectives.identity import FaceIdentity, Identity, TowerIdentity
from sdd_jax.objectives.sdd import SDD, time_distribution
from sdd_jax.objectives.selection import check_rule, select
from sdd_jax.train import Job
from sdd_jax.types import ModelBundle, Params

_log = logging.getLogger("sdd_jax")


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
    kept = read_search(steps.path) if steps.path else None
    if kept is None and not steps.given:
        check_rule(steps.rule or DEFAULT_RULE, len(options.times()), "config.timesteps.rule: ")
    setting = _setting(config)
    settings = {
        **config.objective,
        "model": setting.bundle,
        "manipulator": setting.parts.manipulator,
        "identity": setting.identity,
    }
    objective = validate(settings, SDD, "config.objective")
    timesteps, weights = _timesteps(steps, options, setting, kept)
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
    make = _clip(section)
    setting = _setting(config)
    network, params = make(setting.bundle)
    setting.parts.frozen["clip"] = params
    settings = {
        **config.objective,
        "manipulator": setting.parts.manipulator,
        "clip": network,
        "identity": setting.identity,
    }
    objective = validate(settings, CLIPGuidance, "config.objective")
    return _job("CLIP guidance", config, setting, objective, {"clip": section.path})


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


def recorded(config: ConfigDict, fingerprint: Mapping[str, Any]) -> ConfigDict:
    """The config of a run that exists, with the timesteps that it was trained on: opening it searches nothing."""
    if "timesteps" not in fingerprint:
        return config
    config = ConfigDict(config.copy_and_resolve_references())
    with config.unlocked(), config.ignore_type():
        config.timesteps = {**defaults_of(TimestepConfig), "given": tuple(fingerprint["timesteps"])}
    return config.lock()


def _timesteps(
    steps: TimestepConfig, options: HQSOptions, setting: _Setting, kept: Search | None
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    data, bundle, parts = setting.data, setting.bundle, setting.parts
    if steps.given:
        return steps.given, None
    if not steps.path and not steps.searches:
        times = options.times(len(bundle.alphas_cumprod))
        return tuple(select(steps.rule, times, np.zeros(len(times)), options.seed).tolist()), None
    if kept is not None:
        search = kept
        if (search.model, search.prompt) != (bundle.source, data.prompt):
            _log.warning("%s was searched on %s for %r", steps.path, search.model, search.prompt)
        for name in READING:
            if name in search.options and search.options[name] != getattr(options, name):
                _log.warning("%s: %s=%r, config.search has %r: another reading of the score may select others",
                             steps.path, name, search.options[name], getattr(options, name))  # fmt: skip
    else:
        search = job_search(bundle, parts.frozen, parts.images(), data.prompt, options, parts.made_of)
        search = search if steps.rule else search.with_rule(DEFAULT_RULE)
    search = search.with_rule(steps.rule, options.seed) if steps.rule else search
    weights = None if steps.weights == "uniform" else tuple(search.weights(steps.weights).tolist())
    return search.selected, weights


def _clip(config: CLIPConfig) -> Callable[[ModelBundle], tuple[CLIPNetwork, Params]]:
    """Reads the guiding CLIP; returns what makes it the network for a teacher, with its parameters."""
    if config.kind == "clip":
        clip = load_clip(config.path)
        network = PublishedCLIP(vision=clip.vision, text=clip.text, mean=CLIP_MEAN, std=CLIP_STD)
        return lambda bundle: (network, clip.params)
    tower, params, _ = read_tower(world_directory(config.path), "clip")

    def with_text_of(bundle: ModelBundle) -> tuple[CLIPNetwork, Params]:
        text = TextConfig.from_json(bundle.configs["text_encoder"])
        width = params["text_projection"]["kernel"].shape[0]
        if text.hidden_size != width:
            raise ValueError(
                f"config.clip: the CLIP of {config.path} reads text states of width {width}, {bundle.source} has "
                f"{text.hidden_size}; use kind='clip' and a directory as of openai/clip-vit-base-patch32"
            )
        return TowerCLIP(tower=tower, text=text), params

    return with_text_of


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
        previews=make_previews(data, parts),
        batch_size=config.batch_size,
        config=config,
        fingerprint={**teacher, **parts.fingerprint, **fingerprint},
        export=parts.export,
    )
