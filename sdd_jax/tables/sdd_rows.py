"""What the rows of SDD's tables are: edits and their prompts, trainings, editors, and what frames them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sdd_jax.tables.types import Column, Row, Training

LATENT, STYLE = "configs/sdd_latent.py", "configs/sdd_stylegan.py"
MINUTES = {LATENT: (4.5, 4.5), STYLE: (3.0, 1.0)}
"""Of one core: guided by diffusion, by CLIP."""
EDITS = {"white hair": "white_hair", "angry": "angry", "side view": "side_view"}
PROMPTS = {
    "white hair": "a photo of a {species} with white {coat}",
    "angry": "a photo of an angry {species}",
    "side view": "a photo of a {species}, facing left",
    "glasses": "a photo of a {species} wearing glasses",
    "smiling": "a photo of a smiling {species}",
    "snowing": "a photo of a {species}, snowing",
}
STRATEGIES = {"random": "all", "small xi": "", "large xi": "top:3", "argmax": "argmax"}
GENTLE = "large xi by eq. 8, L2 .2"
MANIPULATOR, COSTS, EDITOR, SOURCE, ANSWER, REBUILT, SCORES = (
    f"sdd_jax.jobs.sdd.tables:{name}"
    for name in ("manipulator", "cost", "editor", "source", "answer", "rebuilt", "scores")
)
EQ_8: dict[str, Any] = {"jacobian": True, "absolute": False, "weighted": False, "guidance": 100.0}
RELEASED: dict[str, Any] = {**EQ_8, "jacobian": False, "absolute": True}
SEARCH = {**RELEASED, "weighted": True}
"""`config.search` of the trainings, chosen before any of them had run."""
PINNED = ("search.jacobian=False", "search.absolute=True", "search.weighted=True", "search.guidance=100.0")
"""Of trainings that never read the search: another reading in the config leaves them as they are."""
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


def manipulator_training(edit: str, variant: str = "", *overrides: str, config: str = LATENT) -> Training:
    """An edit's training, of the translator of latents unless `config` says otherwise."""
    names = ",".join(name for name in (EDITS[edit], variant) if name)
    return Training(config=f"{config}:{names}", overrides=overrides, minutes=MINUTES[config]["clip" in variant])


def manipulator_row(name: str, training: Training, seeds: Sequence[int] = (0, 1), **options: Any) -> Row:
    """A trained manipulator on held-out portraits; options: of the evaluation."""
    return Row(
        name=name,
        training=training,
        seeds=tuple(seeds),
        sampling_seeds=(0,),
        evaluation=MANIPULATOR,
        options=options,
        minutes=1.0,
    )


def strategy_row(strategy: str, edit: str) -> Row:
    """One of Table 3's four; random timesteps are of no search, their mean score is."""
    override = f"timesteps.rule={STRATEGIES[strategy]}"
    name = f"{strategy}, {edit}"
    if strategy == "random":
        return manipulator_row(name, manipulator_training(edit, "", override, *PINNED), search=SEARCH)
    return manipulator_row(name, manipulator_training(edit, "", override))


def gentle_row(edit: str) -> Row:
    """The three best timesteps by eq. 8, with a third of the L2 weight, trained once."""
    reading = (f"search.{name}={value}" for name, value in EQ_8.items())
    training = manipulator_training(edit, "", "timesteps.rule=top:3", "objective.l2_weight=0.2", *reading)
    return manipulator_row(f"{GENTLE}, {edit}", training, (0,), search=SEARCH)


def selected_row(edit: str) -> Row:
    """SDD as the config has it: timesteps above the threshold 0."""
    return manipulator_row(f"SDD, {edit}", manipulator_training(edit))


def style_row(method: str, edit: str, variant: str = "") -> Row:
    """The mapper of StyleGAN codes."""
    return manipulator_row(f"{method} on StyleGAN, {edit}", manipulator_training(edit, variant, config=STYLE))


def editor_row(name: str, edit: str, minutes: float, **options: Any) -> Row:
    """An editing method of the untrained teacher, once: every portrait has a noise of its own."""
    return Row(
        name=f"{name}, {edit}",
        evaluation=EDITOR,
        options={"prompt": PROMPTS[edit], **options},
        sampling_seeds=(0,),
        minutes=minutes,
    )


def sdedit_row(edit: str) -> Row:
    """SDEdit along its strength."""
    strengths = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8]
    return editor_row("SDEdit", edit, 12.0, method="sdedit", strengths=strengths, samples=128)


def framing_rows(edit: str) -> tuple[Row, ...]:
    """The source, which edits nothing and keeps everything, and what perfect edits of latents and codes would reach."""

    def framing(name: str, evaluation: str, note: str) -> Row:
        return Row(
            name=f"{name}, {edit}",
            evaluation=evaluation,
            options={"prompt": PROMPTS[edit]},
            sampling_seeds=(0,),
            minutes=0.5,
            note=note,
        )

    return (
        framing("the source, as it is", SOURCE, "an editor that changes nothing keeps everything"),
        framing("exact answer, autoencoded", ANSWER, "no method on latents can do better"),
        framing("exact answer, generator's reconstruction", REBUILT, "no edit of codes can do better"),
    )


def priced(row: Row) -> Row:
    """The same training, priced in place of measured."""
    return dataclasses.replace(row, evaluation=COSTS, minutes=2.0)
