"""A run that was saved and never trained: a workdir as a finished one leaves it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.optim import make_optimizer
from sdd_jax.training.state import create_state
from sdd_jax.training.workdir import hold_workdir

CONFIGS = Path(__file__).parents[1] / "configs"


def save_run(workdir: Path, spec: str, *overrides: str, seed: int = 0) -> Any:
    """Writes a run of one step of configs/SPEC, with small random weights; returns them."""
    config = load_config(f"{CONFIGS}/{spec}", ["steps=1", "ema=0.5", *overrides], defaults_of(EngineConfig))
    job, engine = jobs.build(config), engine_config(config)
    optimizer, _ = make_optimizer(engine.optimizer, engine.steps)
    shapes = jax.eval_shape(
        lambda key, frozen: create_state(key, job.objective, optimizer, frozen, with_ema=True),
        jax.random.key(0),
        job.frozen,
    )
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: jax.numpy.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    with hold_workdir(workdir, config, job.fingerprint):
        with Checkpoints(workdir, keep=2, config=config, fingerprint=job.fingerprint) as checkpoints:
            checkpoints.save(1, state.replace(step=jax.numpy.ones((), jax.numpy.int32)))
            checkpoints.wait()
    return state.ema
