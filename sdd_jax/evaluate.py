"""`python -m sdd_jax.evaluate --workdir=DIR`: a run's metrics on its held-out split, as a table, JSON and a grid.

`python -m sdd_jax.evaluate --model=portraits` instead measures the embedded world against what it has to reach.
Results are also written to `DIR/evaluation/` (of a run) or to `--out`.

`python -m sdd_jax.evaluate --protocol=generation|inversion|editing|restoration ...` runs a paper's evaluation on its
published CSV or on folders; it has flags of its own (`--protocol=editing --help`), among them `--distributed` for
several processes; see docs/metrics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import Parser, run_command
from sdd_jax.jobs import ReportFlags, report
from sdd_jax.jobs.world.report import report_world
from sdd_jax.runs import read_config

WORLD_SCALES = (1.0, 1.5, 2.0, 3.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_evaluate, argv)


def _evaluate(argv: Sequence[str]) -> None:
    if any(argument.split("=")[0] == "--protocol" for argument in argv):
        from sdd_jax.jobs.protocols.run import run_protocol

        if table := run_protocol(argv):
            print(table)
        return
    parser = Parser(prog="python -m sdd_jax.evaluate", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path, help="a run")
    which.add_argument("--model", help='"portraits" or the directory of a world made again')
    parser.add_argument("--world", default="portraits", help="of a run: the world whose instruments measure it")
    parser.add_argument("--samples", type=int, default=128, help="held-out portraits")
    parser.add_argument("--steps", default="", help="numbers of sampling steps, by commas; default: the run's own")
    parser.add_argument("--guidance", default="", help="guidance scales, by commas; default: the run's or model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="of a model: directory to write to")
    flags = parser.parse_args(argv)
    if flags.samples < 1:
        raise ValueError(f"--samples={flags.samples}: ask for at least one")
    scales = _numbers("--guidance", flags.guidance, float)
    steps = _numbers("--steps", flags.steps, int)
    if flags.model is not None:
        print(report_world(flags.model, flags.samples, scales or WORLD_SCALES, flags.seed, flags.out))
        return
    task = read_config(flags.workdir).get("task", "")
    asked = ReportFlags(samples=flags.samples, steps=steps, seed=flags.seed, world=flags.world, guidance=scales)
    print(report(task, flags.workdir, asked))


def _numbers(flag: str, text: str, kind: type) -> tuple:
    try:
        return tuple(kind(part) for part in text.split(",") if text)
    except ValueError:
        raise ValueError(f"{flag}={text}: give numbers separated by commas") from None


if __name__ == "__main__":
    sys.exit(main())
