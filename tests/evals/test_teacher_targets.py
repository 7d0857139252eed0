"""The embedded world's targets: what counts as met, and which guidance scale is the best."""

import numpy as np
import pytest

from sdd_jax.evals.instruments import Readings
from sdd_jax.evals.teacher import Generation, Target, best_scale, generation_figures, report


def figures(accuracy, *ratios):
    return Generation(accuracy=np.full(7, accuracy), diversity=np.asarray(ratios))


def test_best_scale_is_the_most_accurate_of_the_diverse_ones():
    found = {1.0: figures(0.9, 0.8, 1.1), 1.5: figures(0.95, 0.6, 1.9), 3.0: figures(0.99, 0.3, 1.0)}
    assert best_scale(found) == 1.5
    assert [row.is_met for row in found[3.0].targets(3.0)] == [True, False, True]


def test_best_scale_without_a_diverse_one_is_the_most_accurate():
    assert best_scale({1.0: figures(0.9, 0.4), 3.0: figures(0.99, 0.3)}) == 3.0


def test_targets_say_missed_on_either_side():
    assert not Target(name="x", value=2.1, low=0.5, high=2.0).is_met
    assert "| x | 0.400 | 0.5 .. 2 | MISSED |" in report([Target(name="x", value=0.4, low=0.5, high=2.0)])
    assert "| y | 0.900 | >= 0.85 | reached |" in report([Target(name="y", value=0.9, low=0.85)])


class Mirror:
    """Instruments that read labels and nuisance off the first pixels of a picture."""

    def read(self, images):
        flat = images.reshape(len(images), -1)
        return Readings(labels=(flat[:, :2] > 0).astype(int), nuisance=flat[:, 2:5], embedding=flat)


def test_diversity_is_the_variance_over_the_renders_of_what_the_regressor_reads():
    rng = np.random.default_rng(0)
    renders = rng.normal(size=(64, 2, 2, 3)).astype(np.float32)
    nuisance = renders.reshape(64, -1)[:, 2:5].copy()
    nuisance[:, 1] = rng.normal(size=64)  # the regressor does not read this one
    labels = (renders.reshape(64, -1)[:, :2] > 0).astype(int)
    found = generation_figures(Mirror(), lambda w: renders * w, [1.0, 2.0], labels, renders, nuisance)
    np.testing.assert_allclose(found[1.0].diversity, [1.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(found[2.0].diversity, [4.0, 4.0], rtol=1e-5)
    assert found[1.0].accuracy == pytest.approx([1.0, 1.0])
