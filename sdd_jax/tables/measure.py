"""`python -m sdd_jax.tables.measure EVALUATION --out=FILE ...`: one evaluation of one row, in a process of its own.

`reproduce` calls it. A process per evaluation keeps the device free for the trainings in between, gives every figure
a fresh memory, and can be stopped at any moment.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from sdd_jax.command import Parser, run_command
from sdd_jax.tables.cache import write_atomically
from sdd_jax.train import EngineConfig, use_compile_cache


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_measure, argv)


def _measure(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.tables.measure", description=__doc__)
    parser.add_argument("evaluation", help="module:function")
    parser.add_argument("--workdir", type=Path, help="of the row's training; none: the row trains nothing")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="JSON")
    parser.add_argument("--row", default="")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args(argv)
    use_compile_cache(EngineConfig.compile_cache)
    module, function = flags.evaluation.split(":")
    began = time.monotonic()
    found = getattr(importlib.import_module(module), function)(flags.workdir, flags.seed, flags.options)
    metrics = {name: float(value) for name, value in found.items()}
    strange = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not metrics or strange:
        raise ValueError(f"{flags.evaluation} measured {f'{strange[0]} as not finite' if strange else 'nothing'}")
    record = {"row": flags.row, "metrics": metrics, "seconds": round(time.monotonic() - began, 1), "device": device()}
    write_atomically(flags.out, json.dumps(record, indent=2))


def device() -> str:
    """The devices in use: "cpu, 2 cores", "NVIDIA H200", "4 x TPU v5 lite"."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return f"cpu, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    kind = devices[0].device_kind
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"


if __name__ == "__main__":
    sys.exit(main())
