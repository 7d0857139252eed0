"""Job of iCD's stage 2: a reverse and a forward model from a teacher that reads its guidance scale, and their exports.

`teacher` reads what it starts from. Drawing and reconstructing are here too, each one program per model and shape: the
scale enters as a table over time, so that a sweep over scales and thresholds compiles nothing.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import BOUNDARIES, Boundaries, solver_grid
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.methods import Static, TrainedScales, frozen_of, guided_unet, usual_guidance
from sdd_jax.jobs.icd.guidance_distill import heldout_ids, heldout_images
from sdd_jax.jobs.icd.teacher import MODELS, PartnerConfig, TeacherConfig, check_scales, open_partner, open_teacher
from sdd_jax.jobs.streams.captioned import CaptionedPortraits, captioned_data, captioned_stream, title, token_ids
from sdd_jax.models import lora, lora_files
from sdd_jax.models.save import save_component
from sdd_jax.objectives.icd import ICD
from sdd_jax.objectives.inputs import text_of
from sdd_jax.sampling.editing import BoundaryRoute, dynamic_guidance, prompted
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.train import Job, Previews
from sdd_jax.types import Batch, Frozen, ModelBundle, Params

PREVIEW = 8


def icd(config: ConfigDict) -> Job:
    """Distils a guidance-distilled teacher into a reverse and a forward few-step model."""
    data = captioned_data(config.data)
    teacher_config = validate(config.teacher, TeacherConfig, "config.teacher")
    partner = validate(config.partner, PartnerConfig, "config.partner")
    boundaries = parse_boundaries(config.objective.boundaries, config.objective.grid_steps)
    opened = open_teacher(teacher_config, jnp.dtype(config.dtype), config.remat)
    model, params, content_hash, encoders_hash, trained_at = opened
    objective = validate({**config.objective, "boundaries": boundaries, "model": model}, ICD, "config.objective")
    check_scales(teacher_config, trained_at, objective)
    frozen = {**frozen_of(model, params), **open_partner(partner, objective, content_hash)}
    starts = ", ".join(map(str, objective.boundaries.reverse))
    return Job(
        name=f"iCD, data {title(data)}, teacher {model.source}, {' and '.join(objective.trained)} from {starts}",
        objective=objective,
        frozen=frozen,
        stream=captioned_stream(config, data, model, params["vae"], encoders_hash),
        previews=_previews(objective) if isinstance(data, CaptionedPortraits) else None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": teacher_config.workdir or model.source, "teacher_hash": content_hash},
        export=functools.partial(_export, objective),
    )


def parse_boundaries(text: str, grid_steps: int) -> Boundaries:
    """The reverse model's starts "259,519,779,999", or those of a configuration of `timegrid.BOUNDARIES` by its name.

    The forward model's are the same but the last, below them the first time of the solver grid of `grid_steps`.
    """
    try:
        reverse = BOUNDARIES[text].reverse if text in BOUNDARIES else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"config.objective.boundaries={text!r}: use {', '.join(BOUNDARIES)}, or times such as 259,519,779,999"
        ) from None
    try:
        first = int(solver_grid(grid_steps)[0])
    except ValueError as error:
        raise ValueError(f"config.objective.grid_steps={grid_steps}: {error}") from None
    return Boundaries(reverse=reverse, forward=(first, *reverse[:-1]))


def unet_of(objective: ICD, params: Params, frozen: Frozen, name: str) -> Params:
    """The parameters of the 'forward' or 'reverse' UNet, adapters merged.

    Raises:
        ValueError: a model that the run neither trained nor got from a partner.
    """
    if name not in params and name not in frozen:
        raise ValueError(
            f"this iCD run has no {name} model: train both, or name the run that has it as config.partner.workdir"
        )
    weights = params[name] if name in params else frozen[name]
    return weights if objective.lora is None else lora.merge(frozen["teacher"]["unet"], weights, objective.lora)


def editing_model(job: Job, params: Params) -> tuple[ModelBundle, Frozen]:
    """The run as a model to edit with: its teacher's frozen parts, and 'forward', 'reverse', 'boundaries', 'scales'."""
    objective = job.objective
    assert isinstance(objective, ICD)
    unets = {name: unet_of(objective, params, job.frozen, name) for name in MODELS}
    scales = TrainedScales(objective.scales)
    return objective.model, {**job.frozen, **unets, "boundaries": objective.boundaries, "scales": scales}


def scale_over_time(
    model: ModelBundle, w: jax.Array | float, *, tau: float = 1.0, ramp_to: float | None = None, start: float = 0.0
) -> jax.Array:
    """`dynamic_guidance` as a table f32[T], w at each timestep: an argument of programs that serve every schedule."""
    return dynamic_guidance(w, tau, ramp_to, start)(jnp.arange(len(model.alphas_cumprod)))


def generate(
    static: Static, frozen: Frozen, ids: Batch, noise: jax.Array, w: jax.Array | float, **when: Any
) -> jax.Array:
    """Images f32[b,H,W,3] of prompts from noise [b,h,w,c]: m evaluations.

    frozen: as from `editing_model`. w, and when (tau, ramp_to, start): as for `dynamic_guidance`.
    """
    return generate_over(static, frozen, ids, noise, scale_over_time(static.model, w, **when))[0]


@functools.partial(jax.jit, static_argnums=0)
def generate_over(
    static: Static, frozen: Frozen, ids: Batch, noise: jax.Array, scales: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`generate` with the scale at each timestep, f32[T] (`scale_over_time`): images, and their latents [b,h,w,c]."""
    model = static.model
    context, added_cond = text_of(model, frozen, ids)
    network = prompted(
        guided_unet(model, frozen, frozen["reverse"]), context, lambda t: scales[t], added_cond=added_cond
    )
    z = route_of(model, frozen["boundaries"]).decode(network, noise)
    return model.decode(frozen["vae"], z), z


@functools.partial(jax.jit, static_argnums=0)
def invert(
    static: Static, frozen: Frozen, ids: Batch, images: jax.Array, noise: jax.Array, scales: jax.Array
) -> jax.Array:
    """Images to noise f32[b,h,w,c], m evaluations; `generate` brings them back from it.

    noise: what is added at the first boundary. scales: `scale_over_time`, 1 everywhere as published.
    """
    model = static.model
    context, added_cond = text_of(model, frozen, ids)
    network = prompted(
        guided_unet(model, frozen, frozen["forward"]), context, lambda t: scales[t], added_cond=added_cond
    )
    return route_of(model, frozen["boundaries"]).encode(network, model.encode(frozen["vae"], images), noise)


def draw(
    job: Job, params: Params, prompt: str, samples: int, seed: int, guidance: float | None, **when: Any
) -> np.ndarray:
    """Images f32[samples,H,W,3] of a prompt by the reverse model, in the jumps it was trained for.

    guidance: a scale that the model was trained at; None is the usual one. when: as for `generate`. ValueError for any
    other scale.
    """
    objective = job.objective
    assert isinstance(objective, ICD)
    w = usual_scale(objective) if guidance is None else guidance
    TrainedScales(objective.scales).check("--guidance", w)
    model = objective.model
    whole = {
        **job.frozen, "reverse": unet_of(objective, params, job.frozen, "reverse"), "boundaries": objective.boundaries
    }  # fmt: skip
    row = token_ids(model, prompt)
    ids = {name: jnp.asarray(np.repeat(value[None], samples, 0)) for name, value in row.items()}
    side = model.sample_size
    noise = initial_noise(jax.random.key(seed), (samples, side, side, model.latent_channels))
    return np.asarray(generate(Static(model), whole, ids, noise, w, **when))


def route_of(model: ModelBundle, boundaries: Boundaries) -> BoundaryRoute:
    """The jumps of a configuration for a model."""
    return BoundaryRoute(boundaries, Schedule(model.alphas_cumprod), model.prediction)


def usual_scale(objective: ICD) -> float:
    """The trained scale that is nearest to the model's usual one."""
    return TrainedScales(objective.scales).nearest(usual_guidance(objective.model, 8.0))


def _previews(objective: ICD) -> Previews:
    model = objective.model
    static, ids, images = Static(model), heldout_ids(model, PREVIEW), heldout_images(PREVIEW)
    side = images.shape[1] // model.downsampling
    noise = initial_noise(jax.random.key(0), (PREVIEW, side, side, model.latent_channels))
    scales = (1.0, usual_scale(objective))
    unguided = scale_over_time(model, 1.0)

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        shown = params if ema is None else ema
        unets = {name: unet_of(objective, shown, frozen, name) for name in MODELS if name in shown or name in frozen}
        whole = {**frozen, **unets, "boundaries": objective.boundaries}
        rows = {"held out": images}
        if set(MODELS) <= set(unets):
            z = invert(static, whole, ids, images, noise, unguided)
            rows["reconstructed"] = np.asarray(generate(static, whole, ids, z, 1.0))
        if "reverse" in unets:
            for w in scales:
                rows[f"generated, w = {w:g}"] = np.asarray(generate(static, whole, ids, noise, w))
        write_grid(directory / f"{step:08d}.png", list(rows.values()), list(rows))

    return previews


def _export(objective: ICD, params: Params, directory: Path) -> None:
    """Writes MODEL/pytorch_lora_weights.safetensors, or MODEL/unet/, for each trained model."""
    for name in objective.trained:
        if objective.lora is None:
            unet = objective.model.configs["unet"]
            save_component(params[name], unet, directory / name / "unet", "UNet2DConditionModel")
        else:
            path = directory / name / "pytorch_lora_weights.safetensors"
            lora_files.export(params[name], objective.lora, path)
