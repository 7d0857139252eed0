"""`python -m sdd_jax.evaluate --workdir=DIR`: a run's metrics on its held-out split, as a table, JSON and a grid.

`python -m sdd_jax.evaluate --model=portraits` instead measures the embedded world against what it has to reach.
Results are also written to `DIR/evaluation/` (of a run) or to `--out`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import run_command
from sdd_jax.evals.restoration import table
from sdd_jax.jobs.ccd_report import evaluate
from sdd_jax.jobs.world_report import report_world


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_evaluate, argv)


def _evaluate(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m sdd_jax.evaluate", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path, help="a run")
    which.add_argument("--model", help='"portraits" or the directory of a world made again')
    parser.add_argument("--world", default="portraits", help="of a run: the world whose instruments measure it")
    parser.add_argument("--samples", type=int, default=128, help="held-out portraits")
    parser.add_argument("--steps", default="1,2,4", help="of a run: numbers of sampling steps, separated by commas")
    parser.add_argument("--guidance", default="1,2,3,5", help="of a model: guidance scales, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="of a model: directory to write to")
    flags = parser.parse_args(argv)
    if flags.samples < 1:
        raise ValueError(f"--samples={flags.samples}: ask for at least one")
    if flags.model is not None:
        scales = _numbers("--guidance", flags.guidance, float)
        print(report_world(flags.model, flags.samples, scales, flags.seed, flags.out))
        return
    steps = _numbers("--steps", flags.steps, int)
    print(table(evaluate(flags.workdir, flags.samples, steps, flags.seed, world=flags.world)))


def _numbers(flag: str, text: str, kind: type) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag}={text}: give numbers separated by commas") from None


if __name__ == "__main__":
    sys.exit(main())
