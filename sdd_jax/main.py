"""`python -m sdd_jax.main --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]`: runs a job.

A workdir that holds a checkpoint resumes. What the user got wrong is one line on stderr and exit status 2; a bug
keeps its traceback (`--debug` keeps every traceback). SIGTERM saves and exits 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from sdd_jax import jobs
from sdd_jax.command import run_command
from sdd_jax.config import defaults_of, load_config
from sdd_jax.train import EngineConfig, engine_config, run
from sdd_jax.training.workdir import check_workdir


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_train, argv)


def _train(arguments: Sequence[str]) -> None:
    overrides, rest = split_overrides(arguments)
    parser = argparse.ArgumentParser(prog="python -m sdd_jax.main", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="path to a config file, with :variant,variant")
    parser.add_argument("--workdir", required=True, type=Path, help="where the run lives; resumed if it holds one")
    parser.add_argument("--distributed", action="store_true", help="join the other processes of this job first")
    flags = parser.parse_args(rest)

    config = load_config(flags.config, overrides, defaults_of(EngineConfig))
    engine_config(config)
    check_workdir(flags.workdir, config)
    if flags.distributed:
        _join_processes()

    run(jobs.build(config), flags.workdir)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.key=value` and `--config.key value` from the other arguments, as `key=value` strings."""
    overrides: list[str] = []
    rest: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        argument = argument.removeprefix("--config.")
        if "=" not in argument and pending and not pending[0].startswith("--"):
            argument = f"{argument}={pending.pop(0)}"
        overrides.append(argument)
    return overrides, rest


def _join_processes() -> None:
    """Joins the job's processes: as Slurm, Open MPI or a TPU pod announces them, or as the JAX_* variables say."""
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
        num_processes=int(count) if count else None, process_id=int(index) if index else None
    )  # the coordinator's address: JAX_COORDINATOR_ADDRESS
    if jax.process_index() != 0:
        logging.getLogger("sdd_jax").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
