"""What the rows of SDD's tables are: edits and their prompts, trainings, editors, scores, and the check of Fig. 4."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
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
STRATEGIES = {"random": "all", "small xi": "", "large xi": "top:3", "argmax": "argmax"}
TIMESTEPS = {
    "white hair": (100, 250, 400, 500, 600, 750, 900),
    "angry": (100, 250, 400, 600, 750, 900),
    "side view": (100, 250, 400, 600, 750, 900),
}
CHANCE = 0.05
MANIPULATOR, COSTS, EDITOR, SOURCE, ANSWER, REBUILT, SCORES = (
    f"sdd_jax.jobs.sdd.tables:{name}"
    for name in ("manipulator", "cost", "editor", "source", "answer", "rebuilt", "scores")
)
EQ_8: dict[str, Any] = {"jacobian": True, "absolute": False, "weighted": False, "guidance": 100.0}
RELEASED: dict[str, Any] = {**EQ_8, "jacobian": False, "absolute": True}
SEARCH = {**RELEASED, "weighted": True}
"""`config.search` of the trainings, chosen before any of them had run."""
DEFAULTS = "eq. 8, w = 100"
READINGS = {
    DEFAULTS: EQ_8,
    "as trainings search": SEARCH,
    "gradients as released": RELEASED,
    "eq. 8, w = 7.5": {**EQ_8, "guidance": 7.5},
}
"""Of the score; the first is `python -m sdd_jax.search` at its defaults."""
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
NO_STYLE = "the world has no style/: train it with configs/pretrain_style.py and export it"


def manipulator_training(edit: str, variant: str = "", *overrides: str, config: str = LATENT) -> Training:
    """An edit's training, of the translator of latents unless `config` says otherwise."""
    names = ",".join(name for name in (EDITS[edit], variant) if name)
    return Training(config=f"{config}:{names}", overrides=overrides, minutes=6.0 if "clip" in variant else 5.0)


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


def single_row(edit: str, t: int) -> Row:
    """A manipulator of one timestep, trained once: what Fig. 4 draws its correlation from is timesteps, not seeds."""
    training = manipulator_training(edit, "", f"timesteps.given=({t},)", "timesteps.rule=", *PINNED)
    return manipulator_row(f"{edit}, t = {t}", training, (0,), search=SEARCH)


def selected_row(edit: str) -> Row:
    """SDD as the config has it: timesteps above the threshold 0."""
    return manipulator_row(f"SDD, {edit}", manipulator_training(edit))


def style_row(method: str, edit: str, variant: str = "", world: Path = PORTRAITS) -> Row:
    """The mapper of StyleGAN codes; a row that is not run where the world has no generator."""
    name = f"{method} on StyleGAN, {edit}"
    if not _has_style(world):
        return Row(name=name, not_run=NO_STYLE)
    return manipulator_row(name, manipulator_training(edit, variant, config=STYLE))


def _has_style(world: Path) -> bool:
    return (world / "style" / "model.safetensors").is_file()


def editor_row(name: str, edit: str, minutes: float = 3.0, *, seeds: Sequence[int] = (0, 1), **options: Any) -> Row:
    """An editing method of the untrained teacher."""
    return Row(
        name=f"{name}, {edit}",
        evaluation=EDITOR,
        options={"prompt": PROMPTS[edit], **options},
        sampling_seeds=tuple(seeds),
        minutes=minutes,
    )


def sdedit_row(edit: str) -> Row:
    """SDEdit along its strength."""
    strengths = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8]
    return editor_row("SDEdit", edit, 7.0, method="sdedit", strengths=strengths, samples=128)


def framing_rows(edit: str, world: Path = PORTRAITS) -> tuple[Row, ...]:
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

    rebuilt = framing("exact answer, generator's reconstruction", REBUILT, "no edit of codes can do better")
    if not _has_style(world):
        rebuilt = Row(name=rebuilt.name, not_run=NO_STYLE)
    return (
        framing("the source, as it is", SOURCE, "an editor that changes nothing keeps everything"),
        framing("exact answer, autoencoded", ANSWER, "no method on latents can do better"),
        rebuilt,
    )


def scores_row(edit: str, reading: str = DEFAULTS) -> Row:
    """A prompt's HQS over t."""
    search = READINGS[reading]
    return Row(
        name=scores_name(edit, reading),
        evaluation=SCORES,
        options={"prompt": PROMPTS[edit], "search": dict(search)},
        sampling_seeds=(0,),
        minutes=3.0 if search["jacobian"] else 2.0,
    )


def scores_name(edit: str, reading: str = DEFAULTS) -> str:
    """The name of a prompt's scores."""
    return f"HQS, {edit}" if reading == DEFAULTS else f"HQS, {edit}, {reading}"


@functools.cache
def significant(n: int) -> float:
    """The least rank correlation of n pairs without ties that chance reaches in `CHANCE` of all orders or fewer."""
    orders = {0: Counter({0: 1})}  # the ranks taken, as bits -> {sum of squared differences: orders}
    for place in range(n):
        longer: dict[int, Counter[int]] = {}
        for taken, sums in orders.items():
            for rank in (rank for rank in range(n) if not taken >> rank & 1):
                found = longer.setdefault(taken | 1 << rank, Counter())
                for total, count in sums.items():
                    found[total + (place - rank) ** 2] += count
        orders = longer
    (sums,) = orders.values()
    reached, least = 0, 2.0
    for total in sorted(sums):
        reached += sums[total]
        if reached > CHANCE * sums.total():
            break
        least = 1 - 6 * total / (n * (n * n - 1))
    if least > 1:
        raise ValueError(f"{n} pairs: chance orders them alike more often than {CHANCE:g}; rank more")
    return least


def leads_its_parts(metric: str, scores: str, rows: Mapping[int, str]) -> Check:
    """The metric's rank correlation with the score is above those with N, with H and with t."""

    def decide(measured: Measured) -> Verdict:
        rho, *others = _correlations(measured, metric, scores, rows)
        return Verdict(rho > max(others), f"rank correlation {rho:.3f}; {_PARTS.format(*others)}")

    return Check((scores, *rows.values()), decide)


_PARTS = "with N alone {:.3f}, with H alone {:.3f}, with t, and so with sigma_t^2, {:.3f}"


def _correlations(measured: Measured, metric: str, scores: str, rows: Mapping[int, str]) -> tuple[float, ...]:
    """Of the rows' metric with HQS, N and H of their timesteps, and with t; Unmeasured where nothing is to rank."""
    means = [read(measured, row, metric).mean for row in rows.values()]
    scored, n, h = ([read(measured, scores, f"{name}@{t}").mean for t in rows] for name in ("hqs", "N", "H"))
    if len(set(means)) < 2:
        raise Unmeasured(f"{metric} is {means[0]:g} in every row: nothing to rank")
    if len(set(scored)) < 2:
        raise Unmeasured(f"{scores} is {scored[0]:g} at every timestep: nothing to rank by")
    return tuple(rank_correlation(means, by) for by in (scored, n, h, list(rows)))


def follows(metric: str, scores: str, rows: Mapping[int, str]) -> Check:
    """The rows' metric ranks as `hqs@t` of their timesteps does: a correlation that chance has once in twenty.

    The evidence has the metric's correlations with N alone, H alone and t beside it, for a score may owe its own to one
    of them, and the ties, of which the bar knows nothing.
    """
    least = significant(len(rows))

    def decide(measured: Measured) -> Verdict:
        rho, *others = _correlations(measured, metric, scores, rows)
        values = [read(measured, row, metric) for row in rows.values()]
        scored = [read(measured, scores, f"hqs@{t}").mean for t in rows]
        means, beside = [value.mean for value in values], _PARTS.format(*others)
        tied = sum(means.count(mean) > 1 for mean in means)
        ties = f"; {tied} of {len(rows)} tie in {metric}, the asked is without ties" if tied else ""
        shown = ", ".join(f"t={t}: {metric} {v} at HQS {s:.2f}" for t, v, s in zip(rows, values, scored, strict=True))
        holds = rho > least or math.isclose(rho, least)
        found = f"rank correlation {rho:.3f} over {len(rows)} timesteps, asked {least:.3f}"
        return Verdict(holds, f"{found} ({beside}{ties}): {shown}")

    return Check((scores, *rows.values()), decide)


def priced(row: Row) -> Row:
    """The same training, priced in place of measured."""
    return row if row.not_run else dataclasses.replace(row, evaluation=COSTS, minutes=2.0)
