"""Evaluation of a run of iCD's stage 2: inversion and generation on held-out portraits, unguided and guided."""

from __future__ import annotations

import json
from pathlib import Path

from sdd_jax.images import write_grid
from sdd_jax.jobs import ReportFlags
from sdd_jax.jobs.editing.methods import TrainedScales
from sdd_jax.jobs.icd.job import editing_model, usual_scale
from sdd_jax.jobs.icd.measures import drawn_metrics, reconstructed
from sdd_jax.jobs.icd.subjects import Protocol, icd_subject, read_heldout, scales_of
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.objectives.icd import ICD
from sdd_jax.runs import open_run

SHOWN = 8


def report(workdir: Path, flags: ReportFlags) -> str:
    """Measures a run of stage 2: generation and inversion, unguided and guided, constantly and dynamically."""
    job, params, step = open_run(workdir)
    objective = job.objective
    if not isinstance(objective, ICD) or job.config.data.source != "portraits":
        raise ValueError(f"--workdir={workdir}: evaluate takes runs of iCD on portraits")
    for w in flags.guidance:
        TrainedScales(objective.scales).check("--guidance", w)
    model, frozen = editing_model(job, params)
    subject, data = icd_subject(model, frozen), read_heldout(model, flags.samples, flags.seed)
    instruments = read_instruments(world_directory(flags.world))
    rows, shown = {}, {"held out": data.images[:SHOWN]}
    for w in flags.guidance or (1.0, usual_scale(objective)):
        for tau in (1.0,) if w == 1.0 else (1.0, dynamic_threshold(objective)):
            protocol = Protocol(samples=flags.samples, w=w, tau=tau, world=flags.world)
            up, down = scales_of(protocol, model)
            inversion, back = reconstructed(subject, data, up, down, instruments)
            generation, drawn = drawn_metrics(subject, data, down, protocol)
            name = f"w = {w:g}" + (f", tau = {tau:g}" if tau < 1 else "")
            rows[name] = {**inversion, **generation}
            shown[f"back, {name}"], shown[f"drawn, {name}"] = back[:SHOWN], drawn[:SHOWN]
    directory = workdir / "evaluation"
    write_grid(directory / "grid.png", list(shown.values()), list(shown))
    content = {"workdir": str(workdir), "step": step, "samples": flags.samples, "seed": flags.seed, "rows": rows}
    (directory / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    columns = ("psnr", "ssim", "clip_distance", "latent_mse", "nll", "attributes", "clip_score", "frechet")
    lines = [
        f"| {len(objective.boundaries.reverse)} steps | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.4g}' for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def dynamic_threshold(objective: ICD) -> float:
    """tau of dynamic guidance for a run: the first tenth above the second highest start, .8 of 779 and .7 of 699."""
    *_, second, last = (0, *objective.boundaries.reverse)
    return round(-(-10 * second // (last + 1)) / 10, 1)
