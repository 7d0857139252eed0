"""Evaluation of CCD and its baselines on held-out portraits: a table, `metrics.json` and a grid, by condition.

Rows: what copying the condition gives, the teacher without the condition, the model in each number of steps (fine-tuned
models with several solvers), and the truth through the autoencoder, which no latent model can beat. The measures are
those of `evals.restoration` (super-resolution) and `evals.conditional`; edits have one more:

    exact    share of outputs of which all attributes read as asked, the edited one and the kept: a copy has none
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.conditions import composite
from sdd_jax.data.records import to_float
from sdd_jax.evals import conditional
from sdd_jax.evals.instruments import Instruments, autoencoded
from sdd_jax.evals.restoration import restoration_metrics, table
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.ccd.conditional import (
    Sampler,
    condition_images,
    default_guidance,
    default_solver,
    default_start,
    make_sampler,
)
from sdd_jax.jobs.ccd.data import ConditionConfig
from sdd_jax.jobs.ccd.grids import show
from sdd_jax.jobs.ccd.heldout import NAMES, Heldout, Rows, open_heldout
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.objectives.progressive import ProgressiveDistillation
from sdd_jax.train import Job
from sdd_jax.types import Frozen, Params

STEPS = (1, 2, 4)
FINETUNED_STEPS = (4, 50)
FEW = 10
"""Below this many steps a fine-tuned model is sampled with several solvers."""
TEACHER_STEPS = 50
TEACHER_GUIDANCE = 3.0
RIVALS = 63
SOLVER_NAMES = {"dpm_solver": "DPM-Solver", "dpm_solver_pp": "DPM-Solver++"}
COPIES = {"superres": "bicubic", "inpaint": "hole filled"}
"""What the condition is called as an output."""
WITH_TEACHER = ("depth", "canny", "inpaint", "none")
"""Tasks whose prompt is the picture's caption, which the teacher understands too."""
_log = logging.getLogger("sdd_jax")


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
    heldout = open_heldout(workdir, samples)
    instruments = read_instruments(world_directory(world))
    outputs = draw(heldout, steps, seed, batch, guidance)
    metrics = measured(instruments, outputs, heldout)
    directory = workdir / "evaluation"
    show(heldout, outputs, directory / "grid.png")
    found = {"workdir": str(workdir), "step": heldout.step, "samples": samples, "seed": seed, "rows": metrics}
    (directory / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    return metrics


def draw(heldout: Heldout, steps: Sequence[int], seed: int, batch: int, guidance: Sequence[float]) -> Rows:
    """All pictures that `evaluate` measures, by the names of their rows."""
    outputs: Rows = {}
    if "condition" in heldout.rows:
        outputs[COPIES.get(heldout.condition.task, "condition")] = copied(heldout)
    if isinstance(heldout.objective, CCD) and heldout.condition.task in WITH_TEACHER:
        many = (*STEPS, TEACHER_STEPS) if heldout.condition.task == "none" else (TEACHER_STEPS,)
        for n in many:
            name = f"teacher, {n} step{'s' * (n > 1)}, w = {TEACHER_GUIDANCE:g}"
            outputs[name] = taught(heldout, n, seed, batch)
    outputs |= _model_rows(heldout.job, heldout.params, heldout.rows, heldout.condition, steps, guidance, seed, batch)
    vae = heldout.job.frozen["vae"]
    return {**outputs, "autoencoder": autoencoded(heldout.objective.model, vae, heldout.rows["image"], batch)}


def copied(heldout: Heldout) -> np.ndarray:
    """The condition as a picture f32[n,H,W,3], what copying gives; a hole is filled with the mean of the rest."""
    condition = heldout.rows["condition"]
    shown = condition_images(condition)
    if heldout.condition.task != "inpaint":
        return shown
    known = condition[..., 3:] <= 0
    mean = np.sum(shown, (1, 2), keepdims=True, where=known) / np.sum(known, (1, 2), keepdims=True)
    return np.where(known, shown, mean)


def taught(heldout: Heldout, steps: int, seed: int, batch: int) -> np.ndarray:
    """The teacher's samples f32[n,H,W,3] of the same prompts without the condition; of inpainting, in the hole."""
    plain = ConditionalDiffusion(model=heldout.objective.model, adapter=NoAdapter(), train_unet=False)
    blind = {name: value for name, value in heldout.rows.items() if name != "condition"}
    sampler, frozen = make_sampler(plain), heldout.job.frozen
    images = sample_all(sampler, {"adapter": {}}, frozen, blind, steps, seed, batch, TEACHER_GUIDANCE)
    return composite(images, heldout.rows["condition"]) if heldout.condition.task == "inpaint" else images


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


def measured(
    instruments: Instruments, outputs: Mapping[str, np.ndarray], heldout: Heldout, rivals: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """The metrics of the run's task for every row of outputs f32[n,H,W,3].

    rivals: of super-resolution, f32[n,m,H,W,3]; None: `rival_portraits` of every row, rendered.
    """
    if heldout.condition.task != "superres":
        return {name: _conditional(instruments, images, heldout) for name, images in outputs.items()}
    truths, labels = heldout.rows["image"], heldout.labels
    if rivals is None:
        rivals = np.stack([rival_portraits(int(i)) for i in heldout.rows["index"]])
    return {name: restoration_metrics(instruments, images, truths, labels, rivals) for name, images in outputs.items()}


def _conditional(instruments: Instruments, images: np.ndarray, heldout: Heldout) -> dict[str, float]:
    rows, labels, condition = heldout.rows, heldout.labels, heldout.condition
    metrics, read = conditional.shared_metrics(instruments, images, rows["image"], labels)
    match condition.task:
        case "canny":
            thresholds = (condition.thresholds[0], condition.thresholds[1])
            metrics["edges"] = conditional.edge_agreement(images, rows["condition"][..., 0] > 0, thresholds)
        case "depth":
            maps = conditional.read_depth_maps(read)
            metrics["depth"] = conditional.rank_correlation(maps, rows["condition"][..., 0])
        case "inpaint":
            metrics |= conditional.inpainting_metrics(images, rows["image"], rows["condition"])
        case "edit":
            edited = np.array([list(portraits.VOCABULARY).index(edit.attribute) for edit in heldout.edits])
            metrics |= conditional.edit_scores(read.labels, labels, edited)
            metrics["exact"] = float(np.mean(np.all(read.labels == labels, axis=1)))
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
