import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.parameterization import PREDICTIONS, converter, predictor, to_eps, to_v, to_x0
from sdd_jax.diffusion.schedule import CLEAN, Level, Schedule, add_noise

PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))


@pytest.fixture(scope="module")
def exact():
    """x0, eps, v and z of the same samples at low, middle and high noise."""
    level = Schedule.scaled_linear().at(jnp.array([19, 500, 980]))
    keys = jax.random.split(jax.random.key(0))
    x0, eps = (jax.random.normal(k, (3, 4, 4, 2)) for k in keys)
    truth = {"x0": x0, "eps": eps, "v": level.alpha * eps - level.sigma * x0}
    return truth, add_noise(x0, eps, level), level


@pytest.mark.parametrize("source, target", PAIRS)
def test_every_prediction_gives_every_other(exact, source, target):
    truth, z, level = exact
    np.testing.assert_allclose(converter(source, target)(truth[source], z, level), truth[target], atol=3e-5)


@pytest.mark.parametrize("a, b", PAIRS)
def test_there_and_back_is_the_identity_for_wrong_predictions_too(exact, a, b):
    _, z, level = exact
    wrong = jax.random.normal(jax.random.key(7), z.shape)
    back = converter(b, a)(converter(a, b)(wrong, z, level), z, level)
    np.testing.assert_allclose(back, wrong, atol=1e-4)


def test_numbers_by_hand():
    level, z = Level(0.8, 0.6), jnp.array([1.1, -1.0])
    v = to_v(jnp.array([0.5, 1.0]), z, level, "eps")
    np.testing.assert_allclose(v, [-0.2, 2.0], atol=1e-6)
    np.testing.assert_allclose(to_x0(v, z, level, "v"), [1.0, -2.0], atol=1e-6)
    np.testing.assert_allclose(to_eps(jnp.array([1.1, -2.3]), z, level, "x0"), [0.366667, 1.4], atol=1e-6)


def test_conversions_run_in_float32_on_bfloat16_predictions(exact):
    truth, z, level = exact
    x0 = to_x0(truth["v"].astype(jnp.bfloat16), z, level, "v")
    assert x0.dtype == jnp.float32
    np.testing.assert_array_equal(x0, to_x0(truth["v"].astype(jnp.bfloat16).astype(jnp.float32), z, level, "v"))


def test_v_is_defined_at_the_clean_end():
    z, v = jnp.array([2.0]), jnp.array([3.0])
    assert to_x0(v, z, CLEAN, "v") == 2.0 and to_eps(v, z, CLEAN, "v") == 3.0


def test_an_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="unknown prediction 'epsilon'.*eps, v, x0"):
        predictor("epsilon")
    with pytest.raises(ValueError, match="unknown prediction 'score'"):
        converter("eps", "score")
