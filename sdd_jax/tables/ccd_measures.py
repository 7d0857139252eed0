"""The evaluation of CCD's tables: pictures of held-out portraits, a run's or what they are compared with, by steps.

Beside what `evals.restoration` and `evals.conditional` measure there are

    saturation      mean over pixels of max - min over the channels, the outputs' over the originals' (1 is right)
    sharpness       mean absolute difference of neighbouring pixels, likewise
    train_samples   samples that the run was trained on, in thousands, with those of all runs before it
    lpips           of super-resolution, where its weights are given

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
from sdd_jax.data.records import to_float
from sdd_jax.evals.instruments import autoencoded, in_batches
from sdd_jax.images import to_uint8
from sdd_jax.jobs.ccd.conditional import default_start, make_sampler
from sdd_jax.jobs.ccd.report import (
    RIVALS,
    Heldout,
    copied,
    measured,
    open_heldout,
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
    samples: held-out portraits.
    lpips: files of VGG16 and of the lpips package's linear layers; none: LPIPS is not measured.
    world: whose instruments measure.
    """

    output: str = "model"
    steps: int | tuple[int, ...] = ()
    solver: str = ""
    guidance: float | None = None
    samples: int = 256
    lpips: tuple[str, ...] = ()
    world: str = "portraits"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"output={self.output!r} is not known; use {', '.join(OUTPUTS)}")
        if bool(self.steps) != (self.output in ("model", "teacher")):
            raise ValueError(f"output={self.output!r} with steps={self.steps}: model and teacher are sampled, in steps")
        if self.output != "model" and (self.solver or self.guidance is not None):
            raise ValueError(f"output={self.output!r} has no solver and no guidance: leave them out")


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
    """Pictures f32[n,H,W,3] in [-1, 1], by what their metrics' names end in: '' or '@steps'."""
    if not wanted.steps:
        own = copied(found) if wanted.output == "condition" else _reconstructed(found)
        return {"": np.clip(own, -1.0, 1.0)}
    sampler = make_sampler(found.objective, wanted.solver, default_start(found.condition))

    def samples(n: int) -> np.ndarray:
        if wanted.output == "teacher":
            return taught(found, n, seed, BATCH)
        return sample_all(sampler, found.params, found.job.frozen, found.rows, n, seed, BATCH, wanted.guidance)

    counts = {"": wanted.steps} if isinstance(wanted.steps, int) else {f"@{n}": n for n in wanted.steps}
    return {at: np.clip(samples(n), -1.0, 1.0) for at, n in counts.items()}


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
