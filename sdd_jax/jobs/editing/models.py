"""The models that images are edited with: a loaded one, or the run of a method that edits."""

from __future__ import annotations

import argparse
import importlib
import logging

import jax.numpy as jnp

from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.models.load import load
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle

RUNS = {
    "guidance_distill": "sdd_jax.jobs.icd.guidance_distill:editing_model",
    "icd": "sdd_jax.jobs.icd.job:editing_model",
    "dds": "sdd_jax.jobs.dds.job:editing_model",
    "sdd": "sdd_jax.jobs.sdd.editing:editing_model",
    "clip_guidance": "sdd_jax.jobs.sdd.editing:editing_model",
}
_log = logging.getLogger("sdd_jax")


def open_model(flags: argparse.Namespace) -> tuple[ModelBundle, Frozen]:
    """The model that --model or --workdir names, and what editing reads of it."""
    if flags.workdir is None:
        model, params = load(flags.model, flags.revision, dtype=jnp.dtype(flags.dtype))
        return model, frozen_of(model, params)
    job, params, step = open_run(flags.workdir)
    if job.config.task not in RUNS:
        raise ValueError(f"--workdir={flags.workdir} is a {job.config.task!r} run: edit takes {', '.join(RUNS)} runs")
    _log.info("%s, step %d", job.name, step)
    module, function = RUNS[job.config.task].split(":")
    return getattr(importlib.import_module(module), function)(job, params)
