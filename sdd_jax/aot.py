"""`python -m sdd_jax.aot --config=... --topology=v5e:4x4`: compiles the real training step for a TPU that is not there.

    python -m sdd_jax.aot --config=configs/ccd_sr.py:sd15 --topology=v5e:4x4
    python -m sdd_jax.aot --plain=stabilityai/stable-diffusion-xl-base-1.0 --batch-size=16 --topology=v5p:2x2x4

What XLA's TPU compiler reports: HBM per chip (arguments, temporaries, peak) against the chip's, operations and, of
diffusion models, their number of UNet forwards (F) per sample, and the collectives with their bytes. The roofline is an
estimate from published rates, not a measurement:

    t >= max(operations / peak, bytes accessed / HBM bandwidth, wire bytes / interconnect)
    wire bytes = 2 all-reduce + all-gather + devices x reduce-scatter + the rest
    MFU <= useful operations / (t peak)      useful: without what remat computes a second time and the optimiser's own

HBM's term reads a loop's body once, so under accumulation it is low. Exit status 2 where the step does not fit. No
weights and no data are read; it needs libtpu (the `tpu` extra).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sdd_jax import jobs
from sdd_jax.benchmarks.chips import CHIPS, DIMENSIONS, GIB, SLICES, Chip
from sdd_jax.benchmarks.workloads import (
    AbstractStep,
    abstract_program,
    batch_shapes,
    example_batch,
    forward_flops,
    plain_job,
    precomputed,
    step_flops,
    without_files,
    without_remat,
)
from sdd_jax.command import Parser, run_command
from sdd_jax.config import defaults_of, load_config, split_overrides
from sdd_jax.data.sources import IMAGE_OPTIONS
from sdd_jax.train import EngineConfig, Job, engine_config
from sdd_jax.training import sharding
from sdd_jax.training.flops import count_jaxpr
from sdd_jax.training.hlo import Traffic, collectives

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_aot, argv)


def _aot(arguments: Sequence[str]) -> None:
    overrides, rest = split_overrides(arguments)
    parser = Parser(prog="python -m sdd_jax.aot", description=__doc__, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="a config file with :variants; --config.key=value overrides")
    which.add_argument("--plain", help="plain diffusion training of this model (a published hub id or a directory)")
    parser.add_argument("--topology", required=True, help="v5e:4x4, v5p:2x2x4, v6e:16x16, ...; v5e:1x1 is one chip")
    parser.add_argument("--precomputed", action="store_true", help="of --config: batches of moments and text states")
    parser.add_argument("--batch-size", type=int, default=16, help="of --plain: samples of a global batch")
    parser.add_argument("--fsdp", type=int, default=1, help="of --plain: devices that share the parameters")
    parser.add_argument("--remat", default="none", help="of --plain: none, dots or block")
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to")
    flags = parser.parse_args(rest)
    if flags.out is not None and not flags.out.parent.is_dir():
        raise FileNotFoundError(f"--out={flags.out}: there is no directory {flags.out.parent}")
    jax.config.update("jax_platforms", "cpu")  # libtpu is here to compile, not to look for a TPU
    if flags.config is not None:
        config = load_config(flags.config, overrides, defaults_of(EngineConfig), IMAGE_OPTIONS)
        chip, devices = topology(flags.topology)
        job, useful, batch = config_jobs(config, flags.precomputed)
    else:
        chip, devices = topology(flags.topology)
        engine = {"mesh": {**defaults_of(EngineConfig)["mesh"], "fsdp": flags.fsdp}}
        makes = {"batch_size": flags.batch_size, "engine": engine}
        job, batch = plain_job(flags.plain, remat=flags.remat, **makes)
        useful = plain_job(flags.plain, **makes)[0]
    mesh = sharding.make_mesh(engine_config(job.config).mesh, devices=devices)
    _log.info("%s, batch %d, for %d chips of %s", job.name, job.batch_size, mesh.size, flags.topology)
    step = abstract_program(job, batch, mesh)
    figures = {"job": job.name, "topology": flags.topology, "mesh": dict(mesh.shape)}
    figures |= measure(job, step, step_flops(useful, batch), chip)
    print(table(figures))
    if flags.out is not None:
        flags.out.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["peak_bytes"] > chip.memory:
        raise ValueError(f"does not fit: {_gib(figures['peak_bytes'])} of {_gib(chip.memory)} on each chip")


def config_jobs(config: ConfigDict, from_moments: bool) -> tuple[Job, Job, dict[str, jax.ShapeDtypeStruct]]:
    """A config's job, the same without remat, and its batch's shapes; its data path need not exist yet."""
    shapes = without_files(config, Path("data"))
    job = jobs.build(shapes)
    batch = batch_shapes(example_batch(config), job.batch_size)
    if from_moments:
        batch = precomputed(job, batch)
    return job, job if shapes.remat == "none" else jobs.build(without_remat(shapes)), batch


def topology(name: str) -> tuple[Chip, list[Any]]:
    """Returns a slice's chip and its devices, which compile and cannot run.

    Raises:
        ValueError: an unknown chip or shape, or libtpu is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in SLICES or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ValueError(f"--topology={name}: give a chip and a shape, as v5e:4x4; chips: {', '.join(SLICES)}")
    if len(shape.split("x")) != DIMENSIONS[kind]:
        raise ValueError(f"--topology={name}: the shape of a {kind} slice has {DIMENSIONS[kind]} dimensions")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("compiling for a TPU needs libtpu, which is not installed: pip install 'sdd_jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken, so compilations may run side by side
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if set(shape) == {"1", "x"}:
        options = {"chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={name}: libtpu cannot describe it: {str(error).splitlines()[0]}") from error
    return CHIPS[SLICES[kind]], list(found.devices)


def measure(job: Job, step: AbstractStep, useful: int, chip: Chip) -> dict[str, Any]:
    """Compiles a step and returns its figures, as `--out` writes them. useful: its operations by `step_flops`.

    Raises:
        ValueError: the compiler finds that the step does not fit into the chip's memory.
    """
    traced = step.program.step.trace(*step.arguments)
    flops = count_jaxpr(traced.jaxpr.jaxpr).total
    began = time.monotonic()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"does not fit: {' '.join(str(error).split())[:300]}") from error
    seconds = time.monotonic() - began
    memory, traffic = compiled.memory_analysis(), collectives(compiled.as_text())
    devices = step.program.mesh.size
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    samples, forward = job.batch_size, forward_flops(job, step.arguments[2])
    return {
        "batch_size": samples,
        "samples_per_chip": samples / devices,
        "argument_bytes": arguments,
        "temporary_bytes": temporaries,
        "peak_bytes": arguments + temporaries + outputs + memory.generated_code_size_in_bytes,
        "memory_bytes": chip.memory,
        "flops_per_sample": useful / samples,
        "executed_flops_per_sample": flops / samples,
        **({"forwards_per_sample": useful / samples / forward} if forward else {}),
        "collectives": {kind: found._asdict() for kind, found in traffic.items()},
        "estimate": roofline(
            useful / devices, flops / devices, bytes_accessed(compiled), wire_bytes(traffic, devices), chip
        ),
        "compile_seconds": round(seconds, 1),
    }


def bytes_accessed(compiled: Any) -> float:
    """What XLA's cost analysis says that a run of the program reads and writes; 0 where it says nothing."""
    return float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0))


def wire_bytes(traffic: Mapping[str, Traffic], devices: int) -> int:
    """The bytes that each chip sends for its collectives on a ring of `devices`, from above."""
    factors = {"all-reduce": 2, "reduce-scatter": devices}
    return sum(factors.get(kind, 1) * found.bytes for kind, found in traffic.items())


def roofline(useful: float, executed: float, accessed: float, wire: float, chip: Chip) -> dict[str, float]:
    """Lower bounds of a step's seconds on one chip, and the utilisation that they allow at most."""
    bounds = {
        "compute_s": executed / chip.flops,
        "memory_s": accessed / chip.bandwidth,
        "interconnect_s": wire / chip.interconnect,
    }
    step = max(bounds.values())
    return {**bounds, "step_s": step, "mfu": useful / (step * chip.flops)}


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    estimate = figures["estimate"]
    rows = [
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())),
        ("samples per chip and step", f"{figures['samples_per_chip']:g}"),
        ("arguments per chip", _gib(figures["argument_bytes"])),
        ("temporaries per chip", _gib(figures["temporary_bytes"])),
        ("peak per chip", f"{_gib(figures['peak_bytes'])} of {_gib(figures['memory_bytes'])}"),
        ("operations per sample", f"{figures['flops_per_sample'] / 1e12:.4g} TFLOP"),
        ("with remat and optimiser", f"{figures['executed_flops_per_sample'] / 1e12:.4g} TFLOP"),
    ]
    if "forwards_per_sample" in figures:
        rows.append(("forwards per sample", f"{figures['forwards_per_sample']:.2f} F"))
    for kind, found in figures["collectives"].items():
        rows.append((f"{kind} per step", f"{found['runs']} of {found['bytes'] / 2**20:.1f} MiB together"))
    bounds = ", ".join(f"{name} {_ms(estimate[f'{name}_s'])}" for name in ("compute", "memory", "interconnect"))
    rows += [
        ("step, estimated from below", f"{_ms(estimate['step_s'])} ({bounds})"),
        ("MFU, estimated from above", f"{estimate['mfu']:.0%}"),
        ("compiled in", f"{figures['compile_seconds']} s"),
    ]
    head = f"| {figures['job']} | {figures['topology']} |\n| --- | --- |\n"
    return head + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    sys.exit(main())
