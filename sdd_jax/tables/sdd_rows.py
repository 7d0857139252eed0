"""What the rows of SDD's tables are: edits and their prompts, trainings, editors, scores, and the check of Fig. 4."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdd_jax.jobs.sdd.hqs import rank_correlation
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.tables.claims import Unmeasured, read
from sdd_jax.tables.types import Check, Column, Measured, Row, Training, Verdict

LATENT, STYLE = "configs/sdd_latent.py", "configs/sdd_stylegan.py"
EDITS = {"white hair": "white_hair", "angry": "angry", "side view": "side_view"}
PROMPTS = {
    "white hair": "a photo of a {species} with white {coat}",
    "angry": "a photo of an angry {species}",
    "side view": "a photo of a {species}, facing left",
    "glasses": "a photo of a {species} wearing glasses",
    "smiling": "a photo of a smiling {species}",
    "snowing": "a photo of a {species}, snowing",
}
STRATEGIES = {"random": "all", "small xi": "threshold:0", "large xi": "top:3", "argmax": "argmax"}
TIMESTEPS = (100, 200, 300, 400, 500, 600, 700, 800, 900)
SIGNIFICANT = 0.6
"""Spearman's correlation of nine pairs that chance exceeds once in twenty."""
MANIPULATOR, COSTS, EDITOR, ANSWER, SCORES = (
    f"sdd_jax.jobs.sdd.tables:{name}" for name in ("manipulator", "cost", "editor", "answer", "scores")
)
EQ_8: dict[str, Any] = {"jacobian": True, "absolute": False, "weighted": False, "images": 64}
RELEASED: dict[str, Any] = {"jacobian": False, "absolute": True, "weighted": False, "guidance": 100.0, "images": 64}
SEARCH = {**RELEASED, "weighted": True}
READINGS = {
    "as trainings search": SEARCH,
    "gradients as released": RELEASED,
    "eq. 8, w = 100": {**EQ_8, "guidance": 100.0},
    "eq. 8, w = 7.5": {**EQ_8, "guidance": 7.5},
}
COLUMNS = (
    Column(metric="success", better="higher"),
    Column(metric="preservation", better="higher"),
    Column(metric="psnr", better="higher"),
    Column(metric="psnr_outside", better="higher"),
    Column(metric="clip_score", better="higher"),
    Column(metric="clip_directional", better="higher"),
    Column(metric="mean_hqs", title="mean HQS"),
    Column(metric="seconds", title="seconds an image", better="lower"),
)
NO_DIFFAE = Row(name="DiffAE", not_run="another model family: needs a diffusion autoencoder of the data")
NO_STYLE = "the world has no style/: train it with configs/pretrain_style.py and export it"


def manipulator_training(edit: str, variant: str = "", *overrides: str, config: str = LATENT) -> Training:
    """An edit's training, of the translator of latents unless `config` says otherwise."""
    names = ",".join(name for name in (EDITS[edit], variant) if name)
    return Training(config=f"{config}:{names}", overrides=overrides, minutes=6.0 if "clip" in variant else 5.0)


def manipulator_row(name: str, training: Training, seeds: Sequence[int] = (0, 1)) -> Row:
    """A trained manipulator on held-out portraits."""
    return Row(
        name=name, training=training, seeds=tuple(seeds), sampling_seeds=(0,), evaluation=MANIPULATOR, minutes=1.0
    )


def selected_row(edit: str) -> Row:
    """SDD as the config has it: timesteps above the threshold 0."""
    return manipulator_row(f"SDD, {edit}", manipulator_training(edit))


def style_row(method: str, edit: str, variant: str = "", world: Path = PORTRAITS) -> Row:
    """The mapper of StyleGAN codes; a row that is not run where the world has no generator."""
    name = f"{method} on StyleGAN, {edit}"
    if not (world / "style" / "model.safetensors").is_file():
        return Row(name=name, not_run=NO_STYLE)
    return manipulator_row(name, manipulator_training(edit, variant, config=STYLE))


def editor_row(name: str, edit: str, *, seeds: Sequence[int] = (0, 1), **options: Any) -> Row:
    """An editing method of the untrained teacher."""
    return Row(
        name=f"{name}, {edit}",
        evaluation=EDITOR,
        options={"prompt": PROMPTS[edit], **options},
        sampling_seeds=tuple(seeds),
        minutes=3.0,
    )


def answer_row(edit: str) -> Row:
    """What a perfect method on latents would reach."""
    return Row(
        name=f"exact answer, autoencoded, {edit}",
        evaluation=ANSWER,
        options={"prompt": PROMPTS[edit]},
        sampling_seeds=(0,),
        minutes=0.5,
        note="no method on latents can do better",
    )


def scores_row(name: str, edit: str, search: Mapping[str, Any]) -> Row:
    """A prompt's HQS over t."""
    return Row(
        name=name,
        evaluation=SCORES,
        options={"prompt": PROMPTS[edit], "search": dict(search)},
        sampling_seeds=(0,),
        minutes=3.0 if search["jacobian"] else 2.0,
    )


def follows(metric: str, scores: str, rows: Mapping[int, str], least: float = SIGNIFICANT) -> Check:
    """The rows' metric ranks as `hqs@t` of their timesteps does: Spearman's correlation of `least` or more."""

    def decide(measured: Measured) -> Verdict:
        values = [read(measured, row, metric) for row in rows.values()]
        scored = [read(measured, scores, f"hqs@{t}").mean for t in rows]
        if len({value.mean for value in values}) < 2:
            raise Unmeasured(f"{metric} is {values[0].mean:g} in every row: nothing to rank")
        if len(set(scored)) < 2:
            raise Unmeasured(f"{scores} is {scored[0]:g} at every timestep: nothing to rank by")
        rho = rank_correlation([value.mean for value in values], scored)
        shown = ", ".join(f"t={t}: {metric} {v} at HQS {s:.2f}" for t, v, s in zip(rows, values, scored, strict=True))
        return Verdict(rho >= least, f"rank correlation {rho:.2f} over {len(rows)} timesteps, asked {least:g}: {shown}")

    return Check((scores, *rows.values()), decide)


def priced(row: Row) -> Row:
    """The same training, priced in place of measured."""
    return row if row.not_run else dataclasses.replace(row, evaluation=COSTS, minutes=2.0)
