"""Jobs of CCD's baselines: conditional fine-tuning, CM (fine-tuned, then distilled), GD (distilled, then fine-tuned).

finetune                                      the LDM-SR / ControlNet rows; sampled in 4 steps or 50
finetune -> cm                                config.teacher.workdir of cm: the fine-tuned run
gd -> gd -> ... -> finetune                   each names the run before it; finetune has the student's grid_steps
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdd_jax.config import to_plain, validate
from sdd_jax.jobs.ccd.conditional import AdapterConfig, check_adapter, conditional_job, make_adapter
from sdd_jax.jobs.ccd.data import DESCRIPTIONS, read_data
from sdd_jax.jobs.frozen import weights_of, with_null_text
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.load import load
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.consistency import ConsistencyDistillation
from sdd_jax.objectives.progressive import ProgressiveDistillation
from sdd_jax.runs import open_run, read_config
from sdd_jax.train import Job
from sdd_jax.types import ModelBundle, Params

INHERITED = ("model", "revision", "adapter", "condition")
"""What a CM run's config leaves to the fine-tuned run's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Config of the run that a job starts from: its workdir, '' for the model itself."""

    workdir: str = ""


def finetune(config: ConfigDict) -> Job:
    """Fine-tunes the teacher, or a GD student, on a condition."""
    data, condition = read_data(config)
    adapter_config = validate(config.adapter, AdapterConfig, "config.adapter")
    check_adapter(adapter_config, condition)
    validate({**config.objective, "model": None, "adapter": None}, ConditionalDiffusion, "config.objective")
    start = starting_run(config, ("gd",))

    bundle, params = load(config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.remat)
    unet, lineage = start_unet(start, bundle, params)
    adapter = make_adapter(adapter_config, bundle, jnp.dtype(config.dtype), config.remat, condition.channels)
    parts = {**config.objective, "model": bundle, "adapter": adapter}
    objective = validate(parts, ConditionalDiffusion, "config.objective")
    frozen = {**weights_of(bundle, params), "teacher": {"unet": unet}}
    if objective.caption_dropout:
        frozen = with_null_text(bundle, frozen)
    name = (
        f"fine-tuning for {DESCRIPTIONS[condition.task]}, data {data.path or data.source}, "
        f"{'GD student ' + str(start) if start else 'teacher ' + bundle.source}, adapter {adapter_config.kind}"
    )
    return conditional_job(config, name, "fine-tuned", objective, frozen, data, condition, lineage)


def cm(config: ConfigDict) -> Job:
    """Distils a fine-tuned run into a consistency model of the same condition."""
    start = starting_run(config, ("finetune",))
    if start is None:
        raise ValueError(
            "config.teacher.workdir is empty: CM distils a fine-tuned run, train one with --config=configs/finetune.py"
        )
    if config.ema is None:
        raise ValueError("config.ema=None: the target network of CM is the parameters' average; give it a decay")
    validate({**config.objective, "model": None, "adapter": None}, ConsistencyDistillation, "config.objective")
    started = read_config(start)
    data, condition = read_data({"data": config.data, "condition": started.get("condition", {})})

    tuned, params, _ = open_run(start)
    assert isinstance(tuned.objective, ConditionalDiffusion)
    bundle, adapter = tuned.objective.model, tuned.objective.adapter
    phi = {"adapter": params["adapter"], "unet": params.get("unet", tuned.frozen["teacher"]["unet"])}
    objective = validate(
        {**config.objective, "model": bundle, "adapter": adapter}, ConsistencyDistillation, "config.objective"
    )
    name = f"CM {DESCRIPTIONS[condition.task]}, data {data.path or data.source}, fine-tuned {start}"
    frozen = {**tuned.frozen, "teacher": phi}
    fingerprint = {**tuned.fingerprint, "start_hash": tree_hash(phi)}
    job = conditional_job(config, name, "CM", objective, frozen, data, condition, fingerprint)
    kept = to_plain(started)
    return dataclasses.replace(job, inherited={key: kept[key] for key in INHERITED if key in kept})


def gd(config: ConfigDict) -> Job:
    """One round of guided and progressive distillation of the text-to-image teacher, or of the round before."""
    data, condition = read_data({"data": config.data, "condition": {"task": "none"}})
    options = {**config.objective, "adapter": NoAdapter()}
    validate({**options, "model": None}, ProgressiveDistillation, "config.objective")
    start = starting_run(config, ("gd",))

    bundle, params = load(config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.remat)
    unet, lineage = start_unet(start, bundle, params)
    objective = validate({**options, "model": bundle}, ProgressiveDistillation, "config.objective")
    frozen = {**weights_of(bundle, params), "teacher": {"unet": unet}}
    if objective.guidance_scale != 1.0:
        frozen = with_null_text(bundle, frozen)
    name = (
        f"GD to {objective.grid_steps} steps, data {data.path or data.source}, "
        f"{'student ' + str(start) if start else 'teacher ' + bundle.source}"
    )
    return conditional_job(config, name, "GD", objective, frozen, data, condition, lineage)


def starting_run(config: Mapping[str, Any], tasks: tuple[str, ...]) -> Path | None:
    """The workdir that `config.teacher` names, None for none.

    Raises:
        FileNotFoundError: it holds no run.
        ValueError: it is a run of another task than `tasks`.
    """
    workdir = validate(config.get("teacher", {}), TeacherConfig, "config.teacher").workdir
    if not workdir:
        return None
    task = read_config(Path(workdir)).get("task", "")
    if task not in tasks:
        raise ValueError(f"config.teacher.workdir={workdir} is a {task!r} run: give one of {', '.join(tasks)}")
    return Path(workdir)


def start_unet(start: Path | None, bundle: ModelBundle, params: Params) -> tuple[Params, dict[str, str]]:
    """The UNet that a job starts from, the model's or a GD run's in the model's dtype, and the job's fingerprint.

    Raises:
        ValueError: the run was distilled from another model.
    """
    lineage = {"teacher": bundle.source, "teacher_hash": bundle.content_hash}
    if start is None:
        return params["unet"], lineage
    job, student, _ = open_run(start)
    if job.fingerprint["teacher_hash"] != bundle.content_hash:
        raise ValueError(
            f"config.teacher.workdir={start} was distilled from {job.fingerprint['teacher']}, config.model is "
            f"{bundle.source}: give the model it came from"
        )
    unet = jax.tree.map(lambda own, model: own.astype(model.dtype), student["unet"], params["unet"])
    return unet, {**lineage, "start_hash": tree_hash(unet)}
