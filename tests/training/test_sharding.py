"""One program on 1, 2 and 8 devices: same losses, and every array split as the rules say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdd_jax.training.sharding import MeshConfig, check_batch_size, make_mesh

_SCRIPT = """
import functools, json, pathlib, sys
import jax
jax.config.update("jax_numpy_rank_promotion", "raise")
import sdd_jax.train as train
from sdd_jax.training import sharding
from toy_job import build, jitter, make_config, Numbers
from sdd_jax.data.pipeline import make_stream

make_mesh, results = sharding.make_mesh, {}
for name, devices, fsdp in (("1", 1, 1), ("2", 2, 1), ("8", 8, 1), ("4x2", 8, 2)):
    sharding.make_mesh = functools.partial(make_mesh, devices=jax.devices()[:devices])
    config = make_config(log_every=1, checkpoint_every=100, batch_size=16, accumulate=2)
    config.mesh.fsdp, config.mesh.min_shard_size = fsdp, 100
    workdir = pathlib.Path(sys.argv[1]) / name
    state = train.run(build(config), workdir)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=fsdp))
    batch = sharding.place_batch(next(make_stream(Numbers(), jitter, batch_size=16, seed=0)), mesh)
    shapes = lambda array: [list(shard.data.shape) for shard in array.addressable_shards]
    results[name] = {
        "loss": [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()],
        "batch": shapes(batch["x"]),
        "kernel": shapes(state.params["dense"]["kernel"]),
        "ema": shapes(state.ema["dense"]["kernel"]),
        "moment": shapes(state.opt_state[0][1][0].mu["dense"]["kernel"]),
        "bias": shapes(state.params["dense"]["bias"]),
    }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path_factory.mktemp("meshes"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["2", "8", "4x2"])
def test_twenty_losses_do_not_depend_on_the_mesh(results, mesh):
    assert len(results["1"]["loss"]) == 20
    np.testing.assert_allclose(results[mesh]["loss"], results["1"]["loss"], rtol=1e-5)
    assert results["1"]["loss"][-1] < 0.95 * results["1"]["loss"][0]


@pytest.mark.parametrize(
    ("mesh", "batch", "kernel"),
    [
        ("1", [16, 16], [16, 16]),
        ("2", [8, 16], [16, 16]),
        ("8", [2, 16], [16, 16]),
        ("4x2", [2, 16], [8, 16]),
    ],
)
def test_shards_have_the_sizes_of_the_rules(results, mesh, batch, kernel):
    count = 16 // batch[0]
    assert results[mesh]["batch"] == [batch] * count
    for name in ("kernel", "ema", "moment"):
        assert results[mesh][name] == [kernel] * count
    assert results[mesh]["bias"] == [[16]] * count  # below min_shard_size


def test_bad_meshes_and_batches_are_one_line():
    with pytest.raises(ValueError, match="data=-1 x fsdp=3 does not make 1 devices"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="data=2 x fsdp=1 does not make 1 devices"):
        make_mesh(MeshConfig(data=2))
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of accumulate=4 x 1 devices"):
        check_batch_size(6, 4, make_mesh(MeshConfig()))
