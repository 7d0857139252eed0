"""`python -m sdd_jax.bench`: how fast the work is, against the hardware's limit and against PyTorch.

    python -m sdd_jax.bench --forward=portraits --batch-size=16 --against=torch        one UNet forward
    python -m sdd_jax.bench --plain=stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype=bfloat16 --batch-size=64
    python -m sdd_jax.bench --edit=stable-diffusion-v1-5/stable-diffusion-v1-5 --batch-size=8 --iterations=200 \
        --steps=1                                                                          whole edits by DDS
    python -m sdd_jax.bench --config=configs/ccd_sr.py                                 any config's step, with its data
    python -m sdd_jax.bench --config=configs/ccd_sr.py --config.objective.hint_weight=0 \
        --config.optimizer.name=adamw --against=torch

After a warm-up, `--repeats` runs of `--steps` steps; the fastest and the median run count. Useful operations are those
of the live products and convolutions of the losses and their gradients without remat (`training.flops`): neither what
remat computes again nor Muon's own products, which are in the time. MFU divides them by the time and by the devices'
published peak, on a CPU by what a matrix product reaches in the same run; on accelerators the product's and a copy's
rates of that run stand beside it. Data wait is the share of a run spent waiting
for the next batch (`sdd_jax.data.throughput` times data alone). `--forward`, `--plain` and `--edit` use random weights;
`--config.model=random:HUB_ID` gives a config random weights of a published model's shape, and a config whose data has
no path one repeated batch.

`--against=torch` runs the same work in PyTorch diffusers first (`torch_steps`), with the same weights, inputs and
draws, text states and latents precomputed for both; it prints how far the first results are apart and the ratio of the
times, to the faster of eager and, with `--torch-compile`, compiled; on a CPU also that of the processor times (all
threads together), which other programs on the same cores change little.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.benchmarks.chips import chip_of
from sdd_jax.benchmarks.edits import edit_work
from sdd_jax.benchmarks.profile import device_time
from sdd_jax.benchmarks.twins import check_torch
from sdd_jax.benchmarks.work import Work, config_work, forward_work, plain_work
from sdd_jax.command import Parser, run_command
from sdd_jax.config import defaults_of, load_config, split_overrides
from sdd_jax.data.sources import IMAGE_OPTIONS
from sdd_jax.models.attention import use_attention
from sdd_jax.train import EngineConfig, use_compile_cache

WARMUP = 2


class Timing(NamedTuple):
    """Seconds of one step in the fastest and the median run, and the share of time spent waiting for data.

    processor: processor seconds of a step, all threads together, of the run that took least.
    """

    fastest: float
    median: float
    data_wait: float
    processor: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_bench, argv)


def _bench(arguments: Sequence[str]) -> None:
    overrides, rest = split_overrides(arguments)
    parser = Parser(prog="python -m sdd_jax.bench", description=__doc__, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--forward", help="UNet forward of this model (portraits, a directory, a published hub id)")
    which.add_argument("--plain", help="plain diffusion training step of this model")
    which.add_argument("--edit", help="iterations of a DDS edit by this model, guided, for --batch-size pictures")
    which.add_argument("--config", help="step of a config file with :variants; --config.key=value overrides")
    parser.add_argument("--batch-size", type=int, default=16, help="of --forward, --plain and --edit")
    parser.add_argument("--iterations", type=int, default=2, help="of --edit: in a step; 200 are a whole edit")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the same")
    parser.add_argument("--compile-cache", default=defaults_of(EngineConfig)["compile_cache"], help="of the same")
    parser.add_argument("--remat", default="none", help="of --plain: none, dots or block")
    parser.add_argument("--precomputed", action="store_true", help="of --config: one batch of moments and text states")
    parser.add_argument("--attention", default="auto", choices=("auto", "xla"), help="xla: no fused kernels")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs")
    parser.add_argument("--against", choices=("torch",), help="also time PyTorch diffusers on the same work")
    parser.add_argument("--torch-compile", action="store_true", help="PyTorch under torch.compile as well")
    parser.add_argument("--profile", type=Path, help="directory for a profiler trace of one run, which is summed up")
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to")
    flags = parser.parse_args(rest)
    _check(flags)
    if flags.against:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks share the device
    use_attention(flags.attention)
    with contextlib.ExitStack() as stack:
        work = _work(flags, overrides, stack)
        if flags.against and work.twin is None:
            raise ValueError(f"--against={flags.against}: there is no PyTorch twin of {work.name}; leave it out")
        theirs = measure_twin(work, flags) if flags.against else None
        figures = measure(work, flags.steps, flags.repeats, flags.profile, theirs)
    print(table(figures))
    if flags.out is not None:
        flags.out.write_text(json.dumps(figures, indent=2) + "\n")


def _check(flags: argparse.Namespace) -> None:
    for name in ("batch_size", "iterations", "steps", "repeats"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(flags, name)}: give at least 1")
    if flags.out is not None and not flags.out.parent.is_dir():
        raise FileNotFoundError(f"--out={flags.out}: there is no directory {flags.out.parent}")
    if flags.against:
        check_torch()


def _work(flags: argparse.Namespace, overrides: Sequence[str], stack: contextlib.ExitStack) -> Work:
    against = flags.against is not None
    if flags.config is None:
        use_compile_cache(flags.compile_cache)
    if flags.forward is not None:
        return forward_work(flags.forward, flags.batch_size, flags.dtype)
    if flags.edit is not None:
        return edit_work(flags.edit, flags.batch_size, flags.dtype, flags.iterations)
    if flags.plain is not None:
        makes = {"batch_size": flags.batch_size, "dtype": flags.dtype, "remat": flags.remat}
        return plain_work(flags.plain, stack, against=against, **makes)
    config = load_config(flags.config, overrides, defaults_of(EngineConfig), IMAGE_OPTIONS)
    return config_work(config, stack, from_moments=flags.precomputed or against, against=against)


def time_runs(step: Callable[[Any], Any], batch: Callable[[], Any], steps: int, repeats: int) -> Timing:
    """Times `repeats` runs of `steps` steps after a warm-up; a run ends when its last result is there."""
    for _ in range(WARMUP):
        jax.block_until_ready(step(batch()))
    runs, processor, waited = [], [], 0.0
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        for _ in range(steps):
            asked = time.perf_counter()
            item = batch()
            waited += time.perf_counter() - asked
            result = step(item)
        jax.block_until_ready(result)
        runs.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    return Timing(min(runs) / steps, statistics.median(runs) / steps, waited / sum(runs), min(processor) / steps)


def measure_twin(work: Work, flags: argparse.Namespace) -> dict[str, Any]:
    """Times PyTorch's step, eager and where asked compiled, and keeps its first result; frees its memory after."""
    from sdd_jax.benchmarks import torch_steps

    assert work.twin is not None
    modes: dict[str, dict[str, float]] = {}
    first = None
    for mode in ("eager", *(["compiled"] if flags.torch_compile else [])):
        twin = work.twin(mode == "compiled")
        first = twin() if first is None else first
        timing = time_runs(functools.partial(_ignoring_batch, twin), lambda: None, flags.steps, flags.repeats)
        modes[mode] = {"fastest": timing.fastest, "median": timing.median, "processor": timing.processor}
        del twin
        torch_steps.release()
    return {"first": first, "modes": modes}


def _ignoring_batch(step: Callable[[], Any], batch: Any) -> Any:
    return step()


def measure(
    work: Work, steps: int, repeats: int, profile: Path | None = None, theirs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Times a work and returns its figures, as `--out` writes them; `theirs` are `measure_twin`'s."""
    kind, devices = jax.devices()[0].device_kind, jax.device_count()
    first = np.asarray(work.step(work.batch()))
    timing = time_runs(work.step, work.batch, steps, repeats)
    memory = peak_memory(alone=theirs is None)
    product, copied, chip = matmul_rate(), copy_rate(), chip_of(kind)
    peak, rate = chip.flops if chip else product, work.flops / timing.fastest
    figures = {
        "work": work.name,
        "device": f"{devices} x {kind}",
        "batch_size": work.batch_size,
        "step_s": {"fastest": timing.fastest, "median": timing.median, "processor": timing.processor},
        "samples_per_s": work.batch_size / timing.fastest,
        "flops_per_sample": work.flops / work.batch_size,
        "flops_per_s": rate,
        "matmul_flops_per_s": product,
        "copy_bytes_per_s": copied,
        "peak_flops_per_s": peak,
        "mfu": rate / (peak * devices),
        "peak_bytes": memory,
        "data_wait": timing.data_wait,
    }
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            jax.block_until_ready([work.step(work.batch()) for _ in range(steps)])
        figures["device_time"] = device_time(profile)
    if theirs is not None:
        fastest, processor = (min(times[key] for times in theirs["modes"].values()) for key in ("fastest", "processor"))
        compared = {
            "modes": theirs["modes"],
            "difference": float(np.linalg.norm(first - theirs["first"]) / np.linalg.norm(first)),
            "time_ratio": timing.fastest / fastest,
        }
        if jax.default_backend() == "cpu":
            compared["processor_ratio"] = timing.processor / processor
        figures["torch"] = compared
    return figures


def matmul_rate() -> float:
    """Operations a second of a device's matrix product: bfloat16, 8192 wide, on accelerators; float32, 1024, on CPU."""
    on_cpu = jax.default_backend() == "cpu"
    size, dtype = (1024, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    square = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    timing = time_runs(lambda _: multiply(square, square), lambda: None, 5, 3)
    return 2 * size**3 / timing.fastest


def copy_rate(size: int = 2**28) -> float | None:
    """Bytes a second that a device reads and writes, copying `size` bfloat16 numbers; None on a CPU.

    Signs are changed, so that the compiler leaves a copy to make.
    """
    if jax.default_backend() == "cpu":
        return None
    row = jnp.ones(size, jnp.bfloat16)
    negate = jax.jit(jnp.negative)
    timing = time_runs(lambda _: negate(row), lambda: None, 5, 3)
    return 2 * row.nbytes / timing.fastest


def peak_memory(*, alone: bool) -> int | None:
    """The most bytes in use so far: of the first device, or of this process where the backend does not count.

    None where the process would be counted and has not been `alone`: PyTorch's memory would be in it.
    """
    counted = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if counted is None and alone else counted


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    step, theirs = figures["step_s"], figures.get("torch", {})
    rows = [
        ("device", figures["device"]),
        ("batch", str(figures["batch_size"])),
        ("step, fastest and median run", _milliseconds(step)),
        ("samples a second", f"{figures['samples_per_s']:.4g}"),
        ("operations a sample", f"{figures['flops_per_sample'] / 1e9:.5g} GFLOP"),
        ("useful operations a second", f"{figures['flops_per_s'] / 1e12:.4g} TFLOP/s"),
        ("matrix product's, per device", f"{figures['matmul_flops_per_s'] / 1e12:.4g} TFLOP/s"),
        ("MFU", f"{figures['mfu']:.1%} of {figures['peak_flops_per_s'] / 1e12:.4g} TFLOP/s"),
    ]
    if figures["copy_bytes_per_s"] is not None:
        rows.append(("copy's, read and written, per device", f"{figures['copy_bytes_per_s'] / 1e12:.4g} TB/s"))
    if figures["peak_bytes"] is not None:
        rows.append(("peak memory", f"{figures['peak_bytes'] / 2**20:.0f} MiB"))
    rows.append(("data wait", f"{figures['data_wait']:.2%}"))
    for kind, share in figures.get("device_time", {}).items():
        rows.append((f"device time, {kind}", f"{share:.1%}"))
    rows += [(f"PyTorch {mode}", _milliseconds(times)) for mode, times in theirs.get("modes", {}).items()]
    if theirs:
        rows.append(("first results apart, relatively", f"{theirs['difference']:.2g}"))
        rows.append(("our time / PyTorch's", f"{theirs['time_ratio']:.3g}"))
    if "processor_ratio" in theirs:
        rows.append(("our processor time / PyTorch's", f"{theirs['processor_ratio']:.3g}"))
    return "\n".join([f"| {figures['work']} | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)])


def _milliseconds(seconds: Mapping[str, float]) -> str:
    return f"{seconds['fastest'] * 1e3:.4g} ms, {seconds['median'] * 1e3:.4g} ms"


if __name__ == "__main__":
    sys.exit(main())
