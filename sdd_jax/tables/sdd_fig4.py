"""Fig. 4 of SDD: timesteps' scores, manipulators trained at one timestep each, and whether the two rank alike.

Several readings of the score are asked whether they rank timesteps as trainings do, the paper's eq. 8 first. The one
that trainings select by, `config.search`, is this project's: the weight sigma_t^2 was put in because scores without it
fall with t on the world, and no training had run when it was. To choose it by these correlations would be to choose the
answer.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sdd_jax.jobs.sdd.hqs import rank_correlation
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.tables.claims import Unmeasured, beyond, read, settled
from sdd_jax.tables.curves import LEAST, curve, read_at
from sdd_jax.tables.sdd_rows import (
    COLUMNS,
    EDITS,
    EQ_8,
    PINNED,
    PROMPTS,
    RELEASED,
    SCORES,
    SEARCH,
    manipulator_row,
    manipulator_training,
)
from sdd_jax.tables.types import Check, Claim, Column, Measured, Plot, Row, Table, Verdict

TIMESTEPS = {
    "white hair": (100, 250, 400, 500, 600, 750, 900),
    "angry": (100, 250, 400, 600, 750, 900),
    "side view": (100, 250, 400, 600, 750, 900),
}
CHANCE = 0.05
DEFAULTS, PRIMARY = "eq. 8, w = 100", "as trainings search"
READINGS = {
    DEFAULTS: EQ_8,
    PRIMARY: SEARCH,
    "gradients as released": RELEASED,
    "eq. 8, w = 7.5": {**EQ_8, "guidance": 7.5},
}
"""Of the score; the first is `python -m sdd_jax.search` at its defaults."""


def single_row(edit: str, t: int) -> Row:
    """A manipulator of one timestep, trained once: what Fig. 4 draws its correlation from is timesteps, not seeds."""
    training = manipulator_training(edit, "", f"timesteps.given=({t},)", "timesteps.rule=", *PINNED)
    return manipulator_row(f"{edit}, t = {t}", training, (0,), search=SEARCH)


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
    """The metric's rank correlation with the score, N less H, is above those with N, with -H and with t."""

    def decide(measured: Measured) -> Verdict:
        rho, *others = _correlations(measured, metric, scores, rows)
        return Verdict(rho > max(others), f"rank correlation {rho:.3f}; {_PARTS.format(*others)}")

    return Check((scores, *rows.values()), decide)


_PARTS = "with N alone {:.3f}, with -H alone {:.3f}, with t, and so with sigma_t^2, {:.3f}"


def _correlations(measured: Measured, metric: str, scores: str, rows: Mapping[int, str]) -> tuple[float, ...]:
    """Of the rows' metric with HQS, N and -H of their timesteps, and with t; Unmeasured where nothing is to rank."""
    return _ranked(measured, [read(measured, row, metric).mean for row in rows.values()], metric, scores, rows)


def _ranked(
    measured: Measured, means: Sequence[float], metric: str, scores: str, rows: Mapping[int, str]
) -> tuple[float, ...]:
    scored, n, h = ([read(measured, scores, f"{name}@{t}").mean for t in rows] for name in ("hqs", "N", "H"))
    if len(set(means)) < 2:
        raise Unmeasured(f"{metric} is {means[0]:g} in every row: nothing to rank")
    if len(set(scored)) < 2:
        raise Unmeasured(f"{scores} is {scored[0]:g} at every timestep: nothing to rank by")
    return tuple(rank_correlation(means, by) for by in (scored, n, [-x for x in h], list(rows)))


def follows(metric: str, scores: str, rows: Mapping[int, str]) -> Check:
    """The rows' metric ranks as `hqs@t` of their timesteps does: a correlation that chance has once in twenty.

    The evidence has the metric's correlations with N alone, -H alone and t beside it, for a score may owe its own to
    one of them, and the ties, of which the bar knows nothing.
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


def keeps_more(metric: str, scores: str, rows: Mapping[int, str]) -> Check:
    """As `follows`, of the metric where all rows succeed equally often: at the least of their highest success.

    Rows are read along the share of their edit that is made (`tables.curves`), so that the strength of a training does
    not count, only what its timestep makes of it.
    """
    least = significant(len(rows))

    def decide(measured: Measured) -> Verdict:
        paths = [curve(measured, row, "success", metric) for row in rows.values()]
        level = min(max(point.level.mean for point in path) for path in paths)
        if level < LEAST:
            raise Unmeasured(f"one of the timesteps reaches success {level:.3g} at most, asked {LEAST:g}")
        values = [read_at(path, level).value.mean for path in paths]
        scored = [read(measured, scores, f"hqs@{t}").mean for t in rows]
        rho, *others = _ranked(measured, values, metric, scores, rows)
        shown = ", ".join(f"t={t}: {v:.4g} at HQS {s:.2f}" for t, v, s in zip(rows, values, scored, strict=True))
        holds = rho > least or math.isclose(rho, least)
        found = f"rank correlation {rho:.3f} over {len(rows)} timesteps, asked {least:.3f} ({_PARTS.format(*others)})"
        return Verdict(holds, f"{found}: {metric} at success {level:.3g}: {shown}")

    return Check((scores, *rows.values()), decide)


SINGLE = {edit: {t: f"{edit}, t = {t}" for t in times} for edit, times in TIMESTEPS.items()}
SCORED = {
    "white hair": tuple(READINGS),
    "angry": (DEFAULTS, PRIMARY),
    "side view": (DEFAULTS, PRIMARY),
}
FIG4 = Table(
    name="sdd-fig4",
    title="HQS of six prompts, and manipulators trained at a single timestep",
    paper="SDD, Fig. 4: the higher a timestep's HQS, the better it trains",
    note=(
        f"Scores on two disjoint sets of {HQSOptions().images} portraits. 'HQS, PROMPT' is the search command's at "
        "its defaults: the paper's eq. 8 (signed, with the Jacobian; w = 100). 'As trainings search' is this "
        "project's reading: the released code's gradients (no Jacobian, |d| of pixels, w = 100) times training's "
        "weight sigma_t^2, put in after the scores had been seen and before any training had run. One training a "
        "timestep; the correlation asked is what chance reaches once in twenty among as many without ties: of many "
        "such claims some hold by chance. It speaks for the score where N, H and t alone reach less: sigma_t^2 rises "
        "with t. Every training has the same L2 weight, and its gradient that weight: at a low t little is left "
        "against L2. Claims at equal success were added when success had been seen to go with the strength of a "
        "training. "
        "Success ties where it is 0 or 1; CLIP's direction, 0 for a picture left as it was, does not. Plots "
        "against mean HQS are by the trainings' reading."
    ),
    rows=(
        *(scores_row(edit) for edit in PROMPTS),
        *(scores_row(edit, reading) for edit in EDITS for reading in SCORED[edit] if reading != DEFAULTS),
        *(single_row(edit, t) for edit in EDITS for t in TIMESTEPS[edit]),
    ),
    claims=(
        *(
            Claim(
                text=f"{edit}: the higher a timestep's score, {what} ({reading})",
                check=follows(metric, scores_name(edit, reading), SINGLE[edit]),
            )
            for edit in EDITS
            for reading in SCORED[edit]
            for metric, what in (
                ("success", "the more often what is trained at it alone succeeds"),
                ("clip_directional", "the more what is trained at it alone moves towards what was asked (CLIP)"),
            )
        ),
        *(
            Claim(
                text=f"{edit}: at equal success, the higher a timestep's score, the more is kept ({reading})",
                check=keeps_more("psnr_outside", scores_name(edit, reading), SINGLE[edit]),
            )
            for edit in EDITS
            for reading in SCORED[edit]
        ),
        *(
            Claim(
                text=f"{edit}: success follows the score more than N, H or t alone ({PRIMARY})",
                check=leads_its_parts("success", scores_name(edit, PRIMARY), SINGLE[edit]),
            )
            for edit in EDITS
        ),
        *(
            Claim(
                text=f"{scores_name(edit, reading)}: two disjoint sets of images rank the timesteps alike (.8)",
                check=beyond("agreement", scores_name(edit, reading), 0.8, better="higher"),
            )
            for edit in PROMPTS
            for reading in SCORED.get(edit, (DEFAULTS,))
        ),
    ),
    columns=(*COLUMNS, Column(metric="agreement", better="higher")),
    plots=(
        Plot(name="scores", metric="hqs", label="timestep", rows=tuple(scores_name(edit) for edit in PROMPTS)),
        Plot(
            name="readings", metric="hqs", label="timestep",
            rows=tuple(scores_name("white hair", reading) for reading in READINGS),
        ),
        *(
            Plot(name=f"{EDITS[edit]}-{metric}", metric=metric, against="mean_hqs", rows=tuple(SINGLE[edit].values()))
            for edit in EDITS
            for metric in ("success", "clip_directional")
        ),
        *(
            Plot(name=f"{EDITS[edit]}-kept", metric="psnr_outside", against="success", rows=tuple(names.values()))
            for edit, names in SINGLE.items()
        ),
    ),
)  # fmt: skip
FIG4 = settled(FIG4)
