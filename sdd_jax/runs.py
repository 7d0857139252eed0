"""Finished and unfinished runs, read back: what sampling, evaluation and export start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import defaults_of
from sdd_jax.jobs import reopen
from sdd_jax.train import EngineConfig, Job, engine_config
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.optim import make_optimizer
from sdd_jax.training.state import TrainState, create_state
from sdd_jax.types import Params


def read_config(workdir: Path) -> ConfigDict:
    """Returns the locked config of a workdir's run; FileNotFoundError where it holds none."""
    return _read_record(workdir)[0]


def _read_record(workdir: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """The config and the fingerprint that a run wrote at its start."""
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--workdir={workdir} holds no run (no config.json): train one with python -m sdd_jax.main"
        )
    record = json.loads(path.read_text())
    config = ConfigDict(defaults_of(EngineConfig))
    with config.ignore_type():
        config.update(record["config"])
    return config.lock(), record.get("fingerprint", {})


def open_run(workdir: Path) -> tuple[Job, Params, int]:
    """Returns a workdir's job, its newest verified parameters (the average where it keeps one) and their step.

    The parameters alone go to the default device, not bound to it: the optimiser's moments would take twice their room.

    Raises: as `open_state`.
    """
    job, state = open_state(workdir)
    return job, jax.device_put(state.params if state.ema is None else state.ema), int(state.step)


def open_state(workdir: Path) -> tuple[Job, TrainState]:
    """Returns a workdir's job and its newest verified state, as NumPy arrays; every process of several reads it whole.

    Raises:
        FileNotFoundError: the workdir holds no run, or no checkpoint yet.
        ValueError: its checkpoints are damaged, or were trained against other weights than are found now.
    """
    config, fingerprint = _read_record(workdir)
    job = reopen(config, fingerprint)
    engine = engine_config(config)
    optimizer, _ = make_optimizer(engine.optimizer, engine.steps)
    shapes = jax.eval_shape(
        lambda key, frozen: create_state(key, job.objective, optimizer, frozen, with_ema=engine.ema is not None),
        jax.random.key(0),
        job.frozen,
    )
    # Orbax reads NumPy leaves to the host; these take no room, for they are one element each
    abstract = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)
    with Checkpoints(workdir, keep=engine.keep, config=config, fingerprint=job.fingerprint) as checkpoints:
        state = checkpoints.restore(abstract)
    if state is None:
        raise FileNotFoundError(f"--workdir={workdir} has no checkpoint yet: let python -m sdd_jax.main reach one")
    return job, state
