"""Job of guidance distillation (iCD's stage 1): a student that reads its guidance scale, and its evaluation.

The student leaves as a whole diffusers directory whose UNet has `time_cond_proj_dim`, adapters merged: a model that
`sdd_jax.load` and PyTorch diffusers read, and stage 2's teacher.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.records import to_float
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.editing.methods import TrainedScales, frozen_of
from sdd_jax.jobs.streams.captioned import CaptionedPortraits, captioned_data, captioned_stream, title, token_ids
from sdd_jax.models.bundle import make_bundle
from sdd_jax.models.load import load
from sdd_jax.models.save import save
from sdd_jax.objectives.guidance_distill import GuidanceDistillation, student_configs
from sdd_jax.objectives.inputs import text_of
from sdd_jax.runs import open_run
from sdd_jax.sampling.generate import Denoise, initial_noise, sample
from sdd_jax.train import Job, Previews
from sdd_jax.training.flops import count_flops
from sdd_jax.types import Batch, Frozen, ModelBundle, Params

PREVIEW = 4
PREVIEW_STEPS = 20
BATCH = 32


def guidance_distill(config: ConfigDict) -> Job:
    """Distils the teacher's two guided passes into one."""
    data = captioned_data(config.data)
    dtype = jnp.dtype(config.dtype)
    bundle, params = load(config.model, config.revision, dtype=dtype, remat=config.remat)
    student = student_bundle(bundle, dtype, config.remat)
    fields = {**config.objective, "model": bundle, "student": student}
    objective = validate(fields, GuidanceDistillation, "config.objective")
    frozen = frozen_of(bundle, params)
    trained = "all weights" if objective.lora is None else f"LoRA of rank {objective.lora.rank}"
    return Job(
        name=f"guidance distillation, data {title(data)}, teacher {bundle.source}, {trained}",
        objective=objective,
        frozen=frozen,
        stream=captioned_stream(config, data, bundle, params["vae"], bundle.content_hash),
        previews=_previews(objective) if isinstance(data, CaptionedPortraits) else None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": bundle.source, "teacher_hash": bundle.content_hash},
        export=functools.partial(_export, objective, frozen),
    )


def student_bundle(bundle: ModelBundle, dtype: Any, remat: str) -> ModelBundle:
    """The teacher's bundle with a UNet that reads its guidance scale."""
    return make_bundle(
        student_configs(bundle.configs), bundle.tokenize, bundle.tokenize_2, dtype=dtype, remat=remat,
        source=f"{bundle.source}, guidance distilled",
    )  # fmt: skip


def editing_model(job: Job, params: Params) -> tuple[ModelBundle, Frozen]:
    """The student as a model to edit with: one pass where its teacher takes two."""
    objective = job.objective
    assert isinstance(objective, GuidanceDistillation)
    unet, scales = objective.student_unet(params, job.frozen), TrainedScales(objective.scales, objective.interval)
    return objective.student, {**job.frozen, "teacher": {"unet": unet}, "scales": scales}


def _export(objective: GuidanceDistillation, frozen: Frozen, params: Params, directory: Path) -> None:
    parts = {"unet": objective.student_unet(params, frozen), "vae": frozen["vae"], **frozen["text"]}
    save(objective.student, parts, directory)


def _previews(objective: GuidanceDistillation) -> Previews:
    draw = comparison(objective)

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        write_grid(directory / f"{step:08d}.png", *draw(params if ema is None else ema, frozen))

    return previews


def comparison(objective: GuidanceDistillation) -> Callable[[Params, Frozen], tuple[list[np.ndarray], list[str]]]:
    """Returns draw(params, frozen) -> (rows of images, their labels): teacher and student, same noise and captions."""
    model, schedule = objective.model, Schedule(objective.model.alphas_cumprod)
    times, shape = sampling_times(PREVIEW_STEPS), (PREVIEW, model.sample_size, model.sample_size, model.latent_channels)
    ids = heldout_ids(model, PREVIEW)

    @jax.jit
    def run(params: Params, frozen: Frozen, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        text, scales = text_of(model, frozen, ids), jnp.full((PREVIEW,), w)
        networks: list[Denoise] = [
            lambda z, t: objective.guided_teacher(frozen, z, t, text, scales),
            lambda z, t: objective.predict(params, frozen, z, t, text, scales),
        ]
        noise = initial_noise(jax.random.key(0), shape)
        drawn = [sample(network, noise, times, schedule, model.prediction) for network in networks]
        teacher, student = jnp.split(model.decode(frozen["vae"], jnp.concatenate(drawn)), 2)
        return teacher, student

    def draw(params: Params, frozen: Frozen) -> tuple[list[np.ndarray], list[str]]:
        rows: dict[str, np.ndarray] = {}
        for w in (min(objective.scales), max(objective.scales)):
            teacher, student = run(params, frozen, jnp.float32(w))
            rows |= {f"teacher, w = {w:g}": np.asarray(teacher), f"student, w = {w:g}": np.asarray(student)}
        return list(rows.values()), list(rows)

    return draw


def heldout_ids(model: ModelBundle, count: int, block: int = 0) -> dict[str, jax.Array]:
    """The canonical captions of the `block`-th `count` held-out portraits, as a batch's text."""
    rows = [token_ids(model, portraits.caption(portrait.attributes)) for portrait in heldout(count, block)]
    return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}


def heldout_images(count: int, block: int = 0) -> np.ndarray:
    """The `block`-th `count` held-out portraits, f32[count,64,64,3]."""
    return np.stack([to_float(portraits.image(portrait)) for portrait in heldout(count, block)])


def heldout(count: int, block: int = 0) -> list[portraits.Portrait]:
    """The `block`-th `count` held-out portraits, the first ones again after the last; ValueError for too many."""
    indices = portraits.split_indices("heldout")
    if not 1 <= count <= len(indices):
        raise ValueError(f"{count} held-out portraits: ask for 1 .. {len(indices)}")
    start = block % (len(indices) // count) * count
    return [portraits.portrait(i) for i in indices[start : start + count]]


def report(workdir: Path, flags: ReportFlags) -> str:
    """Measures the student at each scale (`--guidance`, by default those it was trained at) on held-out portraits."""
    metrics = measure(workdir, flags.seed, {"samples": flags.samples, "scales": flags.guidance})
    job, params, step = open_run(workdir)
    assert isinstance(job.objective, GuidanceDistillation)
    directory = workdir / "evaluation"
    write_grid(directory / "grid.png", *comparison(job.objective)(params, job.frozen))
    content = {"workdir": str(workdir), "step": step, "samples": flags.samples, "seed": flags.seed, "metrics": metrics}
    (directory / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = ["| w | relative RMSE to the two-pass prediction |", "| --- | --- |"]
    lines += [f"| {name.split('@')[1]} | {value:.4f} |" for name, value in metrics.items() if "@" in name]
    cost = f"One guided prediction: student {metrics['student_f']:.3f} F, teacher {metrics['teacher_f']:.3f} F."
    return "\n".join([*lines, "", cost])


def measure(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """`relative_rmse@w` at each scale, and the cost in F of a guided prediction, by student and by teacher.

    options: samples, 64 held-out portraits by default, others for each seed; scales, the trained ones by default. Each
    portrait is noised to a time of its own, spread evenly over the schedule, with one draw of noise.

    Raises:
        ValueError: not a run of this task on portraits.
    """
    assert workdir is not None
    job, params, _ = open_run(workdir)
    objective = job.objective
    if not isinstance(objective, GuidanceDistillation) or job.config.data.source != "portraits":
        raise ValueError(f"--workdir={workdir}: only guidance distillation on portraits can be measured here")
    model, samples = objective.model, int(options.get("samples", 64))
    schedule = Schedule(model.alphas_cumprod)
    ids, images = heldout_ids(model, samples, seed), heldout_images(samples, seed)
    t = ((np.arange(samples) + 0.5) * schedule.num_timesteps / samples).astype(np.int32)

    @jax.jit
    def errors(
        params: Params, frozen: Frozen, image: jax.Array, ids: Batch, noise: jax.Array, t: jax.Array, w: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        text, scales = text_of(model, frozen, ids), jnp.full(t.shape, w)
        z_t = add_noise(model.encode(frozen["vae"], image), noise, schedule.at(t))
        target = objective.guided_teacher(frozen, z_t, t, text, scales)
        found = objective.predict(params, frozen, z_t, t, text, scales)
        each = (1, 2, 3)
        return jnp.mean(jnp.square(found - target), each), jnp.mean(jnp.square(target), each)

    side = images.shape[1] // model.downsampling
    noise = np.asarray(initial_noise(jax.random.key(seed), (samples, side, side, model.latent_channels)))
    metrics = {}
    for w in options.get("scales") or objective.scales:
        parts = []
        for start in range(0, samples, BATCH):
            part = slice(start, start + BATCH)
            batch = {name: value[part] for name, value in ids.items()}
            parts.append(errors(params, job.frozen, images[part], batch, noise[part], t[part], jnp.float32(w)))
        squared, size = (float(np.mean(np.concatenate(values))) for values in zip(*parts, strict=True))
        metrics[f"relative_rmse@{w:g}"] = (squared / size) ** 0.5
    return {**metrics, **_cost(objective, params, job.frozen, {name: value[:1] for name, value in ids.items()})}


def _cost(
    objective: GuidanceDistillation, params: Params, frozen: Frozen, ids: dict[str, jax.Array]
) -> dict[str, float]:
    """FLOPs of one guided prediction over those of one plain forward of the teacher; traced, not run."""
    model = objective.model
    z = jnp.zeros((1, model.sample_size, model.sample_size, model.latent_channels))
    t, w = jnp.zeros((1,), jnp.int32), jnp.ones((1,))
    text = text_of(model, frozen, ids)

    def plain(unet: Params, z: jax.Array) -> jax.Array:
        return model.denoise(unet, z, t, text[0], added_cond=text[1])

    def student(params: Params, frozen: Frozen, z: jax.Array) -> jax.Array:
        return objective.predict(params, frozen, z, t, text, w)

    def teacher(frozen: Frozen, z: jax.Array) -> jax.Array:
        return objective.guided_teacher(frozen, z, t, text, w)

    forward = count_flops(plain, frozen["teacher"]["unet"], z).total
    return {
        "student_f": count_flops(student, params, frozen, z).total / forward,
        "teacher_f": count_flops(teacher, frozen, z).total / forward,
    }
