"""`python -m sdd_jax.main --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]`: runs a job.

A workdir that holds a checkpoint resumes. What the user got wrong is one line on stderr and exit status 2; a bug
keeps its traceback (`--debug` keeps every traceback). SIGTERM saves and exits 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import absl.logging
import jax

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config, one_line
from sdd_jax.train import EngineConfig, engine_config, run
from sdd_jax.training.workdir import check_workdir

_PACKAGE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    _log_to_stdout()
    arguments = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in arguments
    try:
        _train(arguments)
    except (ValueError, OSError) as error:
        if debug or not _is_ours(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _train(arguments: Sequence[str]) -> None:
    overrides, rest = split_overrides(arguments)
    parser = argparse.ArgumentParser(prog="python -m sdd_jax.main", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="path to a config file, with :variant,variant")
    parser.add_argument("--workdir", required=True, type=Path, help="where the run lives; resumed if it holds one")
    parser.add_argument("--distributed", action="store_true", help="join the other processes of this job first")
    parser.add_argument("--debug", action="store_true", help="show a traceback for user errors too")
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


def _log_to_stdout() -> None:
    """Shows this package's log lines and libraries' errors."""
    absl.logging.set_verbosity(absl.logging.ERROR)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("sdd_jax")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _is_ours(error: BaseException) -> bool:
    """True where this package raised the error itself; an error from inside a library is a bug to be shown whole."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_PACKAGE)


if __name__ == "__main__":
    sys.exit(main())
