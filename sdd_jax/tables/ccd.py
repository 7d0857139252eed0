"""CCD's tables on the embedded world: Table 1, the ablations of Figs. 3 and 5, and the other tasks' claims.

Super-resolution of held-out portraits, measured by `evals.restoration` with the embedded CLIP where the paper has
Inception: `frechet` stands for FID, `clip_distance` for LPIPS, which is measured too where its weights are given
(SDD_JAX_LPIPS_BACKBONE and SDD_JAX_LPIPS_LINEAR, files of VGG16). The paper's 200 steps are 50 here. Every training has
the steps of its config: compared are equal numbers of updates, except that CM and GD have their extra stages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.tables.claims import closes, every, gap, not_worse, order
from sdd_jax.tables.types import Claim, Column, Plot, Row, Table, Training

SAMPLES = 256
CURVE = (1, 2, 4, 8)
_QUIET = ("preview_every=0",)
_LPIPS = tuple(os.environ.get(f"SDD_JAX_LPIPS_{part}", "") for part in ("BACKBONE", "LINEAR"))


def _training(config: str, *overrides: str, minutes: float = 12, **needs: Training) -> Training:
    named = {f"{key}.workdir": training for key, training in needs.items()}
    return Training(config=f"configs/{config}", overrides=(*overrides, *_QUIET), needs=named, minutes=minutes)


FULL = _training("ccd_sr.py")
ADAPTER = _training("ccd_sr.py:adapter", minutes=9)
FINE_TUNED = _training("finetune.py", minutes=9)
CM = _training("cm.py", minutes=14, teacher=FINE_TUNED)
GD_8 = _training("gd.py", minutes=9)
GD_4 = _training("gd.py:halve", minutes=9, teacher=GD_8)
GD = _training("finetune.py:gd", minutes=9, teacher=GD_4)


def _restored(name: str, training: Training, steps: int | Sequence[int], solver: str = "", **fields: Any) -> Row:
    options: dict[str, Any] = {"steps": steps, "samples": SAMPLES}
    options |= {"solver": solver} if solver else {}
    options |= {"lpips": _LPIPS} if all(_LPIPS) else {}
    taken = sum(steps) if isinstance(steps, Sequence) else steps
    evaluation = "sdd_jax.tables.ccd_measures:restoration"
    minutes = 1.5 + 0.12 * taken
    return Row(name=name, training=training, evaluation=evaluation, options=options, minutes=minutes, **fields)


def _external(name: str, note: str) -> Row:
    return Row(name=name, not_run="an external method, for photographs at 512 px", note=note)


def _columns(better: Mapping[str, str], suffix: str = "") -> tuple[Column, ...]:
    return tuple(Column(metric=f"{name}{suffix}", better=direction) for name, direction in better.items())


_BETTER = {
    "frechet": "lower",
    "clip_distance": "lower",
    "lpips": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "attributes": "higher",
    "identity": "higher",
}
_TWICE = (0, 1)
_AT_4 = ("CM, 4 steps", "GD, 4 steps", "DPM-Solver++, 4 steps", "DPM-Solver, 4 steps", "Fine-tuned, 4 steps")
_NOTE = (
    "On the embedded world at 64 px: frechet stands for FID, clip_distance for LPIPS, both of the embedded CLIP, on "
    f"{SAMPLES} held-out portraits."
)


def _both(*ranking: str | Sequence[str], suffix: str = "") -> Any:
    return every(*(order(f"{name}{suffix}", *ranking, better="lower") for name in ("frechet", "clip_distance")))


TABLE1 = Table(
    name="ccd-table1",
    title="CCD, Table 1: real-world super-resolution",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), Table 1",
    note=f"{_NOTE} The paper's figures are FID and LPIPS.",
    rows=(
        _restored("CCD, 4 steps", FULL, 4, note="paper: 19.64, .2656", seeds=_TWICE),
        _restored("CCD adapter only, 4 steps", ADAPTER, 4, note="paper: 25.21, .2941", seeds=_TWICE),
        _restored("Fine-tuned, 4 steps", FINE_TUNED, 4, note="paper: 30.99, .3070", seeds=_TWICE),
        _restored("Fine-tuned, 50 steps", FINE_TUNED, 50, note="paper, 200 steps: 18.63, .2551", seeds=_TWICE),
        _restored("DPM-Solver, 4 steps", FINE_TUNED, 4, "dpm_solver", note="paper: 30.12, .3077", seeds=_TWICE),
        _restored("DPM-Solver++, 4 steps", FINE_TUNED, 4, "dpm_solver_pp", note="paper: 30.03, .3073", seeds=_TWICE),
        _restored("CM, 4 steps", CM, 4, note="paper: 30.63, .3066; fine-tuned first"),
        _restored("GD, 4 steps", GD, 4, note="paper: 27.81, .3172; 16 to 8 to 4 steps, then fine-tuned"),
        _external("Real-ESRGAN, 1 step", "paper: 37.64, .3112"),
        _external("StableSR, 200 steps", "paper: 24.44, .3114"),
    ),
    claims=(
        Claim(
            text="At 4 steps full CCD beats CCD with the adapter only",
            check=_both("CCD, 4 steps", "CCD adapter only, 4 steps"),
        ),
        Claim(
            text="At 4 steps CCD with the adapter only beats CM, GD, fast solvers and the undistilled model",
            check=_both("CCD adapter only, 4 steps", _AT_4),
        ),
        Claim(
            text="At 4 steps full CCD beats CM, GD, fast solvers and the undistilled model",
            check=_both("CCD, 4 steps", _AT_4),
        ),
        Claim(
            text="CCD in 4 steps comes close to the fine-tuned model in many (closes 80% or more of its gap at 4)",
            check=closes("frechet", "CCD, 4 steps", "Fine-tuned, 4 steps", "Fine-tuned, 50 steps", share=0.8),
        ),
        Claim(
            text="Fast solvers alone gain little at 4 steps (20% of that gap or less)",
            check=every(
                *(
                    closes("frechet", name, "Fine-tuned, 4 steps", "Fine-tuned, 50 steps", share=0.2, at_most=True)
                    for name in ("DPM-Solver, 4 steps", "DPM-Solver++, 4 steps")
                )
            ),
        ),
    ),
    columns=_columns(_BETTER),
)

_PREV = "prev, online, shared t"

FIG3 = Table(
    name="ccd-fig3",
    title="CCD, Fig. 3: initialisation, sampling of t, predictor",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), ablations of Fig. 3",
    note=_NOTE,
    rows=(
        _restored(_PREV, FULL, CURVE, note="CCD as published", seeds=_TWICE),
        _restored("mixed t", _training("ccd_sr.py", "objective.shared_time=false"), CURVE, note="one t a sample"),
        _restored("ddim, online", _training("ccd_sr.py", "objective.predictor=ddim"), CURVE),
        _restored(
            "ddim, pretrained",
            _training("ccd_sr.py", "objective.predictor=ddim", "objective.ode_model=pretrained", minutes=14),
            CURVE,
            note="z_s from the teacher, which does not see the condition",
        ),
        _restored("random init", _training("ccd_sr.py", "init=random"), CURVE),
    ),
    claims=(
        Claim(text="The pretrained initialisation beats a random one", check=_both(_PREV, "random init", suffix="@4")),
        Claim(text="A t shared by the batch beats mixed t", check=_both(_PREV, "mixed t", suffix="@4")),
        Claim(
            text="and the more so the more steps are taken (8 against 1)",
            check=gap("frechet@8", (_PREV, "mixed t"), (_PREV, "mixed t"), against="frechet@1", better="lower"),
        ),
        Claim(
            text="prev with the online network is at least as good as ddim with it",
            check=not_worse("frechet@4", _PREV, "ddim, online", better="lower"),
        ),
        Claim(
            text="and both beat ddim with the pretrained network",
            check=_both((_PREV, "ddim, online"), "ddim, pretrained", suffix="@4"),
        ),
    ),
    columns=_columns(_BETTER, "@4"),
    plots=tuple(Plot(name=metric, metric=metric, log=True) for metric in ("frechet", "clip_distance", "psnr")),
)

_SPACES = {"pixel": 14, "reencoded": 15, "none": 12}


def _space(name: str, **fields: Any) -> Row:
    training = _training("ccd_sr.py", f"objective.x_space={name}", minutes=_SPACES[name])
    return _restored(f"d_x: {name}", training, CURVE, **fields)


FIG5 = Table(
    name="ccd-fig5",
    title="CCD, Fig. 5: the conditional distance d_x",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), ablations of Fig. 5",
    note=f"{_NOTE} saturation and sharpness are the outputs' over the originals', 1 is right.",
    rows=(
        _restored("d_x: latent", FULL, CURVE, note="CCD as published", seeds=_TWICE),
        _space("pixel"),
        _space("reencoded", note="through decoder and encoder"),
        _space("none"),
        Row(name="d_x: lpips", not_run="needs LPIPS' weights: set config.lpips and config.objective.x_space=lpips"),
    ),
    claims=(
        Claim(text="A d_x beats none", check=_both("d_x: latent", "d_x: none", suffix="@4")),
        Claim(
            text="Without d_x pictures are over-saturated",
            check=order("saturation@4", "d_x: none", "d_x: latent", better="higher"),
        ),
        Claim(
            text="At 4 steps latent l2 beats pixel and re-encoded l2",
            check=_both("d_x: latent", ("d_x: pixel", "d_x: reencoded"), suffix="@4"),
        ),
        Claim(
            text="which are blurrier",
            check=order("sharpness@4", "d_x: latent", ("d_x: pixel", "d_x: reencoded"), better="higher"),
        ),
        Claim(
            text="LPIPS over-saturates as steps grow",
            check=order("saturation@8", "d_x: lpips", "d_x: latent", better="higher"),
        ),
    ),
    columns=(*_columns(_BETTER, "@4"), Column(metric="saturation@4"), Column(metric="sharpness@4")),
    plots=tuple(Plot(name=metric, metric=metric, log=True) for metric in ("frechet", "saturation", "sharpness")),
)


def _conditional(name: str, config: str, steps: int, **fields: Any) -> Row:
    return Row(
        name=name,
        training=_training(config),
        evaluation="sdd_jax.tables.ccd_measures:conditional",
        options={"steps": steps, "samples": SAMPLES},
        minutes=1.5 + 0.12 * steps,
        **fields,
    )


OTHER_TASKS = Table(
    name="ccd-tasks",
    title="CCD: depth-to-image and instructed editing",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), depth and editing",
    note=(
        f"On the embedded world at 64 px, {SAMPLES} held-out portraits. depth is the rank correlation of the depth "
        "read off the output with the given one; an edit is a success if its attribute reads as asked; preserved is "
        "the share of the other attributes that read as before."
    ),
    rows=(
        _conditional("Depth: CCD, 4 steps", "ccd_depth.py", 4),
        _conditional("Depth: ControlNet, 4 steps", "finetune.py:depth,adapter", 4),
        _conditional("Editing: CCD, 1 step", "ccd_edit.py", 1),
        _conditional("Editing: fine-tuned, 50 steps", "finetune.py:edit", 50, note="InstructPix2Pix's training"),
    ),
    claims=(
        Claim(
            text="Depth: CCD beats ControlNet at 4 steps",
            check=order("frechet", "Depth: CCD, 4 steps", "Depth: ControlNet, 4 steps", better="lower"),
        ),
        Claim(
            text="Editing: CCD in 1 step edits as well as the fine-tuned model in many",
            check=every(
                *(
                    not_worse(metric, "Editing: CCD, 1 step", "Editing: fine-tuned, 50 steps", better="higher")
                    for metric in ("success", "preserved")
                )
            ),
        ),
    ),
    columns=_columns(
        {"frechet": "lower", "psnr": "higher", "depth": "higher", "success": "higher", "preserved": "higher"}
    ),
)
