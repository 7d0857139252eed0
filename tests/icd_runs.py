"""Workdirs of iCD's two stages on a tiny world, written without training."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.optim import make_optimizer
from sdd_jax.training.state import create_state
from sdd_jax.training.workdir import hold_workdir

CONFIG = Path(__file__).parents[1] / "configs" / "icd.py"
STAGE1 = ["data.count=4", "batch_size=2", "ema=none"]
STAGE2 = [
    *STAGE1,
    "objective.boundaries=2",
    "objective.lora.rank=2",
    "objective.lora.targets=('to_q', 'conv1', 'proj_in')",
]


def build(variant, *overrides):
    return jobs.build(load_config(f"{CONFIG}:{variant}", overrides, defaults_of(EngineConfig)))


def optimizer_of(job):
    engine = engine_config(job.config)
    return make_optimizer(engine.optimizer, engine.steps)


def write_run(job, workdir):
    """A workdir as after two steps of training, which moved every weight a little."""
    optimizer, _ = optimizer_of(job)
    rng = np.random.default_rng(len(job.objective.phases))
    params = job.objective.init(jax.random.key(1), job.frozen)
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.02 * rng.normal(size=x.shape), jnp.float32), params)
    create = functools.partial(create_state, objective=job.objective, optimizer=optimizer, with_ema=False)
    shapes = jax.eval_shape(lambda key, frozen: create(key, frozen=frozen), jax.random.key(0), job.frozen)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = dataclasses.replace(state, params=params, step=jnp.asarray(2, jnp.int32))
    with (
        hold_workdir(workdir, job.config, job.fingerprint),
        Checkpoints(workdir, keep=2, config=job.config, fingerprint=job.fingerprint) as checkpoints,
    ):
        checkpoints.save(2, state)
        checkpoints.wait()
