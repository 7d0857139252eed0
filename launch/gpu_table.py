#!/usr/bin/env python3
"""Runs the speed table of docs/performance.md on one GPU, for 20 minutes at most, and prints it as Markdown.

    python launch/gpu_table.py --out=runs/gpu [--budget=1150] [--dry-run]

SD 1.5 at 512 px, bfloat16, random weights, latents and text states precomputed: the plain step (3F), CCD's in full
training without an adapter (4F: the row of the target) and with a ControlNet, iCD's (5F), attention in cuDNN or XLA,
remat none or dots, several batches, and PyTorch on the same work. Below it the ceilings of the same runs: a matrix
product and a copy. One process a run, the first eight with every kind of step and every choice once; what does not fit
into the budget or into memory says so in its row. A second call runs only what has no figures yet.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
CONFIGS = {
    "ccd": "configs/ccd_t2i.py:sd15",
    "ccd+controlnet": "configs/ccd_sr.py:sd15",
    "icd": "configs/icd.py:stage2,sd15,reverse,full",
}


class Run(NamedTuple):
    """One row: the step, its batch, attention, remat, and whether PyTorch runs too."""

    step: str
    batch: int
    attention: str = "auto"
    remat: str = "none"
    torch: bool = False

    @property
    def name(self) -> str:
        """The row's file name."""
        return f"{self.step}-b{self.batch}-{self.attention}-{self.remat}{'-torch' if self.torch else ''}"

    @property
    def arguments(self) -> list[str]:
        """What `sdd_jax.bench` gets."""
        shared = [f"--attention={self.attention}", "--steps=5", "--repeats=3"]
        shared += ["--against=torch", "--torch-compile"] if self.torch else []
        if self.step == "plain":
            plain = [f"--plain={MODEL}", "--dtype=bfloat16", f"--batch-size={self.batch}", f"--remat={self.remat}"]
            return [*plain, *shared]
        of_step: dict[str, dict[str, object]] = {
            "ccd": {"model": f"random:{MODEL}", "objective.guidance": ()},
            "icd": {"teacher.model": f"random:{MODEL}+w"},
        }
        own = of_step.get(self.step, {"model": f"random:{MODEL}"})
        config: dict[str, object] = {**own, "batch_size": self.batch, "remat": self.remat, "accumulate": 1}
        config |= {"mesh.data": -1, "mesh.fsdp": 1}
        overrides = [f"--config.{key}={value}" for key, value in config.items()]
        return [f"--config={CONFIGS[self.step]}", *overrides, "--precomputed", *shared]


RUNS = (
    Run("ccd", 32, torch=True),
    Run("plain", 32, torch=True),
    Run("icd", 16, torch=True),
    Run("ccd", 32, attention="xla"),
    Run("ccd", 32, remat="dots"),
    Run("ccd", 64),
    Run("plain", 64),
    Run("ccd+controlnet", 32),
    Run("plain", 32, attention="xla"),
    Run("plain", 32, remat="dots"),
    Run("ccd", 64, remat="dots"),
    Run("icd", 16, attention="xla"),
    Run("icd", 32, remat="dots"),
    Run("plain", 128, remat="dots"),
    Run("ccd", 32, attention="xla", remat="dots"),
    Run("plain", 32, attention="xla", remat="dots"),
    Run("icd", 16, attention="xla", remat="dots"),
)


def main() -> int:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the runs' figures, logs and profiles")
    parser.add_argument("--budget", type=float, default=1150.0, help="seconds for all runs together")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    flags = parser.parse_args()
    if flags.dry_run:
        for run in RUNS:
            print(shlex.join(command(run, flags.out)))
        return 0
    flags.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + flags.budget
    for run in RUNS:
        left = deadline - time.monotonic()
        if not (flags.out / f"{run.name}.json").is_file() and left > 0:
            measure(run, flags.out, left)
    print(table(flags.out))
    return 0


def command(run: Run, out: Path) -> list[str]:
    """The run's command line; it writes NAME.json and, of the step itself, a profile."""
    outputs = [f"--out={out / run.name}.json", f"--profile={out / run.name}"]
    return [sys.executable, "-m", "sdd_jax.bench", *run.arguments, *outputs]


def measure(run: Run, out: Path, limit: float) -> None:
    """Runs one row for at most `limit` seconds; its output is kept in NAME.log."""
    print(f"{run.name} ...", file=sys.stderr, flush=True)
    with (out / f"{run.name}.log").open("w") as log:
        try:
            subprocess.run(command(run, out), stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            print("error: the budget ended", file=log)


def table(out: Path) -> str:
    """The Markdown table of every run's figures, or of the reason why it has none."""
    head = (
        "| step | batch | attention | remat | ms | samples/s | TFLOP/s | MFU | peak GiB | bound by | PyTorch / ours |"
    )
    lines = [head, "|" + " --- |" * 11]
    for run in RUNS:
        attention = "cuDNN" if run.attention == "auto" else "XLA"
        cells = [run.step, str(run.batch), attention, run.remat]
        path = out / f"{run.name}.json"
        cells += figures(json.loads(path.read_text())) if path.is_file() else [reason(out / f"{run.name}.log")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *ceilings(out)])


def ceilings(out: Path) -> list[str]:
    """What the device itself reached in the runs, as lines below the table; none where nothing ran."""
    paths = (out / f"{run.name}.json" for run in RUNS)
    found = [json.loads(path.read_text()) for path in paths if path.is_file()]
    product = max((figures["matmul_flops_per_s"] for figures in found), default=None)
    copy = max((figures["copy_bytes_per_s"] or 0.0 for figures in found), default=None)
    if not product or not copy:
        return []
    return ["", f"Ceilings in the same runs: matrix product {product / 1e12:.0f} TFLOP/s, copy {copy / 1e12:.2f} TB/s."]


def figures(found: dict[str, Any]) -> list[str]:
    """A row's measured cells."""
    kinds = list(found.get("device_time", {}).items())[:2]
    torch = found.get("torch")
    return [
        f"{found['step_s']['fastest'] * 1e3:.0f}",
        f"{found['samples_per_s']:.1f}",
        f"{found['flops_per_s'] / 1e12:.0f}",
        f"{found['mfu']:.1%}",
        f"{found['peak_bytes'] / 2**30:.1f}",
        ", ".join(f"{kind} {share:.0%}" for kind, share in kinds) or "-",
        f"{1 / torch['time_ratio']:.2f}" if torch else "-",
    ]


def reason(log: Path) -> str:
    """Why a run has no figures: the last line of its log."""
    lines = log.read_text().strip().splitlines() if log.is_file() else []
    return lines[-1][:120] if lines else "not run"


if __name__ == "__main__":
    sys.exit(main())
