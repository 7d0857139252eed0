"""From a config to a job: `config.task` names the builder that assembles objective, frozen weights and data."""

from __future__ import annotations

import dataclasses
import importlib
from typing import NamedTuple

from ml_collections import ConfigDict

from sdd_jax.train import EngineConfig, Job


class Task(NamedTuple):
    """builder: `module:function`, config -> Job. keys: the top-level config keys it reads beside the engine's."""

    builder: str
    keys: tuple[str, ...]


_WORLD = ("world", "data", "objective")
TASKS = {
    "classifier": Task("sdd_jax.jobs.towers:classifier", (*_WORLD, "tower")),
    "regressor": Task("sdd_jax.jobs.towers:regressor", (*_WORLD, "tower")),
    "clip": Task("sdd_jax.jobs.clip:clip", (*_WORLD, "tower", "tokenizer", "text_encoder")),
    "vae": Task("sdd_jax.jobs.first_stage:vae", (*_WORLD, "vae")),
    "unet": Task("sdd_jax.jobs.teacher:unet", (*_WORLD, "unet", "scheduler")),
    "ccd": Task("sdd_jax.jobs.ccd:ccd", ("model", "revision", "dtype", "adapter", "data", "objective")),
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
    known = {"task", *task.keys, *(field.name for field in dataclasses.fields(EngineConfig))}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"config.{unknown[0]} is not a key of the task {name!r}; keys: {', '.join(sorted(known))}")
    missing = [key for key in task.keys if key not in config]
    if missing:
        raise ValueError(f"config.{missing[0]} is missing: the task {name!r} reads it")
    module, function = task.builder.split(":")
    return getattr(importlib.import_module(module), function)(config)
