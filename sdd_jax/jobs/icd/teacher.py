"""What iCD's stage 2 starts from: a teacher that reads its guidance scale, and the run of the model it does not train.

The teacher is a stage-1 run (`config.teacher.workdir`) or a model whose UNet has `time_cond_proj_dim`
(`config.teacher.model`). Where only one of the two models is trained, the other one comes from the run
`config.partner.workdir`: frozen for the preservation loss, and to invert and edit with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.jobs.editing.methods import TrainedScales, reads_guidance
from sdd_jax.models.bundle import make_bundle
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.load import load
from sdd_jax.objectives.guidance_distill import GuidanceDistillation
from sdd_jax.objectives.icd import ICD
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle, Params

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
    """A teacher: bundle, {'unet', 'vae', 'text_encoder', ...}, and what identifies the weights.

    encoders_hash: content hash of the model that all but the UNet are of, which precomputed latents name.
    scales: those that a run was trained at; None of a model, which does not say.
    """

    model: ModelBundle
    params: Params
    content_hash: str
    encoders_hash: str
    scales: TrainedScales | None = None


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
        return Teacher(model, params, model.content_hash, model.content_hash)
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
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    scales = TrainedScales(objective.scales, objective.interval)
    return Teacher(model, params, tree_hash(unet), job.fingerprint["teacher_hash"], scales)


def check_scales(config: TeacherConfig, trained: TrainedScales | None, objective: ICD) -> None:
    """ValueError for a scale that is distilled though the teacher's run was not trained at it."""
    if trained is None:
        return
    where = f"config.teacher.workdir={config.workdir}"
    for w in objective.scales:
        trained.check(f"{where}: config.objective.scales={objective.scales} has w", w)
    if set(objective.terms) != {"reverse_cd"}:
        trained.check(f"{where}: inversion and both preservation losses have w", 1.0)


def open_partner(partner: PartnerConfig, objective: ICD, teacher_hash: str) -> Frozen:
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
    if missing[0] == "reverse" and other.scales != objective.scales:  # at which this run will say it can be guided
        raise ValueError(f"{where} was trained at config.objective.scales={other.scales}: set this run's to the same")
    return {missing[0]: params[missing[0]]}
