"""Job of the DDS translation network: the teacher, the tasks and the images that `configs/dds_*.py` name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.images import write_grid
from sdd_jax.jobs.dds.data import (
    MatchingPortraits,
    Stock,
    TranslationData,
    TranslationTask,
    check_tasks,
    open_stock,
    translated,
)
from sdd_jax.jobs.editing.methods import frozen_of, reads_guidance
from sdd_jax.jobs.sdd.timesteps import read_timesteps
from sdd_jax.jobs.streams.portraits import stream_of
from sdd_jax.models.load import load
from sdd_jax.models.translator import OUTPUTS, Translator, save_translator
from sdd_jax.objectives.dds import DDS
from sdd_jax.objectives.inputs import latents_of
from sdd_jax.train import Job, Previews
from sdd_jax.types import Frozen, ModelBundle, Params

PREVIEW = 8
Translate = Callable[[Params, Frozen, jax.Array, jax.Array], jax.Array]


def dds(config: ConfigDict) -> Job:
    """Distils the teacher into a translator of the config's tasks."""
    data = validate(config.data, TranslationData, "config.data")
    tasks = read_tasks(config)
    check_tasks(tasks, data)
    if config.objective.get("output", OUTPUTS[0]) not in OUTPUTS:
        raise ValueError(f"config.objective.output={config.objective.output!r} is not known; use {', '.join(OUTPUTS)}")
    timesteps = read_timesteps(config.objective.timesteps) if config.objective.get("timesteps") else ()
    bundle, params = load(
        config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.get("remat", "none")
    )
    if reads_guidance(bundle):
        raise ValueError(
            f"config.model={config.model}: its UNet reads the guidance scale; give the undistilled teacher"
        )
    section = {**config.objective, "timesteps": timesteps, "model": bundle, "steps": config.steps}
    objective = validate(section, DDS, "config.objective")
    frozen = {**frozen_of(bundle, params), **task_states(bundle, params, list(tasks.values()))}
    stock = functools.cache(lambda: open_stock(data, bundle, frozen, config.seed))

    def stream(start_step: int) -> Iterator[HostBatch]:
        return stream_of(config, stock().source, translated(bundle, stock(), list(tasks.values())))(start_step)

    def export(params: Params, directory: Path) -> None:
        others = {"vae": frozen["vae"], **frozen["text"]}
        save_translator(objective.translator, params, others, list(tasks), directory)

    kind = "DDS" if objective.subtract_source else "SDS"
    return Job(
        name=f"{kind} translator to {', '.join(tasks)}, data {data.path or data.source}, teacher {bundle.source}",
        objective=objective,
        frozen=frozen,
        stream=stream,
        previews=_previews(objective.translator, list(tasks), data, stock),
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": bundle.source, "teacher_hash": bundle.content_hash},
        export=export,
    )


def read_tasks(config: Mapping[str, Any]) -> dict[str, TranslationTask]:
    """The tasks of a config by name, in alphabetical order, which is their order in the translator's embeddings."""
    tasks = config["tasks"]
    return {name: validate(tasks[name], TranslationTask, f"config.tasks.{name}") for name in sorted(tasks)}


def task_states(bundle: ModelBundle, params: Params, tasks: list[TranslationTask]) -> Frozen:
    """The text states that the tasks' embeddings start from: `task_context` f32[M,n,d], and `task_pooled` for SDXL."""
    phrases = [task.description for task in tasks]
    ids_2 = None if bundle.tokenize_2 is None else bundle.tokenize_2(phrases)
    text = {name: part for name, part in params.items() if name.startswith("text_encoder")}
    context, pooled = bundle.embed_text(text, bundle.tokenize(phrases), ids_2)
    return {"task_context": context} if pooled is None else {"task_context": context, "task_pooled": pooled}


def make_translate(translator: Translator) -> Translate:
    """Returns translate(params, frozen, z f32[b,h,w,c], task int[b]) -> images f32[b,H,W,3]: 1F and the decoder's."""

    @jax.jit
    def translate(params: Params, frozen: Frozen, z: jax.Array, task: jax.Array) -> jax.Array:
        return jnp.clip(translator.model.decode(frozen["vae"], translator.apply(params, z, task)), -1.0, 1.0)

    return translate


def editing_model(job: Job, params: Params) -> tuple[ModelBundle, Frozen]:
    """A run as `jobs.editing.methods` takes it: the teacher, with the translator under `frozen['translator']`."""
    assert isinstance(job.objective, DDS)
    model = job.objective.model
    described = {"output": job.objective.output, "tasks": list(read_tasks(job.config))}
    return dataclasses.replace(model, configs={**model.configs, "translator": described}), {
        **job.frozen,
        "translator": params,
    }


def _previews(translator: Translator, names: list[str], data: TranslationData, stock: Callable[[], Stock]) -> Previews:
    translate = make_translate(translator)
    model = translator.model
    read = jax.jit(lambda frozen, inputs, key: latents_of(model, frozen, inputs, key))

    @functools.cache
    def shown() -> dict[str, np.ndarray]:
        if data.speaks_portraits:
            source = MatchingPortraits("heldout", PREVIEW, data.only)
            return {"image": np.stack([source[i]["image"] for i in range(PREVIEW)]) / np.float32(127.5) - 1}
        rows = [stock().inputs(stock().source[i]) for i in range(min(PREVIEW, len(stock().source)))]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        weights = params if ema is None else ema
        z = read(frozen, shown(), jax.random.key(0))
        count = len(z)
        rows = [np.asarray(jax.jit(model.decode)(frozen["vae"], z))]
        rows += [np.asarray(translate(weights, frozen, z, jnp.full(count, k))) for k in range(len(names))]
        write_grid(directory / f"{step:08d}.png", rows, ["source", *names])

    return previews
