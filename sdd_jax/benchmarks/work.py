"""What `sdd_jax.bench` times: a UNet's forward, plain training, any job's step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax import jobs
from sdd_jax.benchmarks.twins import MakeTwin, check_twin, training_twin
from sdd_jax.benchmarks.workloads import (
    batch_shapes,
    example_batch,
    plain_job,
    precomputed,
    step_flops,
    with_path,
    without_files,
    without_remat,
)
from sdd_jax.data.pipeline import Prefetch
from sdd_jax.models.load import load
from sdd_jax.train import Job, engine_config, make_program, use_compile_cache
from sdd_jax.training import sharding
from sdd_jax.training.flops import count_flops
from sdd_jax.types import ModelBundle, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Something to time.

    step(batch) -> its result, not waited for. batch() gives the next one. flops: a step's useful operations. twin:
    compiled -> PyTorch's step, which waits; None where there is none. The first results of both should agree.
    """

    name: str
    step: Callable[[Any], jax.Array]
    batch: Callable[[], Any]
    batch_size: int
    flops: int
    twin: MakeTwin | None = None


def forward_work(name: str, batch_size: int, dtype: str) -> Work:
    """One forward of a model's UNet at its own size, random parameters in `dtype`."""
    model, weights = load(f"random:{name}", dtype=jnp.dtype(dtype))
    params = weights["unet"]
    del weights
    inputs = _forward_inputs(model, batch_size)
    added = _added_conditions(model, batch_size)
    forward = jax.jit(lambda params, z, t, context: model.denoise(params, z, t, context, added_cond=added))

    def twin(compiled: bool) -> Callable[[], np.ndarray]:
        from sdd_jax.benchmarks import torch_steps

        half = dtype == "bfloat16"
        return torch_steps.make_forward(model.configs["unet"], params, inputs, half=half, compiled=compiled)

    return Work(
        name=f"UNet forward of {name}, {dtype}",
        step=lambda _: forward(params, **inputs),
        batch=lambda: None,
        batch_size=batch_size,
        flops=count_flops(forward, params, *inputs.values()).total,
        twin=None if added else twin,
    )


def _forward_inputs(model: ModelBundle, b: int) -> dict[str, jax.Array]:
    unet, size = model.configs["unet"], model.sample_size
    keys = jax.random.split(jax.random.key(1))
    return {
        "z": jax.random.normal(keys[0], (b, size, size, model.latent_channels)),
        "t": jnp.linspace(1, len(model.alphas_cumprod) - 1, b).astype(jnp.int32),
        "context": jax.random.normal(keys[1], (b, model.tokenize([""]).shape[1], unet["cross_attention_dim"])),
    }


def _added_conditions(model: ModelBundle, b: int) -> dict[str, jax.Array] | None:
    unet = model.configs["unet"]
    if unet.get("addition_embed_type") != "text_time":
        return None
    width = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    return {"text_embeds": jnp.ones((b, width)), "time_ids": jnp.ones((b, 6))}


def plain_work(
    name: str, stack: contextlib.ExitStack, *, batch_size: int, dtype: str, remat: str, against: bool
) -> Work:
    """A plain diffusion training step on precomputed latents and text states, random parameters."""
    job, shapes = plain_job(name, batch_size=batch_size, dtype=dtype, remat=remat)
    useful, _ = plain_job(name, batch_size=batch_size, dtype=dtype)
    drawn = np.random.default_rng(0)
    batch = {key: drawn.standard_normal(leaf.shape, np.float32) for key, leaf in shapes.items()}
    return _training_work(job, useful, batch, stack, half=dtype == "bfloat16", against=against)


def config_work(config: ConfigDict, stack: contextlib.ExitStack, *, from_moments: bool, against: bool) -> Work:
    """A config's step, on its own data or, where that has no path, on one repeated batch.

    from_moments: on one repeated batch of precomputed latents and text states, as comparing with PyTorch needs.
    """
    use_compile_cache(engine_config(config).compile_cache)
    job = jobs.build(with_path(config, Path("data")))
    useful = job
    if config.get("remat", "none") != "none":
        useful = jobs.build(without_remat(without_files(config, Path("data"))))
    half, data = config.get("dtype") == "bfloat16", config.get("data") or {}
    if not from_moments and not (data.get("path") == "" and data.get("source") != "portraits"):
        return _training_work(job, useful, None, stack, half=half, against=False)
    one: Mapping[str, Any] = example_batch(config)
    if from_moments:
        one = precomputed(job, one)
    batch = {key: np.repeat(np.asarray(value), job.batch_size, axis=0) for key, value in one.items()}
    return _training_work(job, useful, batch, stack, half=half, against=against)


def _training_work(
    job: Job,
    useful: Job,
    fixed: Mapping[str, np.ndarray] | None,
    stack: contextlib.ExitStack,
    *,
    half: bool,
    against: bool,
) -> Work:
    """The loop's step on a job's state, on one `fixed` batch or on the job's own stream."""
    if against and fixed is not None:
        check_twin(job, fixed)
    loop = start_loop(job, stack, fixed)
    first = loop.batch()
    return Work(
        name=job.name if fixed is None else f"{job.name}, one repeated batch",
        step=loop.step,
        batch=loop.batch,
        batch_size=job.batch_size,
        flops=step_flops(useful, batch_shapes(first, job.batch_size)),
        twin=training_twin(job, loop.params, first, half) if against else None,
    )


class Loop(NamedTuple):
    """A job's loop from step 0: step(batch) updates its state and gives the loss, not waited for; batch() the next one.

    params: those that it starts from, until the first step.
    """

    step: Callable[[Any], jax.Array]
    batch: Callable[[], Any]
    params: Params


def start_loop(job: Job, stack: contextlib.ExitStack, fixed: Mapping[str, np.ndarray] | None = None) -> Loop:
    """Lays a job's program out over its mesh, on one `fixed` batch or on its own stream, which `stack` closes."""
    mesh = sharding.make_mesh(engine_config(job.config).mesh)
    program = make_program(job, mesh)
    frozen = sharding.place(job.frozen, sharding.shardings_of(program.frozen))
    states = [program.init(program.init_key, frozen)]

    def step(batch: Any) -> jax.Array:
        states[0], metrics = program.step(states[0], frozen, batch, program.step_key)
        return metrics["loss"]

    if fixed is not None:
        batch = sharding.place_batch(fixed, mesh)
        return Loop(step, lambda: batch, states[0].params)
    batches = Prefetch(job.stream(0), lambda batch: sharding.place_batch(batch, mesh))
    stack.callback(batches.close)
    return Loop(step, functools.partial(next, batches), states[0].params)
