"""One program on 1, 2 and 8 devices: same losses, arrays split as the rules say, the collectives that this takes, and
checkpoints that move between them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy_job import WIDTH

from sdd_jax.training.sharding import MeshConfig, arrange, check_batch_size, make_mesh

_SCRIPT = """
import dataclasses, functools, json, pathlib, sys
import jax
jax.config.update("jax_numpy_rank_promotion", "raise")
import numpy as np
import optax
import sdd_jax.train as train
from sdd_jax.benchmarks.workloads import abstract_program, plain_job
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.models.load import load
from sdd_jax.objectives.ccd import CCD
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training import sharding
from sdd_jax.training.hlo import collectives
from tiny import make_variant
from toy_job import build, jitter, make_config, Numbers
from sdd_jax.data.pipeline import make_stream

make_mesh, results = sharding.make_mesh, {}

def settings(fsdp, **changes):
    config = make_config(log_every=1, checkpoint_every=100, batch_size=16, **changes)
    config.mesh.fsdp, config.mesh.min_shard_size = fsdp, 100
    return config

def trained(name, devices, config):
    sharding.make_mesh = functools.partial(make_mesh, devices=jax.devices()[:devices])
    workdir = pathlib.Path(sys.argv[1]) / name
    state = train.run(build(config), workdir)
    return state, [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]

for name, devices, fsdp in (("muon 1", 1, 1), ("muon 4x2", 8, 2)):
    _, losses = trained(name, devices, settings(fsdp, **{"optimizer.name": "muon"}))
    results[name] = {"loss": losses}

for name, devices, fsdp in (("1", 1, 1), ("2", 2, 1), ("8", 8, 1), ("4x2", 8, 2), ("1x8", 8, 8)):
    state, losses = trained(name, devices, settings(fsdp, accumulate=2))
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=fsdp))
    batch = sharding.place_batch(next(make_stream(Numbers(), jitter, batch_size=16, seed=0)), mesh)
    shapes = lambda array: [list(shard.data.shape) for shard in array.addressable_shards]
    results[name] = {
        "loss": losses,
        "batch": shapes(batch["x"]),
        "kernel": shapes(state.params["dense"]["kernel"]),
        "ema": shapes(state.ema["dense"]["kernel"]),
        "moment": shapes(state.opt_state[0][1][0].mu["dense"]["kernel"]),
        "bias": shapes(state.params["dense"]["bias"]),
    }

# what the step of eight devices sends
for fsdp in (1, 8):
    for accumulate in (1, 2):
        mesh = make_mesh(sharding.MeshConfig(fsdp=fsdp))
        batch = {"x": jax.ShapeDtypeStruct((16, 16), np.float32)}
        program, arguments = abstract_program(build(settings(fsdp, accumulate=accumulate)), batch, mesh)
        compiled = program.step.trace(*arguments).lower().compile()
        results[f"traffic {fsdp} {accumulate}"] = collectives(compiled.as_text())
    kernels = (program.state.params["dense"], program.state.ema["dense"], program.frozen["teacher"])
    results[f"split {fsdp}"] = [list(kernel["kernel"].sharding.spec) for kernel in kernels]

# what a UNet's step sends where its kernels are split
mesh = make_mesh(sharding.MeshConfig(fsdp=4))
job, batch = plain_job(sys.argv[2], batch_size=8, dtype="float32", engine={"mesh": {"fsdp": 4, "min_shard_size": 1024}})
program, arguments = abstract_program(job, batch, mesh)
results["traffic unet"] = collectives(program.step.trace(*arguments).lower().compile().as_text())
results["split unet"] = sum(
    4 * leaf.size for leaf in jax.tree.leaves(program.state.params) if any(leaf.sharding.spec)
)

# what CCD's step sends where they are whole
one_level = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
small = pathlib.Path(sys.argv[1]) / "small"
make_variant(pathlib.Path(sys.argv[2]), small, block_out_channels=[8], **one_level)
job, batch = plain_job(str(small), batch_size=8, dtype="float32")
bundle, shapes_of = load(f"shapes:{small}")
ccd = CCD(model=bundle, adapter=NoAdapter())
job = dataclasses.replace(job, objective=ccd, frozen={"teacher": {"unet": shapes_of["unet"]}})
program, arguments = abstract_program(job, batch, make_mesh(sharding.MeshConfig()))
quickly = {"xla_backend_optimization_level": 0}  # of machine code, after the collectives are decided
results["traffic ccd"] = collectives(program.step.trace(*arguments).lower().compile(quickly).as_text())
results["gradients ccd"] = sum(4 * leaf.size for leaf in jax.tree.leaves(program.state.params))

# what the last run saved on 8 devices, on other topologies
state = jax.tree.map(np.asarray, state)
workdir = pathlib.Path(sys.argv[1]) / "1x8"
record = json.loads((workdir / "config.json").read_text())
for name, devices, fsdp in (("1", 1, 1), ("4", 4, 1), ("2x2", 4, 2), ("8", 8, 1)):
    config = sharding.MeshConfig(fsdp=fsdp, min_shard_size=100)
    layout = sharding.tree_shardings(state, make_mesh(config, jax.devices()[:devices]), config)
    wanted = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, layout)
    with Checkpoints(workdir, keep=2, config=record["config"], fingerprint=record["fingerprint"]) as checkpoints:
        restored = checkpoints.restore(wanted)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, at: x.sharding == at, restored, layout)))
    results[f"restored {name}"] = shapes(restored.params["dense"]["kernel"])

# a state of the embedded UNet, by the rules' default sizes
_, params = load("portraits", on_host=True)
state = jax.eval_shape(lambda p: {"params": p, "ema": p, "moments": optax.adam(1.0).init(p)}, params["unet"])
for fsdp in (1, 4):
    config = sharding.MeshConfig(fsdp=fsdp)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    placed = sharding.place(zeros, sharding.tree_shardings(state, make_mesh(config), config))
    held = [0] * 8
    for leaf in jax.tree.leaves(placed):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    results[f"bytes {fsdp}"] = held
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tiny_world, tmp_path_factory):
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path_factory.mktemp("meshes")), str(tiny_world)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("mesh", "alone"), [("2", "1"), ("8", "1"), ("4x2", "1"), ("1x8", "1"), ("muon 4x2", "muon 1")]
)
def test_twenty_losses_do_not_depend_on_the_mesh(results, mesh, alone):
    assert len(results[alone]["loss"]) == 20
    np.testing.assert_allclose(results[mesh]["loss"], results[alone]["loss"], rtol=1e-5)
    assert results[alone]["loss"][-1] < 0.95 * results[alone]["loss"][0]


def test_whole_parameters_cost_a_sum_of_gradients_and_scalars_a_microbatch(results):
    sent = 4 * (2 * (WIDTH * WIDTH + WIDTH) + 2)  # the toy's two terms are summed apart: kernel, bias and the term
    for accumulate in (1, 2):
        traffic = results[f"traffic 1 {accumulate}"]
        assert set(traffic) == {"all-reduce"} and traffic["all-reduce"][1] == accumulate * sent


def test_split_parameters_are_gathered(results):
    for accumulate in (1, 2):
        runs, gathered = results[f"traffic 8 {accumulate}"]["all-gather"]
        assert runs >= 3 and gathered >= 3 * 4 * WIDTH * WIDTH, "student, average and teacher"


def test_a_unets_kernels_come_together_where_they_are_read_and_nothing_else_moves(results):
    """Forward and backward; activations stay on the device of their samples."""
    traffic = results["traffic unet"]
    assert set(traffic) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert results["split unet"] <= traffic["all-gather"][1] <= 2.1 * results["split unet"]


def test_ccd_with_whole_parameters_sends_its_gradients_and_scalars(results):
    traffic = results["traffic ccd"]
    assert set(traffic) == {"all-reduce"}
    assert 0 <= traffic["all-reduce"][1] - results["gradients ccd"] < 200, "loss, its two terms, norms"


def test_a_teacher_lies_as_the_parameters_do(results):
    assert results["split 1"] == [[]] * 3 and results["split 8"] == [["fsdp"]] * 3


@pytest.mark.parametrize(
    ("mesh", "batch", "kernel"),
    [
        ("1", [16, 16], [16, 16]),
        ("2", [8, 16], [16, 16]),
        ("8", [2, 16], [16, 16]),
        ("4x2", [2, 16], [8, 16]),
        ("1x8", [2, 16], [2, 16]),
    ],
)
def test_shards_have_the_sizes_of_the_rules(results, mesh, batch, kernel):
    count = 16 // batch[0]
    assert results[mesh]["batch"] == [batch] * count
    for name in ("kernel", "ema", "moment"):
        assert results[mesh][name] == [kernel] * count
    assert results[mesh]["bias"] == [[16]] * count  # below min_shard_size


def test_a_checkpoint_of_eight_devices_is_read_on_other_topologies(results):
    assert results["restored 1"] == [[16, 16]]
    assert results["restored 4"] == [[16, 16]] * 4
    assert results["restored 2x2"] == [[8, 16]] * 4
    assert results["restored 8"] == [[16, 16]] * 8


def test_fsdp_of_four_holds_less_than_a_third_of_the_bytes(results):
    whole, split = results["bytes 1"], results["bytes 4"]
    assert len(set(whole)) == 1 and len(set(split)) == 1
    assert split[0] < whole[0] / 3


def devices(islands, size, **attributes):
    """Fake devices of `islands` processes with `size` devices each, in an order that is not the islands'."""
    made = [
        SimpleNamespace(id=size * island + n, process_index=island, platform="cpu", device_kind="cpu", **attributes)
        for island in range(islands)
        for n in range(size)
    ]
    return made[::2] + made[1::2]


@pytest.mark.parametrize(("islands", "size", "fsdp"), [(2, 4, 2), (2, 4, 4), (4, 2, 2), (1, 8, 4), (8, 1, 1)])
def test_fsdp_stays_inside_an_island(islands, size, fsdp, caplog):
    mesh = arrange(devices(islands, size), fsdp)
    assert mesh.shape == (islands * size // fsdp, fsdp)
    assert sorted(device.id for device in mesh.flat) == list(range(islands * size))
    assert all(len({device.process_index for device in row}) == 1 for row in mesh)
    # the batch is split over data, then fsdp: each process's part is one contiguous block, in the order of processes
    flat = [device.process_index for device in mesh.flat]
    assert flat == sorted(flat) and not caplog.text


def test_islands_are_slices_where_devices_have_them():
    made = devices(4, 2)
    for device in made:
        device.slice_index = device.process_index // 2
    mesh = arrange(made, 4)
    assert all(len({device.slice_index for device in row}) == 1 for row in mesh)
    assert {len({device.process_index for device in row}) for row in mesh} == {2}


def test_fsdp_larger_than_an_island_works_and_says_so(caplog):
    mesh = arrange(devices(4, 2), 4)
    assert mesh.shape == (2, 4) and len({device.id for device in mesh.flat}) == 8
    assert "config.mesh.fsdp=4 spans islands of [2] devices" in caplog.text


def test_bad_meshes_and_batches_are_one_line():
    with pytest.raises(ValueError, match="data=-1 x fsdp=3 does not make 1 devices"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="data=2 x fsdp=1 does not make 1 devices"):
        make_mesh(MeshConfig(data=2))
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of accumulate=4 x 1 devices"):
        check_batch_size(6, 4, make_mesh(MeshConfig()))
