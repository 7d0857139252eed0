"""CCD's tables on the embedded world: Table 1 and the ablations of Figs. 3 and 5; other tasks are in `ccd_tasks`.

Super-resolution of held-out portraits, measured by `evals.restoration` with the embedded CLIP where the paper has
Inception: `frechet` stands for FID, `clip_distance` for LPIPS, which is measured too where its weights are given
(SDD_JAX_LPIPS_BACKBONE and SDD_JAX_LPIPS_LINEAR, files of VGG16). The paper's 200 steps are 50 here.

Equal terms. All rows have CCD's optimiser, schedule, average, data, batch and start. The regression of the ControlNet's
embedding, which is not the paper's, is in every training that starts a ControlNet (rows of Figs. 3 and 5 leave it out):
CCD's and the fine-tunings, GD's last stage among them; CM's own loss has none and starts from an embedding that its
fine-tuning regressed. Every method sees `STEPS` batches; baselines of two stages see as many again: CM's fine-tuning
before it, GD's two rounds before its fine-tuning.
The learning rate is the one that CCD was given; CM, which starts from a trained model, is there with a lower one too.
Every training fits 15 minutes on two idle cores, each stage counted as the training that it is, but the one through
LPIPS, which needs files that are not here; a table takes less than 4 hours.

A bicubic copy of the condition has the best `identity` and a PSNR that sharp pictures do not reach: no claim reads
these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdd_jax.tables.ccd_rows import (
    ADAPTER_ALONE,
    BETTER,
    CCD,
    CONTROLNET,
    DECODER,
    ENCODER,
    FINE_TUNING,
    LPIPS_FILES,
    ON_THE_MACHINE,
    SAMPLES,
    VGG,
    columns,
    lpips_files,
    sampled,
    training,
    unsampled,
    with_noise,
)
from sdd_jax.tables.ccd_tasks import OTHER_TASKS
from sdd_jax.tables.claims import beyond, closes, every, gap, not_worse, order, settled
from sdd_jax.tables.types import Check, Claim, Column, Plot, Row, Table

__all__ = ["FIG3", "FIG5", "OTHER_TASKS", "TABLE1"]

STEPS = 400
CURVE = (1, 2, 4, 8)

FULL = training("ccd_sr.py", steps=STEPS, forwards=CCD)
ADAPTER = training("ccd_sr.py:adapter", steps=STEPS, forwards=ADAPTER_ALONE)
FINE_TUNED = training("finetune.py", steps=STEPS, forwards=FINE_TUNING)
CM = training("cm.py", steps=STEPS, forwards=5 + 5 * CONTROLNET, teacher=FINE_TUNED)
SLOW_CM = training(
    "cm.py", "optimizer.learning_rate=0.0003", steps=STEPS, forwards=5 + 5 * CONTROLNET, teacher=FINE_TUNED
)
GD_8 = training("gd.py", steps=STEPS // 2, forwards=7)
GD_4 = training("gd.py:halve", steps=STEPS // 2, forwards=5, teacher=GD_8)
GD = training("finetune.py:gd", steps=STEPS, forwards=FINE_TUNING, teacher=GD_4)


def _external(name: str, note: str) -> Row:
    return Row(name=name, not_run="an external method, for photographs at 512 px", note=note)


def _both(*ranking: str | Sequence[str], suffix: str = "") -> Check:
    return every(*(order(f"{name}{suffix}", *ranking, better="lower") for name in ("frechet", "clip_distance")))


def _share(row: str, share: float, at_most: bool = False) -> Check:
    """Of the fine-tuned model's gap from 4 steps to 50, in both metrics."""
    ends = ("Fine-tuned, 4 steps", "Fine-tuned, 50 steps")
    return every(*(closes(name, row, *ends, share=share, at_most=at_most) for name in ("frechet", "clip_distance")))


_TWICE = (0, 1)
_SOLVERS = ("DPM-Solver, 4 steps", "DPM-Solver++, 4 steps")
_AT_4 = ("CM, 4 steps", "CM, 4 steps, lower rate", "GD, 4 steps", *_SOLVERS, "Fine-tuned, 4 steps")
_NOTE = (
    "On the embedded world at 64 px: frechet stands for FID, clip_distance for LPIPS, both of the embedded CLIP, on "
    f"{SAMPLES} held-out portraits. All rows are trained on equal terms, with the embedding's regression where a row "
    "does not say otherwise. In claims a spread is no less than the one between two trainings, as a share of the mean, "
    "of the rows that are trained twice. "
    f"{ON_THE_MACHINE}"
)

_ROWS = (
    sampled("CCD, 4 steps", FULL, 4, note="paper: 19.64, .2656", seeds=_TWICE),
    sampled("CCD adapter only, 4 steps", ADAPTER, 4, note="paper: 25.21, .2941", seeds=_TWICE),
    sampled("Fine-tuned, 4 steps", FINE_TUNED, 4, note="paper: 30.99, .3070", seeds=_TWICE),
    sampled("Fine-tuned, 50 steps", FINE_TUNED, 50, note="paper, 200 steps: 18.63, .2551", seeds=_TWICE),
    sampled("DPM-Solver, 4 steps", FINE_TUNED, 4, solver="dpm_solver", note="paper: 30.12, .3077", seeds=_TWICE),
    sampled("DPM-Solver++, 4 steps", FINE_TUNED, 4, solver="dpm_solver_pp", note="paper: 30.03, .3073", seeds=_TWICE),
    sampled("CM, 4 steps", CM, 4, note="paper: 30.63, .3066; fine-tuned first"),
    sampled("CM, 4 steps, lower rate", SLOW_CM, 4, note="learning rate .0003, of all others .002"),
    sampled("GD, 4 steps", GD, 4, note="paper: 27.81, .3172; 16 to 8 to 4 steps, then fine-tuned"),
    unsampled("Bicubic", FULL, "condition", note="the condition itself"),
    unsampled("Autoencoder", FULL, "autoencoder", note="the originals, encoded and decoded"),
    _external("Real-ESRGAN, 1 step", "paper: 37.64, .3112"),
    _external("StableSR, 200 steps", "paper: 24.44, .3114"),
)

TABLE1 = Table(
    name="ccd-table1",
    title="CCD, Table 1: real-world super-resolution",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), Table 1",
    note=f"{_NOTE} CM and GD have the embedding's regression in their fine-tuning alone. The paper's figures are FID "
    "and LPIPS.",
    rows=_ROWS,
    claims=with_noise(
        _ROWS,
        (
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
                text="CCD in 4 steps comes close to the fine-tuned model in many (closes 75% or more of its gap at 4)",
                check=_share("CCD, 4 steps", 0.75),
            ),
            Claim(
                text="Fast solvers alone gain little at 4 steps (20% of that gap or less)",
                check=every(*(_share(name, 0.2, at_most=True) for name in _SOLVERS)),
            ),
            Claim(text="CCD in 4 steps beats a copy of its condition", check=_both("CCD, 4 steps", "Bicubic")),
        ),
    ),
    columns=columns(),
)

_PREV = "prev, online, shared t"
_FIG3_ROWS = (
    sampled(_PREV, FULL, CURVE, note="CCD's own choices", seeds=_TWICE),
    sampled(
        "mixed t",
        training("ccd_sr.py", "objective.shared_time=false", steps=STEPS, forwards=CCD),
        CURVE,
        note="one t a sample",
    ),
    sampled("ddim, online", training("ccd_sr.py", "objective.predictor=ddim", steps=STEPS, forwards=CCD), CURVE),
    sampled(
        "ddim, pretrained",
        training(
            "ccd_sr.py",
            "objective.predictor=ddim",
            "objective.ode_model=pretrained",
            steps=STEPS,
            forwards=CCD + 1,
        ),
        CURVE,
        note="z_s from the teacher, which does not see the condition",
    ),
    sampled(
        "random init",
        training("ccd_sr.py", "init=random", steps=STEPS, forwards=CCD),
        CURVE,
        note="UNet and ControlNet; the embedding is still regressed on the teacher's first convolution",
    ),
    sampled(
        "without the embedding's regression",
        training("ccd_sr.py", "objective.hint_weight=0.0", steps=STEPS, forwards=CCD),
        CURVE,
        note="the loss as published, eq. 11 alone",
    ),
)

FIG3 = Table(
    name="ccd-fig3",
    title="CCD, Fig. 3: initialisation, sampling of t, predictor",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), ablations of Fig. 3",
    note=_NOTE,
    rows=_FIG3_ROWS,
    claims=with_noise(
        _FIG3_ROWS,
        (
            Claim(
                text="The pretrained initialisation beats a random one", check=_both(_PREV, "random init", suffix="@4")
            ),
            Claim(text="A t shared by the batch beats mixed t", check=_both(_PREV, "mixed t", suffix="@4")),
            Claim(
                text="Shared t gains on mixed t as steps grow (8 against 1)",
                check=gap("frechet@8", (_PREV, "mixed t"), (_PREV, "mixed t"), against="frechet@1", better="lower"),
            ),
            Claim(
                text="prev with the online network is at least as good as ddim with it",
                check=every(
                    *(
                        not_worse(f"{name}@4", _PREV, "ddim, online", better="lower")
                        for name in ("frechet", "clip_distance")
                    )
                ),
            ),
            Claim(
                text="and both beat ddim with the pretrained network",
                check=_both((_PREV, "ddim, online"), "ddim, pretrained", suffix="@4"),
            ),
        ),
    ),
    columns=columns(suffix="@4"),
    plots=tuple(Plot(name=metric, metric=metric, log=True) for metric in ("frechet", "clip_distance", "psnr")),
)

_SPACES = {
    "pixel": CCD + 3 * DECODER,
    "reencoded": CCD + 2 * (DECODER + ENCODER),
    "lpips": CCD + 3 * (DECODER + VGG),
    "none": CCD,
}
_NONE = training("ccd_sr.py", "objective.x_space=none", "objective.hint_weight=0.0", steps=STEPS, forwards=CCD)


def _space(name: str, *overrides: str, **fields: Any) -> Row:
    made = training("ccd_sr.py", f"objective.x_space={name}", *overrides, steps=STEPS, forwards=_SPACES[name])
    return sampled(f"d_x: {name}", made, CURVE, **fields)


_FIG5_ROWS = (
    sampled("d_x: latent", FULL, CURVE, note="CCD's own choice", seeds=_TWICE),
    _space("pixel"),
    _space("reencoded", note="through decoder and encoder"),
    _space("none", note="the embedding's regression stays, itself a distance to x"),
    sampled("d_x: none, no regression", _NONE, CURVE, note="without the embedding's regression: eq. 11's d_eps alone"),
    _space("lpips", *(f"lpips.{key}={file}" for key, file in zip(("backbone", "linear"), lpips_files(), strict=True)))
    if lpips_files()
    else Row(name="d_x: lpips", not_run=f"needs LPIPS' weights: set {' and '.join(LPIPS_FILES)}"),
)


def _ahead_of(space: str) -> tuple[Claim, Claim]:
    other = f"d_x: {space}"
    blurrier = order("sharpness@4", "d_x: latent", other, better="higher")
    return (
        Claim(text=f"At 4 steps latent l2 beats {space} l2", check=_both("d_x: latent", other, suffix="@4")),
        Claim(text=f"At 4 steps {space} l2 is blurrier than latent l2", check=blurrier),
    )


FIG5 = Table(
    name="ccd-fig5",
    title="CCD, Fig. 5: the conditional distance d_x",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), ablations of Fig. 5",
    note=f"{_NOTE} saturation and sharpness are the outputs' over the originals', 1 is right.",
    rows=_FIG5_ROWS,
    claims=with_noise(
        _FIG5_ROWS,
        (
            Claim(text="A d_x beats none", check=_both("d_x: latent", "d_x: none", suffix="@4")),
            Claim(
                text="Without d_x pictures are over-saturated",
                check=every(
                    order("saturation@4", "d_x: none", "d_x: latent", better="higher"),
                    beyond("saturation@4", "d_x: none", 1.0, better="higher"),
                ),
            ),
            *_ahead_of("pixel"),
            *_ahead_of("reencoded"),
            Claim(
                text="LPIPS over-saturates as steps grow",
                check=order("saturation@8", "d_x: lpips", "d_x: latent", better="higher"),
            ),
        ),
    ),
    columns=(*columns(BETTER, "@4"), Column(metric="saturation@4"), Column(metric="sharpness@4")),
    plots=tuple(Plot(name=metric, metric=metric, log=True) for metric in ("frechet", "saturation", "sharpness")),
)

TABLE1, FIG3, FIG5 = map(settled, (TABLE1, FIG3, FIG5))
