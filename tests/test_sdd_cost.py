"""What training is said to cost: the loop's own steps and the search's own batches are run and timed."""

import dataclasses

import jax
import numpy as np
import pytest
import toy_job
from ml_collections import ConfigDict
from toy_sdd import FROZEN, make_model

from sdd_jax.jobs.sdd import cost
from sdd_jax.objectives.sdd import SDD

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def timed(monkeypatch):
    """What was timed, each taking 2 s."""
    results = []

    def seconds(run):
        results.append(jax.block_until_ready(run()))
        return 2.0

    monkeypatch.setattr(cost, "measure_seconds", seconds)
    return results


def test_steps_are_timed_in_a_row_and_train(timed):
    found = cost.training_cost(toy_job.build(toy_job.make_config()), 100)
    assert found == (100, 2.0 / cost.STEPS, 0.0) and found.seconds == pytest.approx(100 * 2.0 / cost.STEPS)
    (losses,) = timed
    assert len(set(map(float, losses))) == cost.STEPS and np.all(np.isfinite(losses))


@pytest.mark.parametrize(
    ("timesteps", "seconds"),
    [
        ({"rule": "argmax"}, 6.0),
        ({"rule": "all", "weights": "hqs"}, 6.0),
        ({"rule": "all"}, 0.0),
        ({"given": (500,)}, 0.0),
        ({"path": "hqs.json"}, 0.0),
    ],
)
def test_a_search_is_its_batches(timed, monkeypatch, timesteps, seconds):
    """40 images are three batches of 16."""
    monkeypatch.setattr(cost, "_step_seconds", lambda job: 0.5)
    sections = {
        "timesteps": timesteps,
        "search": {"images": 40, "stride": 800},
        "data": {"prompt": "an angry {species}", "count": 3, "truncation": 1.0},
    }
    toy = toy_job.build(toy_job.make_config())
    objective = SDD(model=make_model(), manipulator=None)
    job = dataclasses.replace(toy, objective=objective, frozen=FROZEN, config=ConfigDict({**toy.config, **sections}))
    found = cost.training_cost(job, 10)
    assert found == (10, 0.5, seconds) and found.seconds == 5.0 + seconds
    assert [deficit.shape for deficit in timed] == ([(2, 16)] if seconds else []), "timesteps 100 and 900"
