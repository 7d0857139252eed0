"""From a config to a job: `config.task` names the builder that assembles objective, frozen weights and data."""

from __future__ import annotations

import importlib

from ml_collections import ConfigDict

from sdd_jax.train import Job

TASKS = {
    "classifier": "sdd_jax.jobs.towers:classifier",
    "regressor": "sdd_jax.jobs.towers:regressor",
    "clip": "sdd_jax.jobs.clip:clip",
    "vae": "sdd_jax.jobs.first_stage:vae",
    "unet": "sdd_jax.jobs.teacher:unet",
    "ccd": "sdd_jax.jobs.ccd:ccd",
}


def build(config: ConfigDict) -> Job:
    """Returns the job of `config.task`.

    Raises:
        ValueError: an unknown task, or whatever the builder finds wrong with the config.
    """
    task = config.get("task", "")
    if task not in TASKS:
        raise ValueError(f"config.task={task!r} is not a task; use {', '.join(TASKS)}")
    module, function = TASKS[task].split(":")
    return getattr(importlib.import_module(module), function)(config)
