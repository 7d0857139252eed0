"""A tiny real job for the engine's tests: distil a frozen linear teacher, with noise and an EMA target.

Run as a script it is `sdd_jax.main` with `build` standing in for `sdd_jax.jobs.build`, so that tests can kill it.
`config.start` names a run whose average is the teacher, as some jobs start from others.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax import jobs, runs
from sdd_jax.config import defaults_of, validate
from sdd_jax.data.pipeline import make_stream
from sdd_jax.main import main
from sdd_jax.train import EngineConfig, Job
from sdd_jax.types import Phase

WIDTH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """loss = |x W + b - (x T + 0.1 n)|^2 + 0.1 |x W - x W_ema|^2, n noise of the sample; `poison` makes batches NaN."""

    noise: float = 0.1
    poison_from: int = 10**9
    poison_until: int = 10**9

    def init(self, rng, frozen):
        kernel = 0.1 * jax.random.normal(rng, (WIDTH, WIDTH))
        return {"dense": {"kernel": kernel, "bias": jnp.zeros(WIDTH)}, "gain": frozen["teacher"]["gain"]}

    def loss(self, params, frozen, batch, rng, step):
        def forward(weights):
            return batch["x"] @ weights["dense"]["kernel"] + weights["dense"]["bias"][None] * weights["gain"]

        noise = self.noise * jax.random.normal(rng, batch["x"].shape)
        fit = jnp.mean((forward(params) - batch["x"] @ frozen["teacher"]["kernel"] - noise) ** 2)
        drift = jnp.mean((forward(params) - forward(frozen["target"])) ** 2) if "target" in frozen else 0.0
        poisoned = (step >= self.poison_from) & (step < self.poison_until)
        return jnp.where(poisoned, jnp.nan, fit + 0.1 * drift), {"fit": fit}

    @property
    def phases(self):
        return (Phase(self.loss),)


class Numbers:
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {"x": np.random.default_rng(index).normal(size=WIDTH).astype(np.float32)}


def jitter(record, rng):
    return {"x": record["x"] + rng.normal(scale=0.01, size=WIDTH).astype(np.float32)}


def teacher():
    kernel = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    return {"teacher": {"kernel": kernel, "gain": np.ones((), np.float32)}}


def make_config(**changes):
    config = ConfigDict({**defaults_of(EngineConfig), "steps": 20, "batch_size": 8, "objective": {"noise": 0.1}})
    config.update({"ema": 0.9, "log_every": 5, "checkpoint_every": 5, "compile_cache": ""})
    config.optimizer.learning_rate = 1e-2
    config.update_from_flattened_dict(changes)
    return config


def build(config):
    def stream(start_step):
        return make_stream(
            Numbers(),
            jitter,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    frozen = teacher()
    if config.get("start"):
        _, params, _ = runs.open_run(Path(config.start))
        frozen["teacher"]["kernel"] = params["dense"]["kernel"]
    return Job(
        name="toy: a linear teacher on 50 random vectors",
        objective=validate(config.objective, Toy, "config.objective"),
        frozen=frozen,
        stream=stream,
        previews=None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": "numpy seed 0"},
    )


if __name__ == "__main__":
    jobs.build = build
    sys.exit(main())
