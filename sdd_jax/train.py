"""The training loop, read top to bottom: set up, restore or initialise, step, look, save.

A `Job` says what is trained; the config's engine keys (`EngineConfig`) say how; `make_program` turns both into the
jitted step, which `aot` and `bench` share. The run is a function of the config: the state after n steps is bitwise the
same whether the process lived through all of them or was restarted in between, on the same devices. What is written
where is in `training.workdir`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data.pipeline import Prefetch
from sdd_jax.models.layers import gathering
from sdd_jax.training import sharding
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.metrics import Late, Mean, Progress, Writer
from sdd_jax.training.optim import OptimizerConfig, make_optimizer
from sdd_jax.training.preemption import Preemption
from sdd_jax.training.sharding import MeshConfig
from sdd_jax.training.state import TrainState, create_state
from sdd_jax.training.step import make_train_step
from sdd_jax.training.workdir import hold_workdir
from sdd_jax.types import Frozen, Objective, Params

_log = logging.getLogger("sdd_jax")

Previews = Callable[[Params, Params | None, Frozen, int, Path], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The config's top-level keys that the loop reads.

    Fields:
        seed: of initialisation, noise and data order.
        steps: the run's length in updates.
        batch_size: samples of a global batch; accumulate: microbatches it is split into.
        ema: decay of the parameters' average, which is also the `target`; None: no average. ema_warmup: lets the decay
            grow from .1, for an average that starts at random weights.
        log_every, checkpoint_every, preview_every: steps between metrics lines, checkpoints and sample grids (0:
            never).
        keep: checkpoints kept; two at least, so that a damaged one has a predecessor.
        nonfinite_limit: non-finite steps in a row that stop the run.
        workers: data processes (0: threads); read by whoever builds the job's stream.
        remat: what the backward pass of the trained networks recomputes: none, dots (all but products and
            convolutions) or block (every residual block and transformer); read by whoever builds them. Networks that
            are not differentiated recompute nothing.
        compile_cache: directory of compiled programs, '' for none.
        profile_step: first step of a JAX profiler trace of `profile_steps` steps into WORKDIR/profile; -1: none.
    """

    seed: int = 0
    steps: int
    batch_size: int
    accumulate: int = 1
    ema: float | None = None
    ema_warmup: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    log_every: int = 50
    checkpoint_every: int = 1000
    preview_every: int = 0
    keep: int = 2
    nonfinite_limit: int = 10
    workers: int = 0
    remat: str = "none"
    compile_cache: str = "~/.cache/sdd_jax/xla"
    profile_step: int = -1
    profile_steps: int = 5

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 0), ("log_every", 1), ("checkpoint_every", 1), ("keep", 2), ("nonfinite_limit", 1)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.ema is not None and not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema={self.ema} must be in [0, 1), or None for no average")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained.

    name: one line for the log: the model and data in use.
    frozen: host or device arrays that the loss reads.
    stream: start_step -> endless iterator of this process's part of the batches from that step on.
    previews: (params, ema, frozen, step, directory) -> None, writes sample grids; None: no grids.
    fingerprint: source and content hash of the frozen weights; recorded in config.json and in every checkpoint.
    export: (params, directory) -> None, writes trained params (the average where there is one) in published formats.
    inherited: what the config leaves to the run that this one starts from; of the exported card.
    """

    name: str
    objective: Objective
    frozen: Frozen
    stream: Callable[[int], Iterator[dict[str, np.ndarray]]]
    previews: Previews | None
    batch_size: int
    config: ConfigDict
    fingerprint: Mapping[str, Any]
    export: Callable[[Params, Path], None] | None = None
    inherited: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def engine_config(config: Mapping[str, Any]) -> EngineConfig:
    """Returns the engine's part of a job's config; raises ValueError on a bad or missing engine key."""
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    return validate({key: config[key] for key in config if key in names}, EngineConfig)


class Program(NamedTuple):
    """A job's step laid out over a mesh, before any weight is placed.

    state, frozen: trees of `jax.ShapeDtypeStruct` with shardings.
    init(init_key, frozen) -> state. step(state, frozen, batch, step_key) -> (state, metrics); donates the state.
    """

    mesh: Mesh
    state: TrainState
    frozen: Frozen
    init: Any
    step: Any
    init_key: jax.Array
    step_key: jax.Array


def make_program(job: Job, mesh: Mesh) -> Program:
    """Builds the jitted step of a job, whose frozen weights may be `jax.ShapeDtypeStruct`s; computes nothing.

    Raises:
        ValueError: a bad engine key, or a batch that the mesh does not divide.
    """
    engine = engine_config(job.config)
    sharding.check_batch_size(job.batch_size, engine.accumulate, mesh)
    optimizer, schedule = make_optimizer(engine.optimizer, engine.steps)
    init_key, step_key = jax.random.split(jax.random.key(engine.seed))

    def init(key: jax.Array, frozen: Frozen) -> TrainState:
        return create_state(key, job.objective, optimizer, frozen, with_ema=engine.ema is not None)

    def laid_out(shapes: Any) -> Any:
        layout = sharding.tree_shardings(shapes, mesh, engine.mesh)
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, layout)

    frozen = laid_out(jax.eval_shape(lambda tree: tree, job.frozen))
    state = laid_out(jax.eval_shape(init, init_key, job.frozen))
    layout = sharding.shardings_of(state)
    step = make_train_step(
        job.objective,
        optimizer,
        schedule=schedule,
        ema_decay=engine.ema,
        ema_warmup=engine.ema_warmup,
        accumulate=engine.accumulate,
    )
    step = gathering(sharding.make_gather(mesh))(step)
    return Program(
        mesh=mesh,
        state=state,
        frozen=frozen,
        init=jax.jit(init, out_shardings=layout),
        step=jax.jit(step, out_shardings=(layout, sharding.replicated(mesh)), donate_argnums=0),
        init_key=init_key,
        step_key=step_key,
    )


def run(job: Job, workdir: Path) -> TrainState:
    """Trains the job to its last step, resuming what the workdir holds; returns the final state.

    Raises:
        ValueError: a bad config, a workdir that is not this job's or not writable, checkpoints of which none is good,
            or too many non-finite steps in a row. The message is one line; nothing on disk is lost.
    """
    engine = engine_config(job.config)
    use_compile_cache(engine.compile_cache)
    mesh = sharding.make_mesh(engine.mesh)
    _log.info("%s", job.name)
    _log.info("devices: %d %s, mesh %s", mesh.size, mesh.devices.flat[0].device_kind, dict(mesh.shape))
    program = make_program(job, mesh)

    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_workdir(workdir, job.config, job.fingerprint))
        preemption = stack.enter_context(Preemption())
        kept = Checkpoints(workdir, keep=engine.keep, config=job.config, fingerprint=job.fingerprint)
        checkpoints = stack.enter_context(kept)
        frozen = sharding.place(job.frozen, sharding.shardings_of(program.frozen))
        state = checkpoints.restore(program.state)
        start = 0 if state is None else int(state.step)
        # before anything is compiled: data that is missing or damaged ends the run here
        batches = Prefetch(job.stream(start), lambda batch: sharding.place_batch(batch, mesh))
        stack.callback(batches.close)
        if state is None:
            state = program.init(program.init_key, frozen)
            _log.info("starting at step 0 in %s", workdir)
            _log.info("parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
        else:
            _log.info("resuming from step %d in %s", start, workdir)
        writer = Writer(workdir, start, active=jax.process_index() == 0)
        stack.callback(writer.close)
        report = Report(engine, job.batch_size, writer, lambda: batches.waited)

        for step in range(start, engine.steps):
            if step == engine.profile_step:
                jax.profiler.start_trace(str(workdir / "profile"))
            state, metrics = program.step(state, frozen, next(batches), program.step_key)
            done = step + 1
            report.push(done, metrics)
            if start <= engine.profile_step and done == min(engine.profile_step + engine.profile_steps, engine.steps):
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            stop = preemption.reached(done)
            if done % engine.checkpoint_every == 0 or done == engine.steps or stop:
                with report.paused():
                    checkpoints.save(done, state)
            if stop:
                break
            if job.previews and engine.preview_every and (done % engine.preview_every == 0 or done == engine.steps):
                with report.paused():
                    job.previews(state.params, state.ema, frozen, done, workdir / "samples")
        report.drain()
        checkpoints.wait()
        if int(state.step) < engine.steps:
            _log.info("stopping as asked: saved step %d of %d; the same command resumes", state.step, engine.steps)
        else:
            _log.info("finished: step %d in %s", state.step, workdir)
        return state


class Report:
    """Turns the steps' metrics into log lines, and stops the run when they are not numbers for too long.

    `waited` tells the seconds spent waiting for data so far; their share of the time is written as `data_wait`.
    """

    def __init__(self, engine: EngineConfig, batch_size: int, writer: Writer, waited: Callable[[], float]) -> None:
        self._engine, self._writer = engine, writer
        self._late, self._mean, self._progress = Late(), Mean(), Progress(engine.steps, batch_size, waited)

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Queues a step's device metrics and writes what is due of earlier ones."""
        for item in self._late.push(step, metrics):
            self._write(*item)

    def drain(self) -> None:
        """Writes what is left."""
        for item in self._late.drain():
            self._write(*item)
        self._writer.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time spent inside out of the speed figure."""
        began = time.monotonic()
        yield
        self._progress.pause(time.monotonic() - began)

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        if scalars["streak"] >= self._engine.nonfinite_limit:
            raise ValueError(
                f"{int(scalars['streak'])} non-finite steps in a row, the last one step {step} (batch {step - 1} of "
                f"the data stream with seed {self._engine.seed}); the parameters are as before the first of them: "
                "lower config.optimizer.learning_rate or look at those batches"
            )
        if scalars["streak"]:
            _log.warning("step %d was not finite and is skipped (batch %d of the data stream)", step, step - 1)
        self._mean.add(scalars)
        self._progress.start(step)
        if step % self._engine.log_every and step != self._engine.steps:
            return
        speed, eta = self._progress.measure(step)
        means = self._mean.take()
        if speed is not None:
            means |= {"samples_per_sec": speed, "data_wait": self._progress.data_wait}
        self._writer.write(step, means)
        shown = "?" if speed is None else f"{speed:.1f}"
        _log.info("step %d/%d  loss %.5g  %s samples/s  ETA %s", step, self._engine.steps, means["loss"], shown, eta)


def use_compile_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that a restart does not compile again."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
