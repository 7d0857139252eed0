"""tau_train of the cost model (`evals.edit_cost`): what training a manipulator takes on this machine, in this process.

    tau_train = steps x a step + [the run searched its timesteps] batches of the search x a batch

Both are timed here, compiled and warm, with their data, so that training, pass and editors share one machine: a run's
own log is of whatever it ran on. Left out: compilation, encoding the data once, checkpoints and previews; and a search
that the run read from a file (`timesteps.path`).
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import jax

from sdd_jax.benchmarks.work import start_loop
from sdd_jax.config import validate
from sdd_jax.evals.edit_cost import measure_seconds
from sdd_jax.jobs.sdd.data import edit_data
from sdd_jax.jobs.sdd.hqs import BATCH, TimestepConfig, make_reader, search_batches
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.sdd import SDD
from sdd_jax.train import Job, engine_config, use_compile_cache

STEPS = 5
"""Steps between two looks at the clock; three such runs are timed."""


class TrainingCost(NamedTuple):
    """step, search: seconds of one step, and of the whole search, 0 where the run made none. steps: how many."""

    steps: int
    step: float
    search: float

    @property
    def seconds(self) -> float:
        """tau_train."""
        return self.steps * self.step + self.search


def training_cost(job: Job, steps: int) -> TrainingCost:
    """Times a job of SDD or of CLIP guidance on portraits, trained for `steps`; its parameters start anew."""
    use_compile_cache(engine_config(job.config).compile_cache)
    return TrainingCost(steps, _step_seconds(job), _search_seconds(job))


def _step_seconds(job: Job) -> float:
    with contextlib.ExitStack() as stack:
        loop = start_loop(job, stack)

        def some() -> list[jax.Array]:
            return [loop.step(loop.batch()) for _ in range(STEPS)]

        return measure_seconds(some) / STEPS


def _search_seconds(job: Job) -> float:
    objective, config = job.objective, job.config
    if not isinstance(objective, SDD) or not validate(config.timesteps, TimestepConfig, "config.timesteps").searches:
        return 0.0
    options, data = validate(config.search, HQSOptions, "config.search"), edit_data(config)
    read, size = make_reader(objective.model, job.frozen, options, BATCH)
    source = data.open()

    def one() -> jax.Array:
        _, rows = next(search_batches(objective.model, source, data.prompt, options, size))
        return read(rows).deficit

    return measure_seconds(one) * -(-options.images // size)
