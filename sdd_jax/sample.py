"""`python -m sdd_jax.sample --workdir=DIR --control=img.png --steps=4 --out=img.png`: few-step generation from a run.

The control is a degraded picture of any size; it is brought to the run's size (bicubic, centre crop) before it is
restored. `--prompt` says what the picture shows, `--samples` draws several restorations side by side. The output is one
PNG: the restorations alone, or with `--beside` the control first.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from sdd_jax.command import run_command
from sdd_jax.data.folder import read_image
from sdd_jax.data.records import to_float
from sdd_jax.images import write_grid
from sdd_jax.jobs.ccd import make_sampler
from sdd_jax.objectives.ccd import CCD
from sdd_jax.runs import open_run

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_sample, argv)


def _sample(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m sdd_jax.sample", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--control", required=True, type=Path, help="the degraded picture")
    parser.add_argument("--prompt", default="", help="what the picture shows; empty is allowed")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", action="store_true", help="put the control beside the restorations")
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args(argv)
    if flags.samples < 1:
        raise ValueError(f"--samples={flags.samples}: ask for at least one")
    if not flags.control.is_file():
        raise FileNotFoundError(f"--control={flags.control}: no such image")
    job, params, step = open_run(flags.workdir)
    if not isinstance(job.objective, CCD):
        raise ValueError(f"--workdir={flags.workdir} is a {job.config.task!r} run: sample takes CCD runs")
    _log.info("%s, step %d", job.name, step)
    model = job.objective.model
    control = to_float(read_image(flags.control, model.sample_size * model.downsampling))
    condition = np.repeat(control[None], flags.samples, 0)
    ids = model.tokenize([flags.prompt] * flags.samples)
    began = time.monotonic()
    sampler = make_sampler(job.objective)
    images = np.asarray(sampler(params, job.frozen, condition, ids, jax.random.key(flags.seed), flags.steps))
    _log.info("%d steps, %d samples: %.1f s with compilation", flags.steps, flags.samples, time.monotonic() - began)
    write_grid(flags.out, [np.concatenate([control[None], images]) if flags.beside else images])
    _log.info("wrote %s", flags.out)


if __name__ == "__main__":
    sys.exit(main())
