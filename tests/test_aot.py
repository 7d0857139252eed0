"""The ahead-of-time command: the real step from shapes alone, its figures and its refusals; slow: a TPU slice."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import sdd_jax
from sdd_jax import aot
from sdd_jax.benchmarks.chips import CHIPS, Chip
from sdd_jax.benchmarks.workloads import abstract_program, forward_flops, plain_job, precomputed
from sdd_jax.config import defaults_of, load_config
from sdd_jax.models.bundle import expected_shapes
from sdd_jax.models.described import read_configs
from sdd_jax.train import EngineConfig
from sdd_jax.training.hlo import Traffic

CONFIG = Path(__file__).parents[1] / "configs" / "ccd_sr.py"


F = {"sd15": 0.803e12, "sdxl": 6.761e12}
SPECIAL = {
    "icd.py:stage2,sd15": ["teacher.model=random:stable-diffusion-v1-5/stable-diffusion-v1-5+w"],
    "icd.py:stage2,sdxl": ["teacher.model=random:stabilityai/stable-diffusion-xl-base-1.0+w"],
    "sdd_stylegan.py:sd15_random": [
        "manipulator.generator=random:64", "identity.kind=none", "objective.identity_weight=0.0",
    ],
}  # fmt: skip
"""What a variant needs on the command line."""


def published():
    """Every config's variants on Stable Diffusion 1.5 and XL; cm.py's needs a finished run."""
    for path in sorted(CONFIG.parent.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from (f"{path.name}:{name}" for name in F if name in module.VARIANTS)


SPECS = sorted({*published(), *SPECIAL} - {"cm.py:sd15", "sdd_stylegan.py:sd15"})
LOAD = functools.cache(sdd_jax.load)


def load(spec, *overrides):
    return load_config(spec, overrides, defaults_of(EngineConfig))


def test_the_command_prints_writes_and_refuses_what_does_not_fit(
    tiny_world, tmp_path, monkeypatch, capsys, compile_quickly
):
    monkeypatch.setattr(aot, "topology", lambda name: (Chip(1e9, 1000.0, 1e9, 1e9), jax.devices()[:1]))
    out = tmp_path / "figures.json"
    status = aot.main(
        [f"--plain={tiny_world}", "--topology=v5e:1x1", "--batch-size=2", "--remat=block", f"--out={out}"]
    )
    printed = capsys.readouterr()
    assert status == 2 and "error: does not fit: 0." in printed.err and printed.err.count("\n") == 1
    figures = json.loads(out.read_text())
    assert "| samples per chip and step | 2 |" in printed.out and "estimated from below" in printed.out
    count = sum(leaf.size for leaf in jax.tree.leaves(expected_shapes(read_configs(str(tiny_world)))["unet"]))
    assert 16 * count < figures["argument_bytes"] < 17 * count + 2**16, (
        "parameters, average, two moments; a small batch"
    )
    assert figures["peak_bytes"] >= figures["argument_bytes"] + figures["temporary_bytes"]
    assert figures["forwards_per_sample"] == pytest.approx(3, rel=0.05)
    assert figures["executed_flops_per_sample"] > 1.1 * figures["flops_per_sample"], "remat is not useful work"
    estimate = figures["estimate"]
    assert estimate["step_s"] == max(estimate["compute_s"], estimate["memory_s"]) and figures["collectives"] == {}


def test_a_config_of_published_size_becomes_shapes():
    job, useful, batch = aot.config_jobs(load(f"{CONFIG}:sd15", "batch_size=6"), from_moments=False)
    assert {type(leaf) for leaf in jax.tree.leaves(job.frozen)} == {jax.ShapeDtypeStruct} and useful is job
    shapes = {name: leaf.shape for name, leaf in batch.items()}
    assert shapes == {"condition": (6, 512, 512, 3), "image": (6, 512, 512, 3), "input_ids": (6, 77)}
    encoded = precomputed(job, batch)
    shapes = {name: leaf.shape for name, leaf in encoded.items()}
    assert shapes == {"condition": (6, 512, 512, 3), "moments": (6, 64, 64, 8), "context": (6, 77, 768)}
    assert forward_flops(job, batch) == forward_flops(job, encoded) == pytest.approx(0.803e12, rel=1e-3)


def test_the_embedded_default_keeps_its_own_batch(array_cache, tiny_world):
    config = load(str(CONFIG), f"model={tiny_world}", "adapter.embedding_channels=(4, 4, 8)", "remat=block")
    job, useful, batch = aot.config_jobs(config, from_moments=False)
    assert (job.config.remat, useful.config.remat) == ("block", "none")
    assert {name: leaf.shape for name, leaf in batch.items()} == {
        "condition": (16, 64, 64, 3),
        "moments": (16, 16, 16, 8),
        "input_ids": (16, 40),
    }


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_becomes_shapes(spec, array_cache, monkeypatch):
    for job in ("ccd.job", "ccd.baselines", "sdd.job", "dds.job", "icd.teacher", "icd.guidance_distill"):
        monkeypatch.setattr(f"sdd_jax.jobs.{job}.load", LOAD)
    config = load(str(CONFIG.with_name(spec)), *SPECIAL.get(spec, ()))
    job, _, batch = aot.config_jobs(config, from_moments=False)
    assert {type(leaf) for leaf in jax.tree.leaves(job.frozen["teacher"])} == {jax.ShapeDtypeStruct}
    assert {leaf.shape[0] for leaf in batch.values()} == {config.batch_size}
    assert forward_flops(job, batch) == pytest.approx(F["sdxl" if "sdxl" in spec else "sd15"], rel=1e-3)


def test_the_embedded_second_stage_takes_a_teacher_of_shapes(tiny_world, array_cache):
    config = load(str(CONFIG.with_name("icd.py:stage2")), f"teacher.model=random:{tiny_world}+w")
    job, _, batch = aot.config_jobs(config, from_moments=False)
    assert job.objective.model.source == f"shapes:{tiny_world}+w" and batch["moments"].shape == (8, 16, 16, 8)


def test_a_distillation_of_a_run_needs_the_run():
    with pytest.raises(ValueError, match="config.teacher.workdir is empty: CM distils a fine-tuned run"):
        aot.config_jobs(load(str(CONFIG.with_name("cm.py:sd15"))), from_moments=False)


def test_a_job_without_a_diffusion_model_has_no_f(tmp_path, monkeypatch, capsys, array_cache, compile_quickly):
    monkeypatch.setattr(aot, "topology", lambda name: (Chip(1e9, 1e9, 1e9, 1e9), jax.devices()[:1]))
    config = CONFIG.with_name("pretrain_portraits.py:classifier,debug")
    small = {"tower.widths": "(8,8)", "tower.strides": "(4,4)", "optimizer.name": "adamw", "data.count": 8}
    command = [f"--config={config}", *(f"--config.{key}={value}" for key, value in small.items())]
    out = tmp_path / "figures.json"
    assert aot.main([*command, "--topology=v5e:1x1", f"--out={out}"]) == 0
    figures = json.loads(out.read_text())
    assert figures["flops_per_sample"] > 0 and "forwards_per_sample" not in figures
    assert "forwards per sample" not in capsys.readouterr().out
    assert aot.main([*command, "--topology=v5e:1x1", "--precomputed"]) == 2
    assert "there is no diffusion model, whose latents could be precomputed" in capsys.readouterr().err


def test_every_array_is_laid_out(tiny_world):
    job, batch = plain_job(str(tiny_world), batch_size=2)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1])
    step = abstract_program(job, batch, mesh)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(step.arguments))
    assert step.arguments[2]["moments"].shape == (2, 16, 16, 8)


def test_roofline_by_hand():
    chip = Chip(flops=100.0, memory=1.0, bandwidth=10.0, interconnect=5.0)
    found = aot.roofline(useful=300.0, executed=400.0, accessed=50.0, wire=10.0, chip=chip)
    assert found == {"compute_s": 4.0, "memory_s": 5.0, "interconnect_s": 2.0, "step_s": 5.0, "mfu": 0.6}
    traffic = {"all-reduce": Traffic(3, 10), "all-gather": Traffic(1, 7), "reduce-scatter": Traffic(1, 2)}
    assert aot.wire_bytes(traffic, devices=4) == 2 * 10 + 7 + 4 * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "give a chip and a shape, as v5e:4x4; chips: v4, v5e, v5p, v6e"),
        ("h100:8x8", "give a chip and a shape"),
        ("v5e:4x4x4", "the shape of a v5e slice has 2 dimensions"),
        ("v5p:2x2x1", "needs libtpu, which is not installed: pip install 'sdd_jax\\[tpu\\]'"),
    ],
)
def test_refused_topologies(name, message, monkeypatch):
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        aot.topology(name)


def test_mistakes_are_one_line(capsys, tmp_path):
    for arguments, message in (
        (["--plain=nobody/nothing", "--topology=v5e"], "give a chip and a shape"),
        ([f"--config={CONFIG}:sd15", "--topology=v5e:2x2", f"--out={tmp_path}/no/x.json"], "there is no directory"),
    ):
        assert aot.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chips"), [("v5e:1x1", 1), ("v5e:16x16", 256), ("v5p:2x2x4", 16), ("v6e:4x4", 16)])
def test_slices_that_libtpu_describes(name, chips):
    pytest.importorskip("libtpu")
    chip, devices = aot.topology(name)
    assert len(devices) == chips and {device.device_kind for device in devices} == {aot.SLICES[name[:3]]}
    assert chip is CHIPS[aot.SLICES[name[:3]]]


@pytest.mark.slow
def test_the_embedded_unet_on_a_slice_of_v5e(tmp_path):
    pytest.importorskip("libtpu")
    figures = {}
    for fsdp in (1, 2):
        out = tmp_path / f"{fsdp}.json"
        arguments = ["--plain=portraits", "--topology=v5e:2x2", "--batch-size=8", f"--fsdp={fsdp}", f"--out={out}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CONFIG.parents[1]), *sys.path])}
        command = [sys.executable, "-m", "sdd_jax.aot", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        figures[fsdp] = json.loads(out.read_text())
    assert set(figures[1]["collectives"]) == {"all-reduce"}, "gradients and scalars"
    assert figures[2]["collectives"]["all-gather"]["bytes"] > 0
    assert figures[2]["argument_bytes"] < 0.8 * figures[1]["argument_bytes"]
    assert figures[1]["memory_bytes"] == CHIPS["TPU v5 lite"].memory
    assert figures[1]["forwards_per_sample"] == pytest.approx(3, rel=0.05)
