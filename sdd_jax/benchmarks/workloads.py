"""Training steps without weights or data: what ahead-of-time compilation, counting and synthetic benchmarks take.

`without_files` turns any config into one that needs neither weights nor a data set; `example_batch` runs its own stream
over one made-up picture, so that a batch has the arrays the job's data really has; `plain_job` is plain diffusion
training of any model. `abstract_program` is the loop's own program (`train.make_program`) and its arguments as shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from sdd_jax import jobs
from sdd_jax.config import defaults_of
from sdd_jax.models.described import described
from sdd_jax.models.load import load
from sdd_jax.models.published import PUBLISHED
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.models.unet_flops import unet_flops
from sdd_jax.objectives.diffusion import Diffusion
from sdd_jax.train import EngineConfig, Job, Program, make_program
from sdd_jax.training import sharding
from sdd_jax.training.flops import count_jaxpr
from sdd_jax.types import Frozen, ModelBundle

Shapes = Mapping[str, jax.ShapeDtypeStruct]
EXAMPLES = 4
CAPTION = "a picture"


class AbstractStep(NamedTuple):
    """A program and its arguments as shapes with shardings: `program.step.trace(*arguments)`."""

    program: Program
    arguments: tuple[Any, Any, Any, Any]


def with_path(config: ConfigDict, folder: Path) -> ConfigDict:
    """Returns a copy whose paths of data on disk (and of conditions beside it) are `folder` where they are empty.

    Where the data has no path, timesteps are given too: there is nothing to search them on.
    """
    changed = ConfigDict(config.to_dict())
    data, condition = _section(changed, "data"), _section(changed, "condition")
    if data.get("source") == "portraits":
        return changed.lock()
    if data.get("path") == "":
        data.path = str(folder)
        _give_timesteps(changed)
    if condition.get("path") == "" and condition.get("task") in ("depth", "edit"):
        condition.path = str(folder)
    return changed.lock()


def without_files(config: ConfigDict, folder: Path) -> ConfigDict:
    """Returns a copy whose published model is shapes alone, and whose data path is `folder` where it has none.

    A model that is a directory or "portraits" stays: its files are there. Timesteps are given, not searched.
    """
    changed = ConfigDict(with_path(config, folder).to_dict())
    _give_timesteps(changed)
    for section in (changed, _section(changed, "teacher")):
        name = section.get("model") or ""
        known = described(name)
        if known is not None:
            section.model = f"shapes:{known[1]}"
        elif name in PUBLISHED:
            section.model, section.revision = f"shapes:{name}", None
    return changed.lock()


def _give_timesteps(config: ConfigDict) -> None:
    """Names a timestep in place of a search or its file, where a job has them: which ones changes no program."""
    timesteps = _section(config, "timesteps")
    if timesteps:
        timesteps.update(path="", given=(500,), rule="", weights="uniform")


def _section(config: ConfigDict, name: str) -> ConfigDict:
    return config.get(name) or ConfigDict()


def without_remat(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which nothing is recomputed: the one whose operations are useful."""
    changed = ConfigDict(config.to_dict())
    changed.remat = "none"
    return changed.lock()


@contextlib.contextmanager
def example_folder(size: int) -> Iterator[Path]:
    """A folder of one captioned picture of noise, for data streams that want a path; gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(Path(directory) / "example.png")
        (Path(directory) / "example.txt").write_text(CAPTION)
        yield Path(directory)


def example_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """One sample of a config's stream, as a batch of one: its own first record, or the picture of `example_folder`."""
    with example_folder(config.get("data", {}).get("size") or 64) as folder:
        small = ConfigDict(without_files(config, folder).to_dict())
        small.batch_size = 1
        if "count" in small.get("data", {}):
            small.data.count = min(small.data.count, EXAMPLES)
        stream = jobs.build(small.lock()).stream(0)
        batch = next(stream)
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    return batch


def batch_shapes(batch: Mapping[str, Any], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch, from a batch of any size."""
    return {key: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for key, x in batch.items()}


def precomputed(job: Job, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces a batch's images and ids by moments and text states, as precomputed data has them; shapes for shapes.

    Raises:
        ValueError: the job has no diffusion model whose latents they would be.
    """
    model = model_of(job)
    if model is None:
        raise ValueError(f"{job.name}: there is no diffusion model, whose latents could be precomputed")
    kept = {key: value for key, value in batch.items() if key not in ("image", "input_ids", "input_ids_2")}
    run = jax.eval_shape if any(isinstance(x, jax.ShapeDtypeStruct) for x in batch.values()) else _call_jitted
    if "image" in batch:
        kept["moments"] = run(model.moments, job.frozen["vae"], batch["image"])
    ids = [batch[key] for key in ("input_ids", "input_ids_2") if key in batch]
    if not ids:
        return kept
    context, pooled = run(model.embed_text, job.frozen["text"], *ids)
    return {**kept, "context": context, **({} if pooled is None else {"pooled": pooled})}


def _call_jitted(function: Any, *arguments: Any) -> Any:
    return jax.jit(function)(*arguments)


def model_of(job: Job) -> ModelBundle | None:
    """The diffusion model that a job's objective trains or reads; None where it has none: the classifier, say."""
    return getattr(job.objective, "model", None)


def plain_job(
    name: str,
    *,
    batch_size: int,
    dtype: str = "bfloat16",
    remat: str = "none",
    engine: Mapping[str, Any] | None = None,
) -> tuple[Job, dict[str, jax.ShapeDtypeStruct]]:
    """Plain diffusion training of a model's UNet, and the shapes of its batch: precomputed latents and text states.

    float32 parameters, random at the start, and EMA; AdamW; computes in `dtype`.
    """
    bundle, params = load(f"shapes:{name}", dtype=jnp.dtype(dtype), remat=remat)
    network = make_unet(bundle.configs["unet"], dtype=jnp.dtype(dtype), remat=remat)
    ids = [jax.ShapeDtypeStruct((1, len(bundle.tokenize([""])[0])), jnp.int32)] * (1 + (bundle.tokenize_2 is not None))
    text = {part: value for part, value in params.items() if part.startswith("text_encoder")}
    context, pooled = jax.eval_shape(bundle.embed_text, text, *ids)
    frozen: Frozen = {"null_context": jnp.zeros(context.shape)}
    config = ConfigDict({**defaults_of(EngineConfig), "steps": 1000, "ema": 0.999, "batch_size": batch_size})
    config.update(dict(engine or {}))
    job = Job(
        name=f"plain diffusion training of {name}, {dtype}, remat {remat}",
        objective=Diffusion(model=bundle, init_unet=functools.partial(init_unet, network)),
        frozen=frozen,
        stream=lambda start_step: iter(()),
        previews=None,
        batch_size=batch_size,
        config=config,
        fingerprint={},
    )
    side = bundle.sample_size
    batch = {"moments": (side, side, 2 * bundle.latent_channels), "context": context.shape[1:]}
    if pooled is not None:
        batch["pooled"], frozen["null_pooled"] = pooled.shape[1:], jnp.zeros(pooled.shape)
    return job, {key: jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32) for key, shape in batch.items()}


def abstract_program(job: Job, batch: Shapes, mesh: Mesh) -> AbstractStep:
    """The loop's program of a job and the shapes of its arguments, laid out over the mesh.

    Raises:
        ValueError: a batch size that does not fit the mesh.
    """
    program = make_program(job, mesh)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    laid_out = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for key, x in batch.items()}
    key = jax.ShapeDtypeStruct(program.step_key.shape, program.step_key.dtype, sharding=whole)
    return AbstractStep(program, (program.state, program.frozen, laid_out, key))


def step_flops(job: Job, batch: Shapes) -> int:
    """Operations of a step's losses and gradients on a global batch; useful ones where its networks have remat "none".

    The optimiser's own products, Muon's, are left out: counted is the step with AdamW, which has none.
    """
    config = ConfigDict(job.config.to_dict())
    config.mesh.update(data=1, fsdp=1)
    config.optimizer.name = "adamw"
    alone = dataclasses.replace(job, config=config)
    abstract = abstract_program(alone, batch, sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1]))
    return count_jaxpr(abstract.program.step.trace(*abstract.arguments).jaxpr.jaxpr).total


def forward_flops(job: Job, batch: Mapping[str, Any]) -> int | None:
    """F: one forward of one sample through the job's UNet, at its batch's size; None for a job without one."""
    model = model_of(job)
    if model is None:
        return None
    if "moments" in batch:
        height, width = batch["moments"].shape[1:3]
    elif "image" in batch:
        height, width = (size // model.downsampling for size in batch["image"].shape[1:3])
    else:  # codes of a generator, whose pictures the teacher sees at its own size
        height = width = model.sample_size
    tokens = batch["context"].shape[1] if "context" in batch else model.tokenize([""]).shape[1]
    return unet_flops(model.configs["unet"], height, width, tokens).total
