"""Runs read back: the state on the host, the parameters alone on the device."""

import jax
import numpy as np
import pytest
import toy_job

from sdd_jax import jobs, runs, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a toy run, and its last state."""
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    return workdir, train.run(toy_job.build(toy_job.make_config(steps=2)), workdir)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(jobs, "build", toy_job.build)


def test_the_state_is_read_to_the_host_whole(finished):
    workdir, last = finished
    job, state = runs.open_state(workdir)
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {np.ndarray}
    jax.tree.map(np.testing.assert_array_equal, state, last)
    assert job.name.startswith("toy")


def test_the_average_goes_to_the_default_device_and_is_not_bound_to_it(finished):
    workdir, last = finished
    _, params, step = runs.open_run(workdir)
    assert step == 2 and not np.array_equal(last.ema["dense"]["kernel"], last.params["dense"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, params, last.ema)
    assert all(isinstance(leaf, jax.Array) and not leaf.committed for leaf in jax.tree.leaves(params))
