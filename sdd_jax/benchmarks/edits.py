"""What `sdd_jax.bench --edit` times: iterations of editing by the delta denoising score."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.benchmarks.work import Work
from sdd_jax.jobs.dds.editing import Program, first_carry, inputs_of, iterate
from sdd_jax.jobs.dds.options import Delta, shared
from sdd_jax.jobs.editing.methods import EditRequest, Static, frozen_of
from sdd_jax.models.load import load
from sdd_jax.training.flops import count_jaxpr


def edit_work(name: str, batch_size: int, dtype: str, iterations: int) -> Work:
    """Iterations of a guided DDS edit of `batch_size` pictures, 4F each, at a model's own size, random parameters.

    A step is one program of so many iterations, as an edit's parts are; its latents start where they did every time.
    """
    model, params = load(f"random:{name}", dtype=jnp.dtype(dtype))
    frozen, size, options = frozen_of(model, params), model.sample_size, Delta(guidance=7.5)
    side = size * model.downsampling
    request = EditRequest(
        model=model,
        frozen=frozen,
        image=np.zeros((batch_size, side, side, 3), np.float32),
        source=("a photo of a cat",) * batch_size,
        target=("a photo of a dog",) * batch_size,
    )
    z = jax.random.normal(jax.random.key(0), (batch_size, size, size, model.latent_channels))
    inputs = {**inputs_of(request, options), "z": z}
    static, program = Static(model), Program("dds", shared(options), True, iterations)
    rest = (jax.random.key(1), jnp.int32(0))
    traced = iterate.trace(static, program, frozen, inputs, first_carry(program.options, z), *rest)
    return Work(
        name=f"{iterations} DDS iterations of {name}, {dtype}",
        step=lambda _: iterate(static, program, frozen, inputs, first_carry(program.options, z), *rest)[0],
        batch=lambda: None,
        batch_size=batch_size,
        flops=count_jaxpr(traced.jaxpr.jaxpr).total,
    )
