"""`python -m sdd_jax.sample --workdir=DIR --control=img.png --steps=4 --out=img.png`: few-step generation from a run.

What the control is depends on the run's condition, and is brought to the run's size (or `--size`), centre cropped:

| condition | --control | --prompt |
| --- | --- | --- |
| superres | the degraded picture, of any size | what the picture shows; may be empty |
| depth | a depth map, nearer is brighter | what to draw |
| canny | a picture, whose edges are computed | what to draw |
| edit | the picture to edit | the instruction |
| inpaint | the picture, and --mask: white where to fill in | what the whole shows |
| none | nothing | what to draw |
| (a run of iCD) | nothing | what to draw, in the run's own number of jumps; `--tau`: guided up to there alone |

`--samples` draws several side by side; `--beside` puts the control first. Several runs that trained adapters alone on
one teacher work together: give `--workdir` and `--control` once for each, and `--weight` for other weights than 1.
They are sampled as the first of them is, with its solver, guidance and grid of times, from noise. Such adapters also
work on other models of their teacher's architecture: `--model` names one.

A degraded picture is also where its sampling starts, noised; `--start=noise` starts at noise alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.command import Parser, run_command
from sdd_jax.config import validate
from sdd_jax.data.conditions import edge_image, masked_image, read_depth, three_channels
from sdd_jax.data.decode import read_image
from sdd_jax.data.records import to_float
from sdd_jax.images import write_grid
from sdd_jax.jobs.ccd.conditional import SAMPLERS, STARTS, condition_images, default_start, make_sampler
from sdd_jax.jobs.ccd.data import ConditionConfig
from sdd_jax.jobs.ccd.heldout import condition_of
from sdd_jax.jobs.ccd.runs import on_another_model, open_runs
from sdd_jax.jobs.icd import job as icd
from sdd_jax.jobs.streams.captioned import prompt_ids
from sdd_jax.models.adapters import Composition
from sdd_jax.runs import open_run, read_config
from sdd_jax.sampling.editing import dynamic_guidance

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_sample, argv)


def _sample(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.sample", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path, action="append", help="a run; several are composed")
    parser.add_argument("--control", type=Path, action="append", default=[], help="see above; one for each workdir")
    parser.add_argument("--mask", type=Path, help="of inpainting: white where to fill in")
    parser.add_argument("--weight", type=float, action="append", default=[], help="of each run's adapter; default 1")
    parser.add_argument("--model", default="", help="of adapters: another model of the teacher's architecture")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 is off; default: the run's own")
    parser.add_argument("--tau", type=float, help="of a run of iCD: guidance acts up to here in t/T; default: always")
    parser.add_argument("--ramp-to", type=float, help="of the same: it falls to 1 from tau to here; default: at once")
    parser.add_argument("--solver", default="", choices=["", *SAMPLERS], help="default: the method's own")
    parser.add_argument("--start", default="", choices=["", *STARTS], help="default: the condition in super-resolution")
    parser.add_argument("--size", type=int, help="side of the picture; default: the model's")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", action="store_true", help="put the controls beside the samples")
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args(argv)
    if flags.samples < 1:
        raise ValueError(f"--samples={flags.samples}: ask for at least one")
    if flags.size is not None and flags.size < 1:
        raise ValueError(f"--size={flags.size}: give a side in pixels, or leave it out for the model's own")
    if read_config(flags.workdir[0]).get("task") == "icd":
        _sample_icd(flags)
        return
    for flag, value in (("--tau", flags.tau), ("--ramp-to", flags.ramp_to)):
        if value is not None:
            raise ValueError(f"{flag}={value:g}: only runs of iCD are guided dynamically; leave it out")
    for path in (*flags.control, *([flags.mask] if flags.mask else [])):
        if not path.is_file():
            raise FileNotFoundError(f"--{'mask' if path == flags.mask else 'control'}={path}: no such image")
    conditions = [validate(condition_of(path), ConditionConfig, "config.condition") for path in flags.workdir]
    needed = sum(condition.task != "none" for condition in conditions)
    if len(flags.control) != needed:
        raise ValueError(f"{len(flags.control)} --control for {needed} runs with a condition: give one each, in order")
    if flags.mask and all(condition.task != "inpaint" for condition in conditions):
        tasks = ", ".join(condition.task for condition in conditions)
        raise ValueError(f"--mask={flags.mask} is read by runs of inpainting, not of {tasks}: leave it out")

    objective, params, frozen = open_runs(flags.workdir, flags.weight)
    model = objective.model
    if flags.model:
        frozen = on_another_model(flags.model, model, params, frozen)
    size = flags.size or model.sample_size * model.downsampling
    if size % model.downsampling:
        raise ValueError(f"--size={size}: sides are multiples of {model.downsampling}")
    controls = iter(flags.control)
    hints = [
        None if condition.task == "none" else read_control(next(controls), condition, size, flags.mask)
        for condition in conditions
    ]
    repeated = tuple(None if hint is None else np.repeat(hint[None], flags.samples, 0) for hint in hints)
    ids = prompt_ids(model, [flags.prompt] * flags.samples)
    began = time.monotonic()
    start = flags.start or (default_start(conditions[0]) if len(conditions) == 1 else "noise")
    if start == "condition" and (needed != 1 or len(conditions) > 1):
        raise ValueError("--start=condition starts at the one picture of --control: it takes one run, which reads one")
    sampler = make_sampler(objective, flags.solver, start)
    hint = repeated if isinstance(objective.adapter, Composition) else repeated[0]
    key = jax.random.key(flags.seed)
    images = np.asarray(sampler(params, frozen, hint, ids, key, flags.steps, flags.guidance, size))
    _log.info("%d steps, %d samples: %.1f s with compilation", flags.steps, flags.samples, time.monotonic() - began)
    beside = [condition_images(hint[None]) for hint in hints if hint is not None] if flags.beside else []
    write_grid(flags.out, [np.concatenate([*beside, images])])
    _log.info("wrote %s", flags.out)


def _sample_icd(flags: argparse.Namespace) -> None:
    """Draws a prompt with iCD's reverse model."""
    if (
        len(flags.workdir) > 1
        or flags.control
        or flags.mask
        or flags.weight
        or flags.solver
        or flags.start
        or flags.size
    ):
        raise ValueError(
            "a run of iCD is sampled alone: give --prompt, --samples, --guidance, --tau, --ramp-to, --seed and --out"
        )
    when: dict[str, Any] = {"tau": 1.0 if flags.tau is None else flags.tau, "ramp_to": flags.ramp_to}
    dynamic_guidance(1.0, **when)
    job, params, step = open_run(flags.workdir[0])
    _log.info("%s, step %d", job.name, step)
    write_grid(flags.out, [icd.draw(job, params, flags.prompt, flags.samples, flags.seed, flags.guidance, **when)])
    _log.info("wrote %s", flags.out)


def read_control(path: Path, condition: ConditionConfig, size: int, mask: Path | None) -> np.ndarray:
    """A condition f32[size,size,c] from the file a user gives for it.

    Raises:
        ValueError: an unreadable image, or inpainting without a mask.
    """
    if condition.task == "depth":
        return three_channels(read_depth(path, size))
    image = read_image(path, size)
    if condition.task == "canny":
        return edge_image(image, (condition.thresholds[0], condition.thresholds[1]))
    if condition.task == "inpaint":
        if mask is None:
            raise ValueError("inpainting needs --mask: a picture that is white where to fill in")
        return masked_image(image, read_image(mask, size).mean(-1) > 127)
    return to_float(image)


if __name__ == "__main__":
    sys.exit(main())
