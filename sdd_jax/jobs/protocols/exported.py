"""What `python -m sdd_jax.export` writes in parts, put together with the teacher that it was distilled from.

| in DIR | of |
| --- | --- |
| `unet/`, and `controlnet/` or `t2i_adapter/` where there is a condition | ccd, finetune, cm, gd |
| `forward/` and `reverse/`, each with `unet/` or a LoRA | icd |
| `mapper.safetensors`, of the generator and the encoder that the run named | sdd, clip_guidance of style codes |

How the network is asked (boundaries, grid, guidance, condition) and what it was made from is in the card's record; a
teacher, generator or encoder of another hash is refused. Every other export is a model of its own, which --model names.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.jobs.ccd.conditional import AdapterConfig, make_adapter
from sdd_jax.jobs.ccd.data import ConditionConfig
from sdd_jax.jobs.editing.methods import TrainedScales, frozen_of, reads_guidance
from sdd_jax.jobs.frozen import weights_of
from sdd_jax.jobs.icd.job import parse_boundaries
from sdd_jax.jobs.icd.teacher import MODELS
from sdd_jax.jobs.sdd.editing import manipulating_model
from sdd_jax.jobs.sdd.style import StyleConfig, read_networks, style_parts
from sdd_jax.jobs.sdd.style_codes import StyleData
from sdd_jax.models import convert, hub, lora, lora_files
from sdd_jax.models.card import Record
from sdd_jax.models.load import load, read_component
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.consistency import ConsistencyDistillation
from sdd_jax.objectives.manipulators import StyleManipulator
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.objectives.progressive import ProgressiveDistillation
from sdd_jax.types import Frozen, ModelBundle, Params

NETWORKS: Mapping[str, type[ConditionalNetwork]] = {
    "ccd": CCD,
    "finetune": ConditionalDiffusion,
    "cm": ConsistencyDistillation,
    "gd": ProgressiveDistillation,
}
ADAPTERS = {"controlnet": "controlnet", "t2i": "t2i_adapter"}
"""The folder of each part of an adapter's parameters."""
UNCONDITIONAL = {"adapter": {"kind": "none"}, "condition": {"task": "none"}}
"""What a config without these sections has: GD's."""
_log = logging.getLogger("sdd_jax")


def exported_condition(record: Record) -> dict[str, Any]:
    """The condition's config of an exported conditional model."""
    return dict(record.config.get("condition", UNCONDITIONAL["condition"]))


def open_exported_network(flags: argparse.Namespace, record: Record) -> tuple[ConditionalNetwork, Params, Frozen]:
    """The network, parameters and frozen weights of an exported CCD model or baseline.

    Raises:
        ValueError: an export of another task, or of another teacher.
        FileNotFoundError: a part is missing.
    """
    config = {**UNCONDITIONAL, **record.config}
    if config["task"] not in NETWORKS:
        raise _of_another_task(flags, record, tuple(NETWORKS))
    condition = validate(config["condition"], ConditionConfig, "config.condition")
    adapter_config = validate(config["adapter"], AdapterConfig, "config.adapter")
    dtype = jnp.dtype(flags.dtype)
    model, weights = load(flags.model, flags.revision, dtype=dtype)
    _check_teacher(flags, record, model, weights)
    adapter = make_adapter(adapter_config, model, dtype, channels=condition.channels)
    fields = {**config["objective"], "model": model, "adapter": adapter}
    if config["task"] == "ccd":
        fields["x_space"] = "latent"  # the space of a loss that is not taken here may need weights of its own
    network = validate(fields, NETWORKS[config["task"]], "config.objective")
    unet = read_component(flags.exported, model.configs, "unet", dtype)
    shapes = jax.eval_shape(adapter.init, jax.random.key(0), unet)
    parts = {name: _read(flags.exported / ADAPTERS[name], tree) for name, tree in shapes.items()}
    return network, {"unet": unet, "adapter": parts}, weights_of(model, weights)


def open_exported(flags: argparse.Namespace, record: Record) -> tuple[ModelBundle, Frozen]:
    """An exported iCD pair or mapper as a model to edit or draw with, as a run of it is opened.

    Raises:
        ValueError: an export of another task or of another teacher, generator or encoder; of iCD, a teacher that needs
            two passes.
        FileNotFoundError: a part is missing.
    """
    task, kind = record.config.get("task"), record.config.get("manipulator", {}).get("kind")
    is_mapper = task in ("sdd", "clip_guidance") and kind == "stylegan"
    if task != "icd" and not is_mapper:
        raise _of_another_task(flags, record, ("icd", "mappers of sdd and clip_guidance"))
    model, weights = load(flags.model, flags.revision, dtype=jnp.dtype(flags.dtype))
    _check_teacher(flags, record, model, weights)
    opened = _mapper if is_mapper else _pair
    return opened(flags, record, model, frozen_of(model, weights))


def exported_hash(directory: Path) -> str:
    """The sha256 of an export's weights."""
    return hub.content_hash(sorted(directory.rglob("*.safetensors")), directory)


def _pair(flags: argparse.Namespace, record: Record, model: ModelBundle, frozen: Frozen) -> tuple[ModelBundle, Frozen]:
    if not reads_guidance(model):
        raise ValueError(
            f"--model={flags.model} does not read its guidance scale: name the exported run of stage 1, or what "
            "config.teacher.model named"
        )
    unets = {name: _read_unet(flags.exported / name, model, frozen["teacher"]["unet"]) for name in MODELS}
    objective = record.config["objective"]
    scales = TrainedScales(tuple(objective["scales"]))
    boundaries = parse_boundaries(objective["boundaries"], objective["grid_steps"])
    return model, {**frozen, **unets, "boundaries": boundaries, "scales": scales}


def _mapper(
    flags: argparse.Namespace, record: Record, model: ModelBundle, frozen: Frozen
) -> tuple[ModelBundle, Frozen]:
    config = ConfigDict({**record.config, "dtype": flags.dtype})
    trained = {**record.config["manipulator"], "mapper": str(flags.exported / "mapper.safetensors")}
    chosen = validate(trained, StyleConfig, "config.manipulator")
    data = validate(record.config["data"], StyleData, "config.data")
    parts = style_parts(read_networks(data, chosen), config, data, chosen, model, frozen)
    for name, found in parts.fingerprint.items():
        if found != record.made_from.get(name):
            raise ValueError(
                f"--exported={flags.exported}: its mapper is of another {name} than config.manipulator.{name}="
                f"{trained[name] or trained['generator']} has now: put back the one it was trained with"
            )
    assert isinstance(parts.manipulator, StyleManipulator)
    return manipulating_model(parts.manipulator, parts.frozen, parts.frozen["mapper"])


def _of_another_task(flags: argparse.Namespace, record: Record, tasks: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"--exported={flags.exported} is of a {record.config.get('task', '')!r} run; this takes {', '.join(tasks)}: "
        "name the run by --workdir, an export that is a model of its own by --model"
    )


def _check_teacher(flags: argparse.Namespace, record: Record, model: ModelBundle, weights: Params) -> None:
    """Refuses another teacher: by the hash of its files or, of an exported run of stage 1, of the run's UNet."""
    expected = record.made_from.get("teacher_hash")
    if expected == model.content_hash:
        return
    if record.config["task"] == "icd" and record.config.get("teacher", {}).get("workdir"):
        if flags.dtype != "float32":
            _log.warning("--dtype=%s: whether --model=%s is the teacher is not checked", flags.dtype, flags.model)
            return
        if expected == hub.tree_hash(weights["unet"]):
            return
    raise ValueError(
        f"--model={flags.model} is not the teacher of --exported={flags.exported}, which was distilled from "
        f"{record.made_from.get('teacher')} (hash {str(expected)[:12]}, this one's is {model.content_hash[:12]})"
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
