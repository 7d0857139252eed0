"""What CCD's tables are made of: trainings with their cost, rows that measure them, claims with their noise.

Trainings are planned by what a sample costs, in forwards F of the UNet, of which two cores do `RATE` a second, and by
what Muon adds to a step, `MUON` seconds whatever the batch. Both come from CCD's 4F + 4A (A = .46F the ControlNet's
forward) in steps of 16: one core trains 10.6 samples a second with AdamW and 8.7 with Muon, two cores 15.1 with Muon.
Muon's share is that of UNet and ControlNet, and less where one is trained alone. A decoder's forward is 1.5F, an
encoder's .5F. In sampling a forward takes `FORWARD` seconds, half of what it does on one core.

Noise. Two samplings of one training differ less than two trainings do, so that their spread alone would let an ordering
hold by luck. Rows that are trained twice measure what a training seed does: in claims the root mean square of their
spreads is the least spread of every row of the table, metric by metric.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.tables.types import Check, Claim, Column, Measured, Row, Training, Verdict

SAMPLES = 256
BATCH = 16
CONTROLNET = 0.46
DECODER, ENCODER = 1.5, 0.5
CCD = 4 + 4 * CONTROLNET
FINE_TUNING = 3 + 3 * CONTROLNET
_ADAMW, _MUON, _MUON_ON_TWO = 10.6, 8.7, 15.1
RATE = _ADAMW * CCD * _MUON_ON_TWO / _MUON
MUON = BATCH * (1 / _MUON - 1 / _ADAMW) * _MUON / _MUON_ON_TWO
FORWARD = 0.0065
HELDOUT = "sdd_jax.tables.ccd_measures:heldout"
BETTER = {
    "frechet": "lower",
    "clip_distance": "lower",
    "lpips": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "attributes": "higher",
    "identity": "higher",
}


def training(config: str, *overrides: str, steps: int, forwards: float, **needs: Training) -> Training:
    """A training of configs/CONFIG, which has `steps` steps and costs `forwards` F a sample; `needs` by their keys."""
    named = {f"{key}.workdir": needed for key, needed in needs.items()}
    minutes = round(steps * (BATCH * forwards / RATE + MUON) / 60, 1)
    return Training(config=f"configs/{config}", overrides=(*overrides, "preview_every=0"), needs=named, minutes=minutes)


def sampled(name: str, made: Training, steps: int | Sequence[int], *, output: str = "model", **options: Any) -> Row:
    """A row of samples in some number of steps, or several; `options` are the row's fields and the evaluation's."""
    fields = {key: options.pop(key) for key in ("note", "seeds") if key in options}
    forwards = 1 if output == "teacher" else 1 + CONTROLNET
    guided = output == "teacher" or "guidance" in options
    if output != "model":
        options["output"] = output
    taken = steps if isinstance(steps, int) else sum(steps)
    return Row(
        name=name,
        training=made,
        evaluation=HELDOUT,
        options={"steps": steps, "samples": SAMPLES, **options},
        minutes=round(1.5 + taken * forwards * (1 + guided) * SAMPLES * FORWARD / 60, 1),
        **fields,
    )


def unsampled(name: str, made: Training, output: str, note: str, **options: Any) -> Row:
    """A row that needs no sampling, of the training's data: a copy of the condition, or the autoencoder's limit."""
    return Row(
        name=name,
        training=made,
        sampling_seeds=(0,),
        evaluation=HELDOUT,
        options={"output": output, "samples": SAMPLES, **options},
        minutes=1.0,
        note=note,
    )


def columns(better: Mapping[str, str] = BETTER, suffix: str = "") -> tuple[Column, ...]:
    """Columns of the metrics, and of what the training saw."""
    shown = tuple(Column(metric=f"{name}{suffix}", better=direction) for name, direction in better.items())
    return (*shown, Column(metric="train_samples", title="thousand samples trained on"))


def with_noise(rows: Sequence[Row], claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims, decided with no less than the noise between trainings of the rows that are trained more than once."""
    repeated = {row.name: len(row.sampling_seeds) for row in rows if row.training and len(row.seeds) > 1}

    def widened(measured: Measured) -> Measured:
        spreads: dict[str, list[float]] = {}
        for name, samplings in repeated.items():
            for metric, found in measured.get(name, {}).items():
                if found.runs > samplings:
                    spreads.setdefault(metric, []).append(found.spread)
        least = {metric: math.sqrt(math.fsum(x * x for x in xs) / len(xs)) for metric, xs in spreads.items()}
        return {
            name: {
                metric: found._replace(spread=max(found.spread, least.get(metric, 0.0)))
                for metric, found in metrics.items()
            }
            for name, metrics in measured.items()
        }

    def noisy(check: Check) -> Check:
        def decide(measured: Measured) -> Verdict:
            return check.decide(widened(measured))

        return Check(check.rows, decide)

    return tuple(dataclasses.replace(claim, check=noisy(claim.check)) for claim in claims)
