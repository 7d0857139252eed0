"""`python -m sdd_jax.export --workdir=DIR --out=DIR`: a run's weights, in published formats.

A CCD run gives `unet/` and `controlnet/`, a pretraining run its part of the embedded world (see
`configs/pretrain_portraits.py`). The average of the parameters is exported where the run keeps one.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import run_command
from sdd_jax.runs import open_run

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_export, argv)


def _export(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m sdd_jax.export", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="directory to write to; made if missing")
    flags = parser.parse_args(argv)
    job, params, step = open_run(flags.workdir)
    if job.export is None:
        raise ValueError(f"--workdir={flags.workdir} is a {job.config.task!r} run, which has nothing to export")
    job.export(params, flags.out)
    _log.info("exported step %d of %s to %s", step, flags.workdir, flags.out)


if __name__ == "__main__":
    sys.exit(main())
