"""Job of CCD: the teacher, the adapter and the conditional data that `configs/ccd_*.py` name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.jobs.ccd.conditional import AdapterConfig, check_adapter, conditional_job, make_adapter
from sdd_jax.jobs.ccd.data import DESCRIPTIONS, read_data
from sdd_jax.jobs.frozen import weights_of, with_null_text
from sdd_jax.models.load import load
from sdd_jax.models.lpips import load_lpips, lpips
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.objectives.ccd import CCD
from sdd_jax.train import Job
from sdd_jax.types import Params

INITS = ("teacher", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LpipsConfig:
    """Config of x_space "lpips": "vgg" or "alex", torchvision's weights of it, and the lpips package's v0.1 file."""

    network: str = "vgg"
    backbone: str = ""
    linear: str = ""


def ccd(config: ConfigDict) -> Job:
    """Distils the teacher into a few-step conditional model."""
    data, condition = read_data(config)
    adapter_config = validate(config.adapter, AdapterConfig, "config.adapter")
    check_adapter(adapter_config, condition)
    perceptual = validate(config.get("lpips", {}), LpipsConfig, "config.lpips")
    if config.ema is None:
        raise ValueError("config.ema=None: the target network of CCD is the parameters' average; give it a decay")

    def fresh_unet(rng: jax.Array) -> Params:
        return init_unet(make_unet(bundle.configs["unet"]), rng)

    options: dict[str, Any] = {**config.objective, "init_unet": fresh_unet if starts_at_random(config) else None}
    if perceptual.backbone and perceptual.linear:
        options["perceptual"] = functools.partial(lpips, name=perceptual.network)
    # mistakes are found before weights are read
    validate({**options, "model": None, "adapter": None}, CCD, "config.objective")

    bundle, params = load(config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.remat)
    adapter = make_adapter(adapter_config, bundle, jnp.dtype(config.dtype), config.remat, condition.channels)
    objective = validate({**options, "model": bundle, "adapter": adapter}, CCD, "config.objective")
    frozen = weights_of(bundle, params)
    if objective.guidance:
        frozen = with_null_text(bundle, frozen)
    if objective.x_space == "lpips":
        frozen["lpips"] = load_lpips(perceptual.network, perceptual.backbone, perceptual.linear)
    name = (
        f"CCD {DESCRIPTIONS[condition.task]}, data {data.path or data.source}, teacher {bundle.source}, "
        f"adapter {adapter_config.kind}"
    )
    fingerprint = {"teacher": bundle.source, "teacher_hash": bundle.content_hash}
    return conditional_job(config, name, "CCD", objective, frozen, data, condition, fingerprint)


def starts_at_random(config: Mapping[str, Any]) -> bool:
    """Whether `config.init` asks for a random UNet in place of the teacher; ValueError for what it does not know."""
    start = config.get("init", "teacher")
    if start not in INITS:
        raise ValueError(f"config.init={start!r} is not known; use {', '.join(INITS)}")
    return start == "random"
