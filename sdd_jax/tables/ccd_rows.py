"""What CCD's tables are made of: trainings with their cost, rows that measure them, claims with their noise.

Trainings are planned by what a sample costs, in forwards F of the UNet, of which two cores do `RATE` a second, by what
Muon adds to a step, `MUON` seconds whatever the batch, and by `START` minutes until steps run. They come from CCD's
4F + 4A (A = .46F the ControlNet's forward) in steps of 16: one core trains 10.6 samples a second with AdamW and 8.7
with Muon, two idle ones 12.9 with Muon, checkpoints included: 400 steps in 9:28 minutes. Muon's share is that of UNet
and ControlNet, and less where one is trained alone. A decoder's forward is 1.5F, an encoder's .5F, VGG16's 2.9F. In
sampling a forward takes `FORWARD` seconds, half of what it does on one core.

Each training fits 15 minutes on two idle cores; a method of several stages is several trainings, each of which other
rows may share.

Noise. Two samplings of one training differ less than two trainings do, so that their spread alone would let an ordering
hold by luck. Rows that are trained twice measure what a training seed does to a metric, as a share of its mean: a
method at 4 and one at 40 do not vary by the same. A training counts once, by the mean square over the rows that measure
it and, of curves `metric@n`, over n: those are one pair of trainings looked at several times. The root mean square over
trainings, times a row's own mean, is the least spread of that row in claims.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdd_jax.tables.types import Check, Claim, Column, Measured, Row, Training, Verdict

SAMPLES = 256
BATCH = 16
CONTROLNET = 0.46
DECODER, ENCODER, VGG = 1.5, 0.5, 2.9
CCD = 4 + 4 * CONTROLNET
FINE_TUNING = 3 + 3 * CONTROLNET
ADAPTER_ALONE = 2.64 + 4 * CONTROLNET
_ADAMW, _MUON, _MUON_ON_TWO = 10.6, 8.7, 12.9
RATE = _ADAMW * CCD * _MUON_ON_TWO / _MUON
START = 1.2
MUON = BATCH * (1 / _MUON - 1 / _ADAMW) * _MUON / _MUON_ON_TWO
FORWARD = 0.0065
HELDOUT = "sdd_jax.tables.ccd_measures:heldout"
LPIPS_FILES = ("SDD_JAX_LPIPS_BACKBONE", "SDD_JAX_LPIPS_LINEAR")
ON_THE_MACHINE = "Minutes are those of the machine named below: two idle cores train CCD's 400 steps in 9:28."
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
    minutes = round(START + steps * (BATCH * forwards / RATE + MUON) / 60, 1)
    return Training(config=f"configs/{config}", overrides=(*overrides, "preview_every=0"), needs=named, minutes=minutes)


def lpips_files() -> tuple[str, ...]:
    """VGG16's and LPIPS' weight files, of the variables `LPIPS_FILES`; () for neither; ValueError for one alone."""
    files = {name: os.environ.get(name, "") for name in LPIPS_FILES}
    unset = [name for name, file in files.items() if not file]
    if len(unset) == 1:
        given = next(name for name in files if name not in unset)
        raise ValueError(f"{given} is set and {unset[0]} is not: LPIPS reads both files, set both variables or neither")
    return () if unset else tuple(files.values())


def _measured() -> dict[str, Any]:
    """What every evaluation's options have beside the row's own."""
    files = lpips_files()
    return {"samples": SAMPLES, **({"lpips": files} if files else {})}


def sampled(name: str, made: Training, steps: int | Sequence[int], *, output: str = "model", **options: Any) -> Row:
    """A row of samples in some number of steps, or several; `options` are the row's fields and the evaluation's."""
    fields = {key: options.pop(key) for key in ("note", "seeds", "sampling_seeds") if key in options}
    forwards = 1 if output == "teacher" else 1 + CONTROLNET
    guided = output == "teacher" or "guidance" in options
    if output != "model":
        options["output"] = output
    taken = steps if isinstance(steps, int) else sum(steps)
    return Row(
        name=name,
        training=made,
        evaluation=HELDOUT,
        options={"steps": steps, **_measured(), **options},
        minutes=round(1.5 + taken * forwards * (1 + guided) * SAMPLES * FORWARD / 60, 1),
        **fields,
    )


def unsampled(name: str, made: Training, output: str, note: str) -> Row:
    """A row that needs no sampling, of the training's data: a copy of the condition, or the autoencoder's limit."""
    return Row(
        name=name,
        training=made,
        sampling_seeds=(0,),
        evaluation=HELDOUT,
        options={"output": output, **_measured()},
        minutes=1.0,
        note=note,
    )


def columns(better: Mapping[str, str] = BETTER, suffix: str = "") -> tuple[Column, ...]:
    """Columns of the metrics, and of what the training saw."""
    shown = tuple(Column(metric=f"{name}{suffix}", better=direction) for name, direction in better.items())
    return (*shown, Column(metric="train_samples", title="thousand samples trained on"))


def with_noise(rows: Sequence[Row], claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims, decided with no less than the noise between trainings of the rows that are trained more than once."""
    repeated = [row for row in rows if row.training and len(row.seeds) > 1]

    def widened(measured: Measured) -> Measured:
        noise = _relative_noise(repeated, measured)
        return {
            name: {
                metric: found._replace(spread=max(found.spread, noise.get(_base(metric), 0.0) * abs(found.mean)))
                for metric, found in metrics.items()
            }
            for name, metrics in measured.items()
        }

    def noisy(check: Check) -> Check:
        def decide(measured: Measured) -> Verdict:
            return check.decide(widened(measured))

        return Check(check.rows, decide)

    return tuple(dataclasses.replace(claim, check=noisy(claim.check)) for claim in claims)


def _relative_noise(repeated: Sequence[Row], measured: Measured) -> dict[str, float]:
    """Spread over mean between trainings, by metric without '@'; rows without a second training yet do not count."""
    squares: dict[str, dict[str, list[float]]] = {}
    for row in repeated:
        for metric, found in measured.get(row.name, {}).items():
            if found.runs > len(row.sampling_seeds) and found.mean:
                by_training = squares.setdefault(_base(metric), {})
                by_training.setdefault(repr(row.training), []).append((found.spread / found.mean) ** 2)
    return {metric: math.sqrt(_mean(_mean(own) for own in found.values())) for metric, found in squares.items()}


def _base(metric: str) -> str:
    return metric.partition("@")[0]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
