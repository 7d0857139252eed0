"""The evaluation of CCD's tables: pictures of held-out portraits, a run's or what they are compared with, by steps.

Beside what `evals.restoration` and `evals.conditional` measure there are

    saturation      mean over pixels of max - min over the channels, the outputs' over the originals' (1 is right)
    sharpness       mean absolute difference of neighbouring pixels, likewise
    train_samples   samples that the run was trained on, in thousands, with those of all runs before it
    lpips           where its weights are given

PSNR is left out where a picture equals its truth, as a copy of the condition may.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.cache import cached_array, renderer_hash
from sdd_jax.data.conditions import composite
from sdd_jax.data.records import to_float
from sdd_jax.evals.instruments import autoencoded, in_batches
from sdd_jax.images import to_uint8
from sdd_jax.jobs.ccd.conditional import default_start, make_sampler
from sdd_jax.jobs.ccd.heldout import Heldout, Rows, open_heldout
from sdd_jax.jobs.ccd.report import (
    RIVALS,
    copied,
    measured,
    rival_portraits,
    sample_all,
    taught,
)
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.lpips import load_lpips, lpips
from sdd_jax.runs import read_config

BATCH = 32
OUTPUTS = ("model", "condition", "teacher", "autoencoder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a row.

    output: what is measured: the `model`'s samples; the `condition`, copied; the `teacher`'s samples without the
        condition; the truth through the `autoencoder`.
    steps: one number of sampling steps, or several: then metrics are named `metric@steps`. Of model and teacher.
    solver, guidance: of the model; as `make_sampler`, '' and None for the method's own.
    shuffled: the model is given the condition of the next portrait (the last one that of the first), with the same
        prompts and noise, and measured against its own: what it draws without reading its condition. Of inpainting it
        is given the next picture behind its own mask, and its own known pixels are put back: the hole alone is drawn.
    samples: held-out portraits.
    lpips: files of VGG16 and of the lpips package's linear layers; none: LPIPS is not measured.
    world: whose instruments measure.
    """

    output: str = "model"
    steps: int | tuple[int, ...] = ()
    solver: str = ""
    guidance: float | None = None
    shuffled: bool = False
    samples: int = 256
    lpips: tuple[str, ...] = ()
    world: str = "portraits"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"output={self.output!r} is not known; use {', '.join(OUTPUTS)}")
        if bool(self.steps) != (self.output in ("model", "teacher")):
            raise ValueError(f"output={self.output!r} with steps={self.steps}: model and teacher are sampled, in steps")
        if self.output != "model" and (self.solver or self.guidance is not None or self.shuffled):
            raise ValueError(f"output={self.output!r} has no solver, no guidance and is not shuffled: leave them out")


def heldout(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> dict[str, float]:
    """Measures a run of CCD or a baseline, of any condition, as `Options` say; seed is the sampling noise's."""
    wanted = validate(options, Options, "options")
    assert workdir is not None
    instruments = read_instruments(world_directory(wanted.world))
    found = open_heldout(workdir, wanted.samples)
    metrics: dict[str, float] = {}
    pictures = outputs(found, wanted, seed)
    rivals = rivals_of(found.rows["index"]) if found.condition.task == "superres" else None
    for at, values in measured(instruments, pictures, found, rivals).items():
        values = values | appearance(pictures[at], found.rows["image"])
        if wanted.lpips:
            values["lpips"] = mean_lpips(pictures[at], found.rows["image"], *wanted.lpips)
        if math.isinf(values["psnr"]):
            del values["psnr"]
        metrics |= {name + at: value for name, value in values.items()}
    if wanted.output == "model":
        metrics["train_samples"] = trained_samples(workdir) / 1000
    return metrics


def outputs(found: Heldout, wanted: Options, seed: int) -> dict[str, np.ndarray]:
    """Pictures f32[n,H,W,3] in [-1, 1], by what their metrics' names end in: '' or '@steps'.

    Raises:
        ValueError: conditions are to be shuffled of a run that has none.
    """
    if not wanted.steps:
        own = copied(found) if wanted.output == "condition" else _reconstructed(found)
        return {"": np.clip(own, -1.0, 1.0)}
    sampler = make_sampler(found.objective, wanted.solver, default_start(found.condition))
    given = shuffled(found) if wanted.shuffled else found.rows

    def samples(n: int) -> np.ndarray:
        if wanted.output == "teacher":
            return taught(found, n, seed, BATCH)
        images = sample_all(sampler, found.params, found.job.frozen, given, n, seed, BATCH, wanted.guidance)
        # the sampler has put back what it was given: shuffled, that is another's
        is_others = wanted.shuffled and found.condition.task == "inpaint"
        return composite(images, found.rows["condition"]) if is_others else images

    counts = {"": wanted.steps} if isinstance(wanted.steps, int) else {f"@{n}": n for n in wanted.steps}
    return {at: np.clip(samples(n), -1.0, 1.0) for at, n in counts.items()}


def shuffled(found: Heldout) -> Rows:
    """The rows, each with the condition of the next one, a mask excepted; ValueError where there is no condition."""
    if "condition" not in found.rows:
        raise ValueError("options.shuffled=true: the run has no condition to shuffle")
    condition = np.roll(found.rows["condition"], -1, axis=0)
    if found.condition.task == "inpaint":
        mask = found.rows["condition"][..., 3:]
        shown = np.where(mask > 0, np.float32(0), np.roll(found.rows["image"], -1, axis=0))
        condition = np.concatenate([shown, mask], axis=-1)
    return {**found.rows, "condition": condition}


def _reconstructed(found: Heldout) -> np.ndarray:
    return autoencoded(found.objective.model, found.job.frozen["vae"], found.rows["image"], BATCH)


def rivals_of(index: np.ndarray) -> np.ndarray:
    """`rival_portraits` of the portraits `index`, f32[n,m,64,64,3], rendered once and kept on disk."""

    def rendered() -> Iterator[np.ndarray]:
        for start in range(0, len(index), BATCH):
            yield np.stack([to_uint8(rival_portraits(int(i))) for i in index[start : start + BATCH]])

    shape = (len(index), RIVALS, portraits.SIZE, portraits.SIZE, 3)
    return to_float(cached_array("rivals", f"{renderer_hash()} {index.tolist()}", shape, "uint8", rendered))


def trained_samples(workdir: Path) -> int:
    """Samples that a finished run has seen, those of the runs it started from included."""
    config = read_config(workdir)
    before = config.get("teacher", {}).get("workdir", "")
    return config.steps * config.batch_size + (trained_samples(Path(before)) if before else 0)


def appearance(outputs: np.ndarray, originals: np.ndarray) -> dict[str, float]:
    """`saturation` and `sharpness` of outputs f32[n,H,W,3], each over the originals'."""
    return {
        name: measure(outputs) / measure(originals)
        for name, measure in (("saturation", _saturation), ("sharpness", _sharpness))
    }


def _saturation(images: np.ndarray) -> float:
    return float(np.mean(images.max(-1) - images.min(-1)))


def _sharpness(images: np.ndarray) -> float:
    return float(np.mean(np.abs(np.diff(images, axis=1))) + np.mean(np.abs(np.diff(images, axis=2))))


def mean_lpips(outputs: np.ndarray, originals: np.ndarray, backbone: str, linear: str) -> float:
    """LPIPS (VGG16) of outputs against originals, both f32[n,H,W,3] in [-1, 1]."""
    params = load_lpips("vgg", backbone, linear)
    distance = jax.jit(functools.partial(lpips, name="vgg"))
    pairs = np.concatenate([outputs, originals], axis=-1)
    parts = in_batches(lambda pair: (distance(params, pair[..., :3], pair[..., 3:]),), pairs, 32)
    return float(np.mean(np.concatenate([values for (values,) in parts])))
