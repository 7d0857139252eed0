"""From a config to a job: `config.task` names the builder that assembles objective, frozen weights and data."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sdd_jax.train import EngineConfig, Job


class Task(NamedTuple):
    """What `config.task` stands for.

    builder: `module:function`, config -> Job. keys: the top-level config keys it reads beside the engine's.
    report: `module:function`, (workdir, ReportFlags) -> a Markdown table; '': evaluate does not take such runs.
    optional: keys that a config may leave out, as workdirs older than the key do. recorded: `module:function`, (config,
    fingerprint) -> the config that opens a run which exists, with what it found out at its start; '': its own.
    """

    builder: str
    keys: tuple[str, ...]
    report: str = ""
    optional: tuple[str, ...] = ()
    recorded: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """What `python -m sdd_jax.evaluate --workdir` asks of a task's report.

    samples: held-out examples. steps, guidance: numbers of sampling steps and guidance scales, none: the task's own
    choice. world: whose instruments measure, "portraits" or a directory.
    """

    samples: int = 128
    steps: tuple[int, ...] = ()
    seed: int = 0
    world: str = "portraits"
    guidance: tuple[float, ...] = ()


_WORLD = ("world", "data", "objective")
_MODEL = ("model", "revision", "dtype", "data", "objective")
_CONDITIONAL = (*_MODEL, "adapter")
_MANIPULATOR = (*_MODEL, "manipulator", "identity")
_CCD_REPORT = "sdd_jax.jobs.ccd.report:report"
TASKS = {
    "classifier": Task("sdd_jax.jobs.world.towers:classifier", (*_WORLD, "tower")),
    "regressor": Task("sdd_jax.jobs.world.towers:regressor", (*_WORLD, "tower")),
    "clip": Task("sdd_jax.jobs.world.clip:clip", (*_WORLD, "tower", "tokenizer", "text_encoder")),
    "vae": Task("sdd_jax.jobs.world.first_stage:vae", (*_WORLD, "vae")),
    "unet": Task("sdd_jax.jobs.world.teacher:unet", (*_WORLD, "unet", "scheduler")),
    "style_autoencoder": Task("sdd_jax.jobs.world.style:style_autoencoder", (*_WORLD, "generator", "encoder")),
    "ccd": Task("sdd_jax.jobs.ccd.job:ccd", _CONDITIONAL, _CCD_REPORT, optional=("condition", "init", "lpips")),
    "finetune": Task("sdd_jax.jobs.ccd.baselines:finetune", _CONDITIONAL, _CCD_REPORT, ("condition", "teacher")),
    "cm": Task("sdd_jax.jobs.ccd.baselines:cm", ("teacher", "data", "objective"), _CCD_REPORT),
    "guidance_distill": Task(
        "sdd_jax.jobs.icd.guidance_distill:guidance_distill", _MODEL, "sdd_jax.jobs.icd.guidance_distill:report"
    ),
    "icd": Task(
        "sdd_jax.jobs.icd.job:icd",
        ("dtype", "teacher", "partner", "data", "objective"),
        "sdd_jax.jobs.icd.report:report",
    ),
    "gd": Task("sdd_jax.jobs.ccd.baselines:gd", _MODEL, _CCD_REPORT, ("teacher",)),
    "sdd": Task(
        "sdd_jax.jobs.sdd.job:sdd",
        (*_MANIPULATOR, "timesteps", "search"),
        "sdd_jax.jobs.sdd.report:report",
        recorded="sdd_jax.jobs.sdd.job:recorded",
    ),
    "clip_guidance": Task(
        "sdd_jax.jobs.sdd.job:clip_guidance", (*_MANIPULATOR, "clip"), "sdd_jax.jobs.sdd.report:report"
    ),
    "dds": Task("sdd_jax.jobs.dds.job:dds", (*_MODEL, "tasks"), "sdd_jax.jobs.dds.report:report"),
}


def build(config: ConfigDict) -> Job:
    """Returns the job of `config.task`.

    Raises:
        ValueError: an unknown task, a key that the task does not have, or whatever its builder finds wrong.
    """
    name = config.get("task", "")
    if name not in TASKS:
        raise ValueError(f"config.task={name!r} is not a task; use {', '.join(TASKS)}")
    task = TASKS[name]
    known = {"task", *task.keys, *task.optional, *(field.name for field in dataclasses.fields(EngineConfig))}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"config.{unknown[0]} is not a key of the task {name!r}; keys: {', '.join(sorted(known))}")
    missing = [key for key in task.keys if key not in config]
    if missing:
        raise ValueError(f"config.{missing[0]} is missing: the task {name!r} reads it")
    if config.get("remat", "none") != "none" and {"tower", "vae", "generator"} & set(task.keys):
        raise ValueError(f"config.remat={config.remat!r}: the task {name!r} trains no UNet; leave it at none")
    return _imported(task.builder)(config)


def reopen(config: ConfigDict, fingerprint: Mapping[str, Any]) -> Job:
    """Returns the job of a run that exists, by its config and the fingerprint it recorded.

    Raises: as `build`.
    """
    task = TASKS.get(config.get("task", ""))
    if task is None or not task.recorded:
        return build(config)
    return dataclasses.replace(build(_imported(task.recorded)(config, fingerprint)), config=config)


def report(task: str, workdir: Path, flags: ReportFlags) -> str:
    """Measures a run of `task`: writes WORKDIR/evaluation/ (metrics.json, grid.png), returns a Markdown table.

    Raises:
        ValueError: a task without a report, or whatever its report finds wrong.
    """
    if task not in TASKS or not TASKS[task].report:
        takes = ", ".join(name for name, known in TASKS.items() if known.report)
        raise ValueError(f"--workdir={workdir} is a {task!r} run: evaluate takes runs of {takes}")
    return _imported(TASKS[task].report)(workdir, flags)


def _imported(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)
