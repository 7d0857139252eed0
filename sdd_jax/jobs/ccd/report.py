"""Evaluation of CCD and its baselines on held-out portraits: a table, `metrics.json` and a grid, by condition.

Rows: the condition itself where it is a picture (what copying gives), the teacher without the condition, the model in
each number of steps (fine-tuned models with several solvers), and the truth through the autoencoder, which no latent
model can beat. The measures are those of `evals.restoration` (super-resolution) and `evals.conditional`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.conditions import draw_edit
from sdd_jax.data.records import to_float
from sdd_jax.evals import conditional
from sdd_jax.evals.instruments import Instruments, autoencoded
from sdd_jax.evals.restoration import COLUMNS, restoration_metrics, table
from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.ccd.conditional import (
    Sampler,
    condition_images,
    default_guidance,
    default_solver,
    default_start,
    make_sampler,
)
from sdd_jax.jobs.ccd.data import ConditionConfig, heldout_rng, heldout_rows, read_data
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.objectives.progressive import ProgressiveDistillation
from sdd_jax.runs import open_run, read_config
from sdd_jax.train import Job
from sdd_jax.types import Frozen, Params

STEPS = (1, 2, 4)
FINETUNED_STEPS = (4, 50)
FEW = 10
"""Below this many steps a fine-tuned model is sampled with several solvers."""
TEACHER_STEPS = 50
TEACHER_GUIDANCE = 3.0
RIVALS = 63
SHOWN = 8
NAMES = {"ccd": "CCD", "finetune": "fine-tuned", "cm": "CM", "gd": "GD"}
SOLVER_NAMES = {"dpm_solver": "DPM-Solver", "dpm_solver_pp": "DPM-Solver++"}
_log = logging.getLogger("sdd_jax")

Rows = dict[str, np.ndarray]


def report(workdir: Path, flags: ReportFlags) -> str:
    """Evaluates a run as `python -m sdd_jax.evaluate` asks; returns the table."""
    rows = evaluate(workdir, flags.samples, flags.steps, flags.seed, world=flags.world, guidance=flags.guidance)
    return table(rows, tuple(next(iter(rows.values()))))


def evaluate(
    workdir: Path,
    samples: int,
    steps: Sequence[int] = (),
    seed: int = 0,
    batch: int = 32,
    world: str = "portraits",
    guidance: Sequence[float] = (),
) -> dict[str, dict[str, float]]:
    """Evaluates a run on held-out portraits; returns metrics by row and writes them below the workdir.

    steps, guidance: numbers of steps and guidance scales to sample with; none: the method's own.
    world: the directory whose instruments measure, or "portraits".
    """
    available = len(portraits.split_indices("heldout"))
    if not 2 <= samples <= available:
        raise ValueError(f"--samples={samples}: evaluate takes 2 to {available} held-out portraits")
    config = read_config(workdir)
    data, condition = read_data({"data": config.data, "condition": condition_of(workdir)})
    if data.source != "portraits":
        raise ValueError(f"--workdir={workdir} is a run on {data.path}: evaluate measures runs on portraits")
    instruments = read_instruments(world_directory(world))
    job, params, step = open_run(workdir)
    objective = job.objective
    assert isinstance(objective, ConditionalNetwork)
    _log.info("%s, step %d, on %d held-out portraits", job.name, step, samples)
    if condition.task == "none":
        data = dataclasses.replace(data, captions="full")
    rows = heldout_rows(data, objective.model, samples, condition)

    outputs: Rows = {}
    if "condition" in rows and condition.task != "inpaint":
        outputs["bicubic" if condition.task == "superres" else "condition"] = rows["condition"]
    if isinstance(objective, CCD) and condition.task in ("depth", "canny", "none"):
        outputs |= _teacher_rows(job, rows, condition, seed, batch)
    outputs |= _model_rows(job, params, rows, condition, steps, guidance, seed, batch)
    outputs["autoencoder"] = autoencoded(objective.model, job.frozen["vae"], rows["image"], batch)
    labels = np.stack([portraits.labels(portraits.portrait(i).attributes) for i in rows["index"]])
    measure = _restoration if condition.task == "superres" else _conditional
    metrics = measure(instruments, outputs, rows, labels, condition)

    first = {} if "condition" not in rows else {"condition": condition_images(rows["condition"])}
    if condition.task == "superres":
        first = {"degraded": rows["condition"][:, 2::4, 2::4].repeat(4, 1).repeat(4, 2)}
    shown = {**first, **outputs, "truth": rows["image"]}
    directory = workdir / "evaluation"
    write_grid(directory / "grid.png", [x[:SHOWN] for x in shown.values()], list(shown))
    found = {"workdir": str(workdir), "step": step, "samples": samples, "seed": seed, "rows": metrics}
    (directory / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    return metrics


def condition_of(workdir: Path) -> dict:
    """The condition's config of a run: its own, for CM that of the fine-tuned run, for GD none."""
    config = read_config(workdir)
    if config.task == "cm":
        return condition_of(Path(config.teacher.workdir))
    return {"task": "none"} if config.task == "gd" else dict(config.get("condition", {}))


def _model_rows(
    job: Job,
    params: Params,
    rows: Rows,
    condition: ConditionConfig,
    steps: Sequence[int],
    guidance: Sequence[float],
    seed: int,
    batch: int,
) -> Rows:
    """The run's own samples: by steps, guidance scale and, of a fine-tuned model in few steps, solver."""
    objective = job.objective
    assert isinstance(objective, ConditionalNetwork)
    is_tuned = isinstance(objective, ConditionalDiffusion)
    if isinstance(objective, ProgressiveDistillation):
        default: tuple[int, ...] = (objective.grid_steps,)
    else:
        default = tuple(n for n in (FINETUNED_STEPS if is_tuned else STEPS) if n <= objective.grid_steps)
    own = default_guidance(objective)
    found: Rows = {}
    samplers: dict[str, Sampler] = {}
    for n in steps or default:
        for solver in [default_solver(objective), *(SOLVER_NAMES if is_tuned and 3 <= n < FEW else ())]:
            for w in guidance or (own,):
                name = f"{NAMES[job.config.task]}, {n} step{'s' * (n > 1)}"
                name += f", {SOLVER_NAMES[solver]}" if solver in SOLVER_NAMES else ""
                name += f", w = {w:g}" if w != own or len(guidance) > 1 else ""
                sampler = samplers.setdefault(solver, make_sampler(objective, solver, default_start(condition)))
                began = time.monotonic()
                found[name] = sample_all(sampler, params, job.frozen, rows, n, seed, batch, w)
                _log.info("%s: %.1f s for %d portraits", name, time.monotonic() - began, len(found[name]))
    return found


def _teacher_rows(job: Job, rows: Rows, condition: ConditionConfig, seed: int, batch: int) -> Rows:
    """The teacher with the same prompts and no image condition; of text-to-image also in few steps."""
    assert isinstance(job.objective, CCD)
    plain = ConditionalDiffusion(model=job.objective.model, adapter=NoAdapter(), train_unet=False)
    sampler = make_sampler(plain)
    blind = {name: value for name, value in rows.items() if name != "condition"}
    many = (*STEPS, TEACHER_STEPS) if condition.task == "none" else (TEACHER_STEPS,)
    return {
        f"teacher, {n} step{'s' * (n > 1)}, w = {TEACHER_GUIDANCE:g}": sample_all(
            sampler, {"adapter": {}}, job.frozen, blind, n, seed, batch, TEACHER_GUIDANCE
        )
        for n in many
    }


def _restoration(
    instruments: Instruments, outputs: Rows, rows: Rows, labels: np.ndarray, condition: ConditionConfig
) -> dict[str, dict[str, float]]:
    rivals = np.stack([rival_portraits(int(i)) for i in rows["index"]])
    found = {name: restoration_metrics(instruments, x, rows["image"], labels, rivals) for name, x in outputs.items()}
    return {name: {column: values[column] for column in COLUMNS} for name, values in found.items()}


def _conditional(
    instruments: Instruments, outputs: Rows, rows: Rows, labels: np.ndarray, condition: ConditionConfig
) -> dict[str, dict[str, float]]:
    found = {}
    for name, images in outputs.items():
        metrics, read = conditional.shared_metrics(instruments, images, rows["image"], labels)
        if condition.task == "canny":
            thresholds = (condition.thresholds[0], condition.thresholds[1])
            metrics["edges"] = conditional.edge_agreement(images, rows["condition"][..., 0] > 0, thresholds)
        elif condition.task == "depth":
            metrics["depth"] = conditional.rank_correlation(
                conditional.read_depth_maps(read), rows["condition"][..., 0]
            )
        elif condition.task == "inpaint":
            metrics |= conditional.inpainting_metrics(images, rows["image"], rows["condition"])
        elif condition.task == "edit":
            drawn = [draw_edit(int(index), heldout_rng(i)).attribute for i, index in enumerate(rows["index"])]
            edited = np.array([list(portraits.VOCABULARY).index(attribute) for attribute in drawn])
            metrics |= conditional.edit_scores(read.labels, labels, edited)
        found[name] = metrics
    return found


def rival_portraits(index: int) -> np.ndarray:
    """63 other individuals with a portrait's attributes, f32 [63, 64, 64, 3], from neither split."""
    portrait = portraits.portrait(index)
    others = (
        portraits.portrait(portraits.SPLITS["heldout"].stop + 1 + 64 * index % 10_000_000 + k) for k in range(RIVALS)
    )
    return np.stack(
        [to_float(portraits.image(dataclasses.replace(other, attributes=portrait.attributes))) for other in others]
    )


def sample_all(
    sampler: Sampler,
    params: Params,
    frozen: Frozen,
    rows: Rows,
    steps: int,
    seed: int,
    batch: int,
    guidance: float | None = None,
) -> np.ndarray:
    """Samples for all of `rows`, `batch` at a time, each batch with its own noise."""
    keys = jax.random.key(seed)
    hint = rows.get("condition")
    parts = []
    for i, start in enumerate(range(0, len(rows["image"]), batch)):
        part = slice(start, start + batch)
        own = None if hint is None else hint[part]
        key = jax.random.fold_in(keys, i)
        parts.append(np.asarray(sampler(params, frozen, own, rows["input_ids"][part], key, steps, guidance)))
    return np.concatenate(parts)
