"""iCD's figures of dynamic guidance (4a, 5a) and of the training (11) on the embedded world.

Fig. 4a: the mean square error of reconstructions against the threshold T below which guidance is on; its growth is read
in the latents, where the autoencoder adds no floor. Fig. 5a: that error against ImageReward for CADS schedules (tau1,
tau2), tau1 a line each; here against the CLIP score, for attribute accuracy saturates. Both are of the teacher and 50
DDIM steps, as in the paper. Fig. 11: FID and reconstruction error of iCD over training iterations, and those of DDIM.
Panels 4b and 5b are pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdd_jax.tables.claims import every
from sdd_jax.tables.icd_checks import exponential, rises, undominated
from sdd_jax.tables.icd_rows import AT_W, GUIDED, SCHEDULES, STEPS, TRAINING, TWICE, WITH_BOTH
from sdd_jax.tables.paired import at_shared_seeds, closes_in_every_seed, in_every_seed
from sdd_jax.tables.types import Claim, Column, Plot, Row, Table

TAUS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_THRESHOLDS: dict[str, dict[str, float]] = {f"{tau:g}": {"tau": tau} for tau in TAUS}
DDIM, ICD = "DDIM50", "iCD, 4 steps"

FIG4 = Table(
    name="icd-fig4",
    title="Reconstruction against the threshold at which guidance turns on",
    paper="iCD, figure 4a",
    note=f"{AT_W}. tau = 0 is no guidance, 1 constant guidance. The row of iCD is not in the paper.",
    rows=(
        Row(name=DDIM, evaluation=SCHEDULES, options={**GUIDED, "points": _THRESHOLDS}, minutes=9.0),
        Row(name=ICD, training=WITH_BOTH, seeds=TWICE, evaluation=SCHEDULES, options={**GUIDED, "points": _THRESHOLDS}),
    ),
    columns=(
        *(Column(metric=f"mse@{tau:g}", title=f"MSE, tau = {tau:g}", better="lower") for tau in TAUS),
        *(
            Column(metric=f"latent_mse@{tau:g}", title=f"MSE of latents, tau = {tau:g}", better="lower")
            for tau in (0.0, 0.5, 1.0)
        ),
    ),
    claims=(
        Claim(text="the later guidance turns on, the smaller the error", check=rises("mse", DDIM)),
        Claim(
            text="it decreases exponentially (its logarithm is nearer to a line)", check=exponential("latent_mse", DDIM)
        ),
    ),
    plots=(Plot(name="mse", metric="mse", label="tau"), Plot(name="latents", metric="latent_mse", label="tau")),
)

RAMPS: Mapping[float, tuple[float, ...]] = {0.1: (0.1, 1.0), 0.7: (0.7, 0.8, 1.0), 0.8: (0.8, 0.9, 1.0)}
OFF, CONSTANT = "constant CFG, off", "constant CFG"
KEPT = 0.7
"""Share of what constant guidance gains in CLIP score over none that "slightly lower performance" keeps at least."""


def _line(tau: float) -> str:
    return f"tau1 = {tau:g}"


def _schedule(tau: float, to: float) -> dict[str, float]:
    return {"tau": tau} if to == tau else {"tau": tau, "ramp_to": to}


def _traded(name: str, points: Mapping[str, Mapping[str, Any]], **options: Any) -> Row:
    asked = {**GUIDED, **options, "generation": True, "points": points}
    return Row(name=name, evaluation=SCHEDULES, options=asked, minutes=1.0 + 1.6 * len(points))


FIG5 = Table(
    name="icd-fig5",
    title="Generation against reconstruction under dynamic guidance",
    paper="iCD, figure 5a",
    note=f"{AT_W}. CLIP score in place of ImageReward; tau2 = tau1 is the step that iCD uses. The lines of the claims "
    "and one at the other end, with fewer points than the paper's.",
    rows=(
        *(_traded(_line(tau), {f"{to:g}": _schedule(tau, to) for to in ends}) for tau, ends in RAMPS.items()),
        _traded(OFF, {"1": {}}, w=1.0),
        _traded(CONSTANT, {"1": {}}),
    ),
    columns=(
        *(
            Column(metric=f"{metric}@{tau:g}", title=f"{title}, tau2 = {tau:g}", better=better)
            for tau in (0.1, 0.7, 0.8, 1.0)
            for metric, title, better in (("mse", "MSE", "lower"), ("clip_score", "CLIP score", "higher"))
        ),
    ),
    claims=(
        *(
            Claim(
                text=f"tau = {tau:g}: slightly lower text-to-image performance (it keeps {KEPT:.0%} of what constant "
                "guidance gains in CLIP score), significantly better reconstruction",
                check=every(
                    in_every_seed(f"mse@{tau:g}", _line(tau), CONSTANT, against="mse@1", better="lower"),
                    closes_in_every_seed(
                        f"clip_score@{tau:g}",
                        _line(tau),
                        OFF,
                        CONSTANT,
                        against="clip_score@1",
                        share=KEPT,
                        better="higher",
                    ),
                ),
            )
            for tau in (0.7, 0.8)
        ),
        Claim(
            text="settings with tau1 = tau2 do as well as those with tau1 < tau2",
            check=every(*(undominated(tau, _line(tau), ()) for tau in (0.7, 0.8))),
        ),
        Claim(
            text="tau1 = tau2 = 0.8 is a preferable trade-off",
            check=undominated(0.8, _line(0.8), (*map(_line, RAMPS), OFF, CONSTANT)),
        ),
    ),
    plots=(
        Plot(name="clip", metric="clip_score", against="mse"),
        Plot(name="attributes", metric="attributes", against="mse"),
    ),
)

LAST = STEPS["stage2"][0]
FIG11 = Table(
    name="icd-fig11",
    title="iCD over its training",
    paper="iCD, figure 11",
    note=f"{AT_W}: samples are guided, reconstructions not (the paper does not say which). Six checkpoints and the "
    "start. The learning rate falls to zero here, it was constant in the paper: a curve that levels off may show that.",
    rows=(
        Row(name=DDIM, evaluation=TRAINING, options={**GUIDED, "samples": 128, "at": (0, LAST)}, minutes=4.0),
        Row(
            name=ICD, training=WITH_BOTH, seeds=TWICE, evaluation=TRAINING, options={**GUIDED, "samples": 128},
            minutes=5.0,
        ),
    ),
    columns=tuple(
        Column(metric=f"{metric}@{step}", title=f"{title}, step {step}", better="lower")
        for metric, title in (("frechet", "Frechet"), ("mse", "MSE"))
        for step in (0, LAST // 2, LAST)
    ),
    claims=(
        *(
            Claim(
                text=f"training lowers {what}",
                check=in_every_seed(f"{metric}@{LAST}", ICD, ICD, against=f"{metric}@0", better="lower"),
            )
            for metric, what in (("mse", "the reconstruction error"), ("frechet", "FID"))
        ),
    ),
    plots=(
        Plot(name="frechet", metric="frechet", label="training iteration"),
        Plot(name="mse", metric="mse", label="training iteration"),
    ),
)  # fmt: skip

FIG4, FIG5, FIG11 = map(at_shared_seeds, (FIG4, FIG5, FIG11))
