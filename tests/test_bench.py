"""The benchmark command: it times what it says, counts useful work, and agrees with PyTorch on the same work."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny as tiny_models
import toy_job

from sdd_jax import bench
from sdd_jax.benchmarks.chips import CHIPS, DIMENSIONS, SLICES, chip_of
from sdd_jax.benchmarks.profile import device_time, kind_of, shares
from sdd_jax.benchmarks.workloads import abstract_program, step_flops
from sdd_jax.models import attention
from sdd_jax.models.described import read_configs
from sdd_jax.models.unet_flops import unet_flops
from sdd_jax.training.flops import count_jaxpr
from sdd_jax.training.sharding import MeshConfig, make_mesh

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "ccd_sr.py"
SHAPE = jax.ShapeDtypeStruct((8, toy_job.WIDTH), "float32")
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def run(tmp_path, capsys, array_cache):
    """run(*arguments) -> (exit status, figures or None, stdout, stderr): one step, one repeat."""

    def call(*arguments):
        out = tmp_path / "figures.json"
        status = bench.main([*arguments, "--steps=1", "--repeats=1", "--compile-cache=", f"--out={out}"])
        printed = capsys.readouterr()
        return status, json.loads(out.read_text()) if out.exists() else None, printed.out, printed.err

    return call


def test_an_edits_iterations_cost_4f_a_picture(run, tiny_world):
    forward = unet_flops(read_configs(str(tiny_world))["unet"], 16, 16, 40).total
    status, figures, _, _ = run(f"--edit={tiny_world}", "--batch-size=2", "--iterations=5")
    assert status == 0 and figures["batch_size"] == 2 and figures["work"].startswith("5 DDS iterations of")
    assert figures["flops_per_sample"] == pytest.approx(5 * 4 * forward, rel=0.05)


def tiny(world, *more):
    shrink = [
        "data.count=4",
        "batch_size=2",
        "compile_cache=",
        "optimizer.name=adamw",
        "adapter.embedding_channels=(4, 4, 8)",
        f"model={world}",
    ]
    return [f"--config={CONFIG}", *(f"--config.{item}" for item in (*shrink, *more))]


def test_the_forward_is_pytorchs(run, tiny_world):
    status, figures, printed, _ = run(f"--forward={tiny_world}", "--batch-size=2", "--against=torch")
    assert status == 0 and "our time / PyTorch's" in printed
    assert figures["torch"]["difference"] < 1e-4 and figures["torch"]["time_ratio"] > 0
    assert figures["torch"]["processor_ratio"] > 0 and "our processor time / PyTorch's" in printed
    unet = read_configs(str(tiny_world))["unet"]
    assert figures["flops_per_sample"] == unet_flops(unet, 16, 16, 40).total
    assert figures["samples_per_s"] == pytest.approx(2 / figures["step_s"]["fastest"])
    assert figures["mfu"] == pytest.approx(figures["flops_per_s"] / figures["matmul_flops_per_s"] / jax.device_count())


def test_the_training_steps_first_loss_is_pytorchs(run, tiny_world):
    status, figures, _, error = run(*tiny(tiny_world, "objective.hint_weight=0"), "--against=torch")
    assert status == 0, error
    assert figures["torch"]["difference"] < 1e-4 and "one repeated batch" in figures["work"]
    assert figures["peak_bytes"] is None
    forward = unet_flops(read_configs(str(tiny_world))["unet"], 16, 16, 40).total
    assert 4 * forward < figures["flops_per_sample"] < 8 * forward


def test_icds_first_loss_is_pytorchs(run, tiny_world, tmp_path):
    """Its reverse model in full training: 5F, the teacher frozen, no average."""
    world = tiny_models.make_variant(tiny_world, tmp_path / "student", time_cond_proj_dim=512)
    shrink = ["data.count=4", "batch_size=3", "compile_cache=", "ema=None", "optimizer.name=adamw"]
    shrink.append(f"teacher.model={world}")
    config = ROOT / "configs" / "icd.py"
    flags = [f"--config={config}:stage2,reverse,full", *(f"--config.{item}" for item in shrink), "--precomputed"]
    status, figures, _, error = run(*flags, "--against=torch")
    assert status == 0, error
    assert figures["torch"]["difference"] < 1e-4
    forward = unet_flops(read_configs(str(world))["unet"], 16, 16, 40).total
    assert figures["flops_per_sample"] == pytest.approx(5 * forward, rel=0.05)


def test_plain_training_too_and_remat_does_not_count(run, tiny_world):
    plain = [f"--plain={tiny_world}", "--batch-size=2", "--remat=block"]
    status, figures, _, error = run(*plain, "--against=torch")
    assert status == 0, error
    assert figures["torch"]["difference"] < 1e-4
    forward = unet_flops(read_configs(str(tiny_world))["unet"], 16, 16, 40).total
    assert figures["flops_per_sample"] == pytest.approx(3 * forward, rel=0.05)


def test_muons_own_products_are_no_useful_work():
    job, batch = toy_job.build(toy_job.make_config(**{"optimizer.name": "muon"})), {"x": SHAPE}
    product, width = 2 * SHAPE.size * toy_job.WIDTH, toy_job.WIDTH
    assert step_flops(job, batch) == 6 * product, "two students, teacher, average, and the students' kernels"
    step = abstract_program(job, batch, make_mesh(MeshConfig(), jax.devices()[:1]))
    executed = count_jaxpr(step.program.step.trace(*step.arguments).jaxpr.jaxpr).total
    assert executed == 6 * product + 5 * (4 + 2) * width**3


def test_a_twin_that_lacks_adamw_alone_says_so(run, tiny_world):
    wanted = tiny(tiny_world, "objective.hint_weight=0", "optimizer.name=muon")
    status, _, _, error = run(*wanted, "--against=torch")
    assert status == 2 and "there is no PyTorch twin" in error and error.endswith("; set config.optimizer.name=adamw\n")


def test_a_process_that_ran_pytorch_too_has_no_peak_of_its_own(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert bench.peak_memory(alone=True) > 2**20 and bench.peak_memory(alone=False) is None
    device.memory_stats = lambda: {"peak_bytes_in_use": 5}
    assert bench.peak_memory(alone=True) == bench.peak_memory(alone=False) == 5


def test_time_runs(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    spent = iter((0.0, 9.0, 10.0, 16.0))
    monkeypatch.setattr(bench.time, "process_time", lambda: next(spent))
    calls = []
    found = bench.time_runs(lambda item: calls.append(item) or np.zeros(()), lambda: "batch", steps=3, repeats=2)
    assert len(calls) == bench.WARMUP + 3 * 2 and set(calls) == {"batch"}
    assert found == (7 / 3, 7 / 3, 6 / 14, 6 / 3), (
        "a tick for each reading: one at the start, two a step, one at the end"
    )


def test_the_chips_of_every_slice_are_in_the_table():
    assert set(SLICES.values()) <= set(CHIPS) and SLICES.keys() == DIMENSIONS.keys()
    assert chip_of("NVIDIA H200").flops == 989e12 and chip_of("cpu") is None


def test_kernels_by_name(tmp_path):
    names = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma": "attention",
        "sm90_xmma_fprop_implicit_gemm_bf16bf16": "convolution",
        "nvjet_tst_128x256_64x4_2x1_v_bz_TNT": "product",
        "input_reduce_fusion_12": "other",
        "MemcpyD2D": "copy",
    }
    assert {name: kind_of(name) for name in names} == names
    assert shares([("gemm", 3.0), ("loop_fusion", 1.0)]) == {"product": 0.75, "other": 0.25}
    assert device_time(tmp_path) == {}


def test_fused_attention_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "cudnn_supports", lambda *shape: pytest.fail("asked for cuDNN"))
    q = jax.ShapeDtypeStruct((1, 4, 2, 8), "bfloat16")
    attention.use_attention("xla")
    try:
        assert jax.eval_shape(attention.attend, q, q, q).shape == q.shape
    finally:
        attention.use_attention("auto")
    with pytest.raises(ValueError, match="use auto or xla"):
        attention.use_attention("flash")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--edit=nobody/nothing"], "no directory and not a published model"),
        (["--forward=portraits", "--batch-size=0"], "--batch-size=0: give at least 1"),
        (["--forward=nobody/nothing"], "no directory and not a published model"),
        ([f"--config={CONFIG}:adapter", "--against=torch"], "there is no PyTorch twin"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message, tiny_world):
    more = tiny(tiny_world)[1:] if "adapter" in arguments[0] else []
    status, figures, _, error = run(*arguments, *more)
    assert status == 2 and figures is None and message in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def script():
    """launch/gpu_table.py"""
    spec = importlib.util.spec_from_file_location("gpu_table", ROOT / "launch" / "gpu_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_target_row_of_the_gpu_table_costs_4f_and_is_pytorchs(script, run, tiny_world, monkeypatch):
    """CCD without an adapter, at tiny size."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(script, "MODEL", str(tiny_world))
    tiny_sizes = ["--config.data.size=64", "--config.dtype=float32", "--config.compile_cache="]
    status, figures, _, error = run(*script.Run("ccd", 2).arguments, *tiny_sizes, "--against=torch")
    assert status == 0, error
    assert figures["torch"]["difference"] < 1e-4 and "adapter none" in figures["work"]
    forward = unet_flops(read_configs(str(tiny_world))["unet"], 16, 16, 40).total
    assert figures["flops_per_sample"] == pytest.approx(4 * forward, rel=0.05)


def test_a_copys_rate_counts_what_is_read_and_written(monkeypatch):
    assert bench.copy_rate() is None, "on a CPU"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bench, "time_runs", lambda step, *_: bench.Timing(float(step(None).size), 0.0, 0.0, 0.0))
    assert bench.copy_rate(64) == 2 * 2


def test_the_gpu_tables_icd_row_at_tiny_size(script, run, tiny_world, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(script, "MODEL", str(tiny_world))
    tiny_sizes = ["--config.data.size=64", "--config.dtype=float32", "--config.compile_cache="]
    status, figures, _, error = run(*script.Run("icd", 2).arguments, *tiny_sizes)
    assert status == 0, error
    assert "iCD" in figures["work"] and "one repeated batch" in figures["work"] and figures["peak_bytes"] > 0
    forward = unet_flops(read_configs(str(tiny_world))["unet"], 16, 16, 40).total
    assert figures["flops_per_sample"] == pytest.approx(5 * forward, rel=0.05)


def test_the_gpu_table_prints_every_command_and_reads_what_ran(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu_table.py", f"--out={tmp_path}", "--dry-run"])
    assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(script.RUNS) == len({run.name for run in script.RUNS})
    for axis in ("step", "attention", "remat", "torch"):
        values = [getattr(run, axis) for run in script.RUNS]
        assert set(values[:8]) == set(values) and len(set(values)) > 1, "a budget that ends early cuts no axis off"
    sizes = {(run.step, run.batch) for run in script.RUNS[:8]}
    assert any((step, 2 * batch) in sizes for step, batch in sizes)
    assert {run.step for run in script.RUNS} == {"plain", *script.CONFIGS}
    assert all((ROOT / config.split(":")[0]).is_file() for config in script.CONFIGS.values())
    first, second = script.RUNS[:2]
    figures = {
        "step_s": {"fastest": 0.25},
        "samples_per_s": 128.0,
        "flops_per_s": 3e14,
        "mfu": 0.3,
        "peak_bytes": 2**33,
        "matmul_flops_per_s": 7.9e14,
        "copy_bytes_per_s": 4.3e12,
    }
    (tmp_path / f"{first.name}.json").write_text(json.dumps({**figures, "torch": {"time_ratio": 0.5}}))
    (tmp_path / f"{second.name}.log").write_text("noise\nerror: the budget ended\n")
    rows = script.table(tmp_path).splitlines()[2:]
    assert rows[-1] == "Ceilings in the same runs: matrix product 790 TFLOP/s, copy 4.30 TB/s."
    assert rows[0] == "| ccd | 32 | cuDNN | none | 250 | 128.0 | 300 | 30.0% | 8.0 | - | 2.00 |"
    assert "the budget ended" in rows[1] and rows[2].endswith("| not run |")
