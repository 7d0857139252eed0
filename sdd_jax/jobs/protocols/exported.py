"""What `python -m sdd_jax.export` writes in parts, put together with the teacher that it was distilled from.

| in DIR | of |
| --- | --- |
| `unet/`, and `controlnet/` or `t2i_adapter/` where there is a condition | ccd, finetune |
| `forward/` and `reverse/`, each with `unet/` or a LoRA | icd |

How the network is asked (boundaries, grid, guidance, condition) is in the card's config. Every other export is a model
of its own, which --model names.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.config import validate
from sdd_jax.jobs.ccd.conditional import AdapterConfig, make_adapter
from sdd_jax.jobs.ccd.data import ConditionConfig
from sdd_jax.jobs.editing.methods import frozen_of, reads_guidance
from sdd_jax.jobs.frozen import weights_of
from sdd_jax.jobs.icd.job import parse_boundaries
from sdd_jax.jobs.icd.teacher import MODELS
from sdd_jax.models import convert, hub, lora, lora_files
from sdd_jax.models.load import load, read_component
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.types import Frozen, ModelBundle, Params

ADAPTERS = {"controlnet": "controlnet", "t2i": "t2i_adapter"}
"""The folder of each part of an adapter's parameters."""

Config = Mapping[str, Any]


def exported_condition(flags: argparse.Namespace, config: Config) -> Config:
    """The condition's config of an exported CCD or fine-tuned model; ValueError for an export of another task."""
    _check_task(flags, config, ("ccd", "finetune"))
    section: Config = config.get("condition", {})
    return section


def open_exported_network(flags: argparse.Namespace, config: Config) -> tuple[ConditionalNetwork, Params, Frozen]:
    """The network, parameters and frozen weights of an exported CCD or fine-tuned model; config: its card's.

    Raises:
        ValueError: an export of another task, or one that does not fit the teacher.
        FileNotFoundError: a part is missing.
    """
    condition = validate(exported_condition(flags, config), ConditionConfig, "config.condition")
    adapter_config = validate(config["adapter"], AdapterConfig, "config.adapter")
    dtype = jnp.dtype(flags.dtype)
    model, weights = load(flags.model, flags.revision, dtype=dtype)
    adapter = make_adapter(adapter_config, model, dtype, channels=condition.channels)
    fields = {**config["objective"], "model": model, "adapter": adapter}
    network: ConditionalNetwork
    if config["task"] == "finetune":
        network = validate(fields, ConditionalDiffusion, "config.objective")
    else:
        # the space of a loss that is not taken here needs weights of its own
        network = validate({**fields, "x_space": "latent"}, CCD, "config.objective")
    unet = read_component(flags.exported, model.configs, "unet", dtype)
    shapes = jax.eval_shape(adapter.init, jax.random.key(0), unet)
    parts = {name: _read(flags.exported / ADAPTERS[name], tree) for name, tree in shapes.items()}
    return network, {"unet": unet, "adapter": parts}, weights_of(model, weights)


def open_exported_pair(flags: argparse.Namespace, config: Config) -> tuple[ModelBundle, Frozen]:
    """An exported iCD pair as a model to edit and draw with, as `jobs.icd.job.editing_model` gives it of a run.

    Raises:
        ValueError: an export of another task, one that does not fit the teacher, or a teacher that needs two passes.
        FileNotFoundError: one of the two models is missing.
    """
    _check_task(flags, config, ("icd",))
    model, weights = load(flags.model, flags.revision, dtype=jnp.dtype(flags.dtype))
    if not reads_guidance(model):
        raise ValueError(
            f"--model={flags.model} does not read its guidance scale: name the exported run of stage 1, or what "
            "config.teacher.model named"
        )
    frozen = frozen_of(model, weights)
    unets = {name: _read_unet(flags.exported / name, model, weights["unet"]) for name in MODELS}
    return model, {**frozen, **unets, "boundaries": parse_boundaries(config["objective"]["boundaries"])}


def exported_hash(directory: Path) -> str:
    """The sha256 of an export's weights."""
    return hub.content_hash(sorted(directory.rglob("*.safetensors")), directory)


def _check_task(flags: argparse.Namespace, config: Config, tasks: tuple[str, ...]) -> None:
    task = config.get("task", "")
    if task not in tasks:
        raise ValueError(
            f"--exported={flags.exported} is of a {task!r} run; this takes {', '.join(tasks)}: name the run by "
            "--workdir, an export that is a model of its own by --model"
        )


def _read_unet(directory: Path, model: ModelBundle, teacher: Params) -> Params:
    adapter = directory / "pytorch_lora_weights.safetensors"
    if not adapter.is_file():
        dtype = jax.tree.leaves(teacher)[0].dtype
        return read_component(directory, model.configs, "unet", dtype)
    weights, spec = lora_files.load_lora(adapter, teacher)
    return lora.merge(teacher, weights, spec)


def _read(directory: Path, shapes: Params) -> Params:
    found, source = hub.read_weights(directory)
    return jax.tree.map(jnp.asarray, convert.match(found, shapes, source))
