"""Job of iCD's stage 2: a reverse and a forward model from a teacher that reads its guidance scale, and their exports.

The teacher is a stage-1 run (`config.teacher.workdir`) or a model whose UNet has `time_cond_proj_dim`
(`config.teacher.model`). Where only one of the two models is trained, the other one comes from the run
`config.partner.workdir`: frozen for the preservation loss, and to invert and edit with.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import BOUNDARIES, Boundaries, solver_grid
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.methods import Static, frozen_of, guided_unet, reads_guidance, usual_guidance
from sdd_jax.jobs.icd.guidance_distill import heldout_ids, heldout_images
from sdd_jax.jobs.streams.captioned import CaptionedPortraits, captioned_data, captioned_stream, title, token_ids
from sdd_jax.models import lora, lora_files
from sdd_jax.models.bundle import make_bundle
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.load import load
from sdd_jax.models.save import save_component
from sdd_jax.objectives.guidance_distill import GuidanceDistillation
from sdd_jax.objectives.icd import ICD
from sdd_jax.objectives.inputs import text_of
from sdd_jax.runs import open_run
from sdd_jax.sampling.editing import BoundaryRoute, dynamic_guidance, prompted
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.train import Job, Previews
from sdd_jax.types import Batch, Frozen, ModelBundle, Params

PREVIEW = 8
MODELS = ("forward", "reverse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Where a teacher that reads its guidance scale comes from: a stage-1 run, or a model (and a hub id's revision)."""

    workdir: str = ""
    model: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        if bool(self.workdir) == bool(self.model):
            raise ValueError(
                "give either workdir, a run of configs/icd.py (stage 1), or model, a teacher that reads its guidance"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartnerConfig:
    """The run that trained the model that this one does not; '' for none."""

    workdir: str = ""


class Teacher(NamedTuple):
    """A teacher: bundle, {'unet', 'vae', 'text_encoder', ...}, and what identifies the weights."""

    model: ModelBundle
    params: Params
    content_hash: str


def icd(config: ConfigDict) -> Job:
    """Distils a guidance-distilled teacher into a reverse and a forward few-step model."""
    data = captioned_data(config.data)
    teacher_config = validate(config.teacher, TeacherConfig, "config.teacher")
    partner = validate(config.partner, PartnerConfig, "config.partner")
    fields = {**config.objective, "boundaries": parse_boundaries(config.objective.boundaries)}
    model, params, content_hash = open_teacher(teacher_config, jnp.dtype(config.dtype), config.remat)
    objective = validate({**fields, "model": model}, ICD, "config.objective")
    frozen = {**frozen_of(model, params), **_partners(partner, objective, content_hash)}
    starts = ", ".join(map(str, objective.boundaries.reverse))
    return Job(
        name=f"iCD, data {title(data)}, teacher {model.source}, {' and '.join(objective.trained)} from {starts}",
        objective=objective,
        frozen=frozen,
        stream=captioned_stream(config, data, model, params["vae"]),
        previews=_previews(objective) if isinstance(data, CaptionedPortraits) else None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": teacher_config.workdir or model.source, "teacher_hash": content_hash},
        export=functools.partial(_export, objective),
    )


def parse_boundaries(text: str) -> Boundaries:
    """A configuration of `timegrid.BOUNDARIES` by name, or the reverse model's starts: "259,519,779,999"."""
    if text in BOUNDARIES:
        return BOUNDARIES[text]
    try:
        reverse = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"config.objective.boundaries={text!r}: use {', '.join(BOUNDARIES)}, or times such as 259,519,779,999"
        ) from None
    return Boundaries(reverse=reverse, forward=(int(solver_grid()[0]), *reverse[:-1]))


def open_teacher(config: TeacherConfig, dtype: DTypeLike, remat: str) -> Teacher:
    """Reads the teacher that a config names.

    Raises:
        ValueError: a run of another task, or a model that does not read its guidance scale.
    """
    if not config.workdir:
        model, params = load(config.model, config.revision, dtype=dtype, remat=remat)
        if not reads_guidance(model):
            raise ValueError(
                f"config.teacher.model={config.model} does not read its guidance scale (no time_cond_proj_dim): "
                "train stage 1, configs/icd.py, and name its run as config.teacher.workdir"
            )
        return Teacher(model, params, model.content_hash)
    job, trained, step = open_run(Path(config.workdir))
    objective = job.objective
    if not isinstance(objective, GuidanceDistillation):
        raise ValueError(
            f"config.teacher.workdir={config.workdir} is a {job.config.task!r} run: name one of stage 1, configs/icd.py"
        )
    unet = objective.student_unet(trained, job.frozen)
    student = objective.student
    model = make_bundle(
        student.configs, student.tokenize, student.tokenize_2, dtype=dtype, remat=remat,
        source=f"{config.workdir}, step {step}",
    )  # fmt: skip
    params = {"unet": unet, "vae": job.frozen["vae"], **job.frozen["text"]}
    return Teacher(model, jax.tree.map(lambda x: jnp.asarray(x, dtype), params), tree_hash(unet))


def _partners(partner: PartnerConfig, objective: ICD, teacher_hash: str) -> Frozen:
    """The models that this run does not train, from the partner's run; {} where none is named.

    Raises:
        ValueError: a partner that is none, or none where a preservation loss needs one.
    """
    missing = [name for name in MODELS if name not in objective.trained]
    if not partner.workdir:
        if len(objective.trained) == 1 and {"forward_preservation", "reverse_preservation"} & set(objective.terms):
            raise ValueError(
                f"config.partner.workdir is empty: a preservation loss of the {objective.trained[0]} model alone needs "
                f"the run that trained the {missing[0]} model; name it, or set the loss's weight to 0"
            )
        return {}
    where = f"config.partner.workdir={partner.workdir}"
    if not missing:
        raise ValueError(f"{where}: this run trains both models; leave it empty")
    job, params, _ = open_run(Path(partner.workdir))
    other = job.objective
    if not isinstance(other, ICD) or missing[0] not in params:
        raise ValueError(f"{where} is no iCD run that trained the {missing[0]} model")
    if job.fingerprint["teacher_hash"] != teacher_hash:
        raise ValueError(f"{where} was distilled from another teacher")
    if (other.lora, other.boundaries) != (objective.lora, objective.boundaries):
        raise ValueError(f"{where} has other boundaries or another LoRA than this run's objective")
    return {missing[0]: params[missing[0]]}


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
    """The run as a model to edit with: its teacher's frozen parts, and 'forward', 'reverse' and 'boundaries'."""
    objective = job.objective
    assert isinstance(objective, ICD)
    unets = {name: unet_of(objective, params, job.frozen, name) for name in MODELS}
    return objective.model, {**job.frozen, **unets, "boundaries": objective.boundaries}


@functools.partial(jax.jit, static_argnums=0, static_argnames=("tau", "ramp_to", "start"))
def generate(
    static: Static,
    frozen: Frozen,
    ids: Batch,
    noise: jax.Array,
    w: jax.Array,
    *,
    tau: float = 1.0,
    ramp_to: float | None = None,
    start: float = 0.0,
) -> jax.Array:
    """Images f32[b,H,W,3] of prompts from noise [b,h,w,c]: m evaluations. frozen: as from `editing_model`."""
    model, guidance = static.model, dynamic_guidance(w, tau, ramp_to, start)
    context, added_cond = text_of(model, frozen, ids)
    network = prompted(guided_unet(model, frozen, frozen["reverse"]), context, guidance, added_cond=added_cond)
    return model.decode(frozen["vae"], route_of(model, frozen["boundaries"]).decode(network, noise))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("tau", "ramp_to", "start"))
def reconstruct(
    static: Static,
    frozen: Frozen,
    ids: Batch,
    images: jax.Array,
    noise: jax.Array,
    encoding_w: jax.Array,
    w: jax.Array,
    *,
    tau: float = 1.0,
    ramp_to: float | None = None,
    start: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Images to noise and back, 2m evaluations: (reconstructions f32[b,H,W,3], what the noise is f32[b,h,w,c]).

    encoding_w: of the way up, 1 as published. w, tau, ramp_to, start: of the way down.
    """
    model, route = static.model, route_of(static.model, frozen["boundaries"])
    context, added_cond = text_of(model, frozen, ids)
    up, down = (
        prompted(guided_unet(model, frozen, frozen[name]), context, guidance, added_cond=added_cond)
        for name, guidance in (
            ("forward", dynamic_guidance(encoding_w)), ("reverse", dynamic_guidance(w, tau, ramp_to, start)),
        )
    )  # fmt: skip
    z = route.encode(up, model.encode(frozen["vae"], images), noise)
    return model.decode(frozen["vae"], route.decode(down, z)), z


def draw(job: Job, params: Params, prompt: str, samples: int, seed: int, guidance: float | None) -> np.ndarray:
    """Images f32[samples,H,W,3] of a prompt by the reverse model, in the jumps it was trained for.

    guidance: a scale that the model was trained at; None is the usual one. ValueError for any other.
    """
    objective = job.objective
    assert isinstance(objective, ICD)
    w = best_scale(objective) if guidance is None else guidance
    if w not in objective.scales:
        raise ValueError(
            f"--guidance={w:g}: this model was trained at {', '.join(f'{one:g}' for one in objective.scales)}"
        )
    model = objective.model
    whole = {
        **job.frozen, "reverse": unet_of(objective, params, job.frozen, "reverse"), "boundaries": objective.boundaries
    }  # fmt: skip
    row = token_ids(model, prompt)
    ids = {name: jnp.asarray(np.repeat(value[None], samples, 0)) for name, value in row.items()}
    side = model.sample_size
    noise = initial_noise(jax.random.key(seed), (samples, side, side, model.latent_channels))
    return np.asarray(generate(Static(model), whole, ids, noise, jnp.float32(w)))


def route_of(model: ModelBundle, boundaries: Boundaries) -> BoundaryRoute:
    """The jumps of a configuration for a model."""
    return BoundaryRoute(boundaries, Schedule(model.alphas_cumprod), model.prediction)


def best_scale(objective: ICD) -> float:
    """The trained scale that is nearest to the model's usual one."""
    usual = usual_guidance(objective.model, 8.0)
    return min(objective.scales, key=lambda w: abs(w - usual))


def _previews(objective: ICD) -> Previews:
    model = objective.model
    static, ids, images = Static(model), heldout_ids(model, PREVIEW), heldout_images(PREVIEW)
    side = images.shape[1] // model.downsampling
    noise = initial_noise(jax.random.key(0), (PREVIEW, side, side, model.latent_channels))
    one, guided = jnp.float32(1.0), jnp.float32(best_scale(objective))

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        shown = params if ema is None else ema
        unets = {name: unet_of(objective, shown, frozen, name) for name in MODELS if name in shown or name in frozen}
        whole = {**frozen, **unets, "boundaries": objective.boundaries}
        rows = {"held out": images}
        if set(MODELS) <= set(unets):
            rows["reconstructed"] = np.asarray(reconstruct(static, whole, ids, images, noise, one, one)[0])
        if "reverse" in unets:
            for w in (one, guided):
                rows[f"generated, w = {float(w):g}"] = np.asarray(generate(static, whole, ids, noise, w))
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
