"""`python -m sdd_jax.main --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]`: runs a job.

A workdir that holds a checkpoint resumes. What the user got wrong is one line on stderr and exit status 2; a bug
keeps its traceback (`--debug` keeps every traceback). SIGTERM saves and ends with status 75, which tells a
run that was stopped from one that is finished. A process of several ends when another one dies, and says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax import jobs
from sdd_jax.command import Parser, run_command
from sdd_jax.config import defaults_of, load_config, split_overrides
from sdd_jax.data.sources import IMAGE_OPTIONS
from sdd_jax.train import EngineConfig, engine_config, run
from sdd_jax.training.distributed import add_process_flags, join_processes, last_word
from sdd_jax.training.workdir import check_workdir

STOPPED = os.EX_TEMPFAIL


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_train, argv)


def _train(arguments: Sequence[str]) -> int:
    overrides, rest = split_overrides(arguments)
    parser = Parser(prog="python -m sdd_jax.main", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="path to a config file, with :variant,variant")
    parser.add_argument("--workdir", required=True, type=Path, help="where the run lives; resumed if it holds one")
    add_process_flags(parser)
    flags = parser.parse_args(rest)

    config = load_config(flags.config, overrides, defaults_of(EngineConfig), IMAGE_OPTIONS)
    engine_config(config)
    check_workdir(flags.workdir, config)
    if flags.distributed:
        join_processes(flags.heartbeat)
    with last_word():
        state = run(jobs.build(config), flags.workdir)
    return STOPPED if int(state.step) < config.steps else 0


if __name__ == "__main__":
    sys.exit(main())
