import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.distances import boundary_scalings, l2, pseudo_huber, weighted_mean


def test_l2_is_a_mean_per_sample():
    a = jnp.stack([jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1))])
    b = jnp.full((2, 2, 2, 1), 3.0)
    np.testing.assert_array_equal(l2(a, b), [9.0, 4.0])
    assert weighted_mean(l2(a, b)) == 6.5 and weighted_mean(l2(a, b), jnp.array([1.0, 0.0])) == 4.5


@pytest.mark.parametrize("d, expected", [(0.001, 0.000414214), (0.1, 0.099005), (0.0, 0.0)])
def test_published_pseudo_huber(d, expected):
    value = pseudo_huber(jnp.full((1, 2, 2, 1), 1.0 + d), jnp.ones((1, 2, 2, 1)), 0.001)
    np.testing.assert_allclose(value, [expected], rtol=2e-4)


def test_pseudo_huber_does_not_cancel_and_is_quadratic_near_zero():
    d = 1e-6
    value = pseudo_huber(jnp.full((1, 1), d), jnp.zeros((1, 1)))
    np.testing.assert_allclose(value, [d**2 / (2 * 0.001)], rtol=1e-4)
    gradient = jax.grad(lambda a: pseudo_huber(a, jnp.zeros((1, 3)))[0])(jnp.array([[0.0, 1e-3, 5.0]]))
    np.testing.assert_allclose(gradient, [[0.0, 1 / 2**0.5 / 3, 1 / 3]], rtol=1e-5)


def test_distances_run_in_float32():
    a = jnp.full((1, 4), 1.0, jnp.bfloat16)
    assert l2(a, a).dtype == pseudo_huber(a, a).dtype == jnp.float32


def test_boundary_scalings_tie_the_clean_end_and_let_the_network_speak_elsewhere():
    c_skip, c_out = boundary_scalings(jnp.array([0, 16, 999]))
    assert c_skip.shape == c_out.shape == (3, 1, 1, 1)
    np.testing.assert_allclose(c_skip.ravel(), [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(c_out.ravel(), [0, 1, 1], atol=1e-5)


def test_boundary_scalings_are_those_of_lcm():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler()
    for t in (0, 1, 2, 19, 500):
        theirs = [float(c) for c in scheduler.get_scalings_for_boundary_condition_discrete(t)]
        np.testing.assert_allclose(boundary_scalings(t), theirs, rtol=1e-5)
