"""Evaluation of a CCD super-resolution run on held-out portraits: a table, `metrics.json` and a grid.

Rows: bicubic, the model in 1, 2, 4 ... steps, and the original through the autoencoder, which no latent model can beat.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.records import to_float
from sdd_jax.evals.instruments import in_batches
from sdd_jax.evals.restoration import restoration_metrics, table
from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.ccd import RestorationData, Sampler, heldout_rows, make_sampler
from sdd_jax.jobs.world import read_instruments, world_directory
from sdd_jax.objectives.ccd import CCD
from sdd_jax.runs import open_run
from sdd_jax.types import Frozen, ModelBundle, Params

STEPS = (1, 2, 4)
RIVALS = 63
SHOWN = 8
_log = logging.getLogger("sdd_jax")


def report(workdir: Path, flags: ReportFlags) -> str:
    """Evaluates a run as `python -m sdd_jax.evaluate` asks; returns the table."""
    return table(evaluate(workdir, flags.samples, flags.steps or STEPS, flags.seed, world=flags.world))


def evaluate(
    workdir: Path, samples: int, steps: Sequence[int], seed: int, batch: int = 32, world: str = "portraits"
) -> dict[str, dict[str, float]]:
    """Evaluates a CCD run on held-out portraits; returns metrics by row and writes them below the workdir.

    world: the directory whose instruments measure, or "portraits".
    """
    available = len(portraits.split_indices("heldout"))
    if not 2 <= samples <= available:
        raise ValueError(f"--samples={samples}: evaluate takes 2 to {available} held-out portraits")
    job, params, step = open_run(workdir)
    data = validate(job.config.data, RestorationData, "config.data") if isinstance(job.objective, CCD) else None
    if not isinstance(job.objective, CCD) or data is None or data.source != "portraits":
        raise ValueError(f"--workdir={workdir} is a {job.config.task!r} run: evaluate takes CCD runs on portraits")
    _log.info("%s, step %d, on %d held-out portraits", job.name, step, samples)
    instruments = read_instruments(world_directory(world))
    rows = heldout_rows(data, job.objective.model, samples)
    outputs = {"bicubic": rows["condition"]}
    sampler = make_sampler(job.objective)
    for n in steps:
        began = time.monotonic()
        outputs[f"CCD, {n} step{'s' * (n > 1)}"] = _sample_all(sampler, params, job.frozen, rows, n, seed, batch)
        _log.info("%d steps: %.1f s for %d portraits", n, time.monotonic() - began, samples)
    outputs["autoencoder"] = _reconstruct_all(job.objective.model, job.frozen["vae"], rows["image"], batch)
    labels = np.stack([portraits.labels(portraits.portrait(i).attributes) for i in rows["index"]])
    rivals = np.stack([rival_portraits(int(i)) for i in rows["index"]])
    metrics = {
        name: restoration_metrics(instruments, images, rows["image"], labels, rivals)
        for name, images in outputs.items()
    }
    low = rows["condition"][:, 2::4, 2::4].repeat(4, 1).repeat(4, 2)
    shown = {"degraded": low, **outputs, "truth": rows["image"]}
    directory = workdir / "evaluation"
    write_grid(directory / "grid.png", [x[:SHOWN] for x in shown.values()], list(shown))
    report = {"workdir": str(workdir), "step": step, "samples": samples, "seed": seed, "rows": metrics}
    (directory / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    return metrics


def rival_portraits(index: int) -> np.ndarray:
    """63 other individuals with a portrait's attributes, f32 [63, 64, 64, 3], from neither split."""
    portrait = portraits.portrait(index)
    others = (
        portraits.portrait(portraits.SPLITS["heldout"].stop + 1 + 64 * index % 10_000_000 + k) for k in range(RIVALS)
    )
    return np.stack(
        [to_float(portraits.image(dataclasses.replace(other, attributes=portrait.attributes))) for other in others]
    )


def _sample_all(
    sampler: Sampler, params: Params, frozen: Frozen, rows: dict[str, np.ndarray], steps: int, seed: int, batch: int
) -> np.ndarray:
    keys = jax.random.key(seed)
    parts = []
    for i, start in enumerate(range(0, len(rows["image"]), batch)):
        part = slice(start, start + batch)
        key = jax.random.fold_in(keys, i)
        parts.append(np.asarray(sampler(params, frozen, rows["condition"][part], rows["input_ids"][part], key, steps)))
    return np.concatenate(parts)


def _reconstruct_all(model: ModelBundle, vae: Params, images: np.ndarray, batch: int) -> np.ndarray:
    reconstruct = jax.jit(lambda vae, x: (model.decode(vae, model.encode(vae, x)),))
    return np.concatenate([out for (out,) in in_batches(lambda x: reconstruct(vae, jnp.asarray(x)), images, batch)])
