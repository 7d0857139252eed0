import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.parameterization import PREDICTIONS, converter, to_v, to_x0
from sdd_jax.diffusion.schedule import CLEAN, Level, Schedule, add_noise, snr
from sdd_jax.diffusion.transport import (
    boundary_coefficients,
    gaussian_eps,
    gaussian_flow,
    move,
    move_stochastic,
    posterior_std,
    prev_with_noise,
)

SD = Schedule.scaled_linear()
T, S = Level(0.8, 0.6), Level(0.96, 0.28)


def test_ccd_steps_by_hand():
    x0, eps = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0])
    z = add_noise(x0, eps, T)
    np.testing.assert_allclose(move(x0, z, T, S, "x0"), [1.1, -1.64], atol=1e-6)
    np.testing.assert_allclose(prev_with_noise(x0, eps, S), [1.1, -1.64], atol=1e-6)
    x0_hat = jnp.array([1.1, -2.3])
    np.testing.assert_allclose(move(x0_hat, z, T, S, "x0"), [1.158667, -1.816], atol=1e-6)
    np.testing.assert_allclose(prev_with_noise(x0_hat, eps, S), [1.196, -1.928], atol=1e-6)


@pytest.mark.parametrize(
    "t, s, c_skip, c_out",
    [(999, 779, 3.07975, -2.09492), (779, 519, 2.38574, -1.46730), (519, 259, 1.61845, -0.81617)]
    + [(19, 259, 0.81908, 0.47483), (779, 999, 0.32470, 0.68022)],
)
def test_published_boundary_coefficients(t, s, c_skip, c_out):
    np.testing.assert_allclose(boundary_coefficients(SD.at(t), SD.at(s)), (c_skip, c_out), rtol=0, atol=1.5e-5)


def test_icd_jumps_by_hand():
    def walk(z, times, eps):
        for t, s in zip(times[:-1], times[1:], strict=True):
            z = move(jnp.asarray(eps), jnp.asarray(z), SD.at(t), SD.at(s), "eps")
        return z

    np.testing.assert_allclose(walk(1.0, (779, 519), 0.5), 1.652087, rtol=2e-6)
    np.testing.assert_allclose(walk(0.7, (999, 779, 519, 259), -0.3), 11.707998, rtol=3e-6)
    np.testing.assert_allclose(walk(0.7, (999, 259), -0.3), 11.707998, rtol=3e-6)
    np.testing.assert_allclose(walk(0.7, (519, 999, 519), 5.0), 0.7, rtol=1e-5)


@pytest.mark.parametrize("kind", list(PREDICTIONS))
def test_one_move_whatever_the_network_predicts(kind):
    z, eps = (jax.random.normal(jax.random.key(k), (2, 3, 3, 1)) for k in (0, 1))
    at_t, at_s = SD.at(jnp.array([999, 300])), SD.at(jnp.array([500, 700]))
    pred = converter("eps", kind)(eps, z, at_t)
    c_skip, c_out = boundary_coefficients(at_t, at_s)
    np.testing.assert_allclose(move(pred, z, at_t, at_s, kind), c_skip * z + c_out * eps, atol=2e-5)
    np.testing.assert_allclose(move(pred, z, at_t, at_t, kind), z, atol=2e-5)
    np.testing.assert_array_equal(move(pred, z, at_t, CLEAN, kind), to_x0(pred, z, at_t, kind))


def test_noise_consistency_is_snr_weighted_data_consistency():
    x_t, z_t = jnp.array([1.1, -2.3]), jnp.array([1.1, -1.0])
    z_s = move(x_t, z_t, T, S, "x0")
    x_s = jnp.array([0.3, -2.0])
    eps_t, eps_s = converter("x0", "eps")(x_t, z_t, T), converter("x0", "eps")(x_s, z_s, S)
    np.testing.assert_allclose(eps_t - eps_s, -(0.96 / 0.28) * (x_t - x_s), rtol=1e-5)
    np.testing.assert_allclose((eps_t - eps_s) ** 2, snr(S) * (x_t - x_s) ** 2, rtol=1e-5)


def test_standard_normal_data_has_no_velocity_and_a_known_step():
    z = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
    eps = gaussian_eps(z, T, 0.0, 1.0)
    np.testing.assert_allclose(to_v(eps, z, T, "eps"), 0.0, atol=1e-6)
    np.testing.assert_allclose(move(eps, z, T, S, "eps"), (0.96 * 0.8 + 0.28 * 0.6) * z, rtol=1e-5)


def test_gaussian_eps_is_the_posterior_mean_of_the_noise():
    """Regress eps on z over many draws: slope sigma / D, intercept -sigma alpha mu / D."""
    keys = jax.random.split(jax.random.key(3))
    mean, std, n = 0.7, 0.5, 200_000
    eps = jax.random.normal(keys[0], (n,))
    z = add_noise(mean + std * jax.random.normal(keys[1], (n,)), eps, T)
    slope, intercept = np.polyfit(np.asarray(z, np.float64), np.asarray(eps, np.float64), 1)
    np.testing.assert_allclose(slope * 1.3 + intercept, gaussian_eps(jnp.array(1.3), T, mean, std), atol=1e-2)
    np.testing.assert_allclose(intercept, gaussian_eps(jnp.array(0.0), T, mean, std), atol=1e-2)


def test_gaussian_flow_is_the_limit_of_small_moves():
    z0 = jnp.array([1.7, -0.4])
    z = z0
    for t in range(600, 200, -1):
        z = move(gaussian_eps(z, SD.at(t), 0.7, 0.5), z, SD.at(t), SD.at(t - 1), "eps")
    exact = gaussian_flow(z0, SD.at(600), SD.at(200), 0.7, 0.5)
    np.testing.assert_allclose(z, exact, atol=2e-3)
    one = move(gaussian_eps(z0, SD.at(600), 0.7, 0.5), z0, SD.at(600), SD.at(200), "eps")
    assert np.max(np.abs(one - exact)) > 2e-2


def test_the_stochastic_step_keeps_the_marginals_for_every_eta():
    """With the true x0 and eps, z_s has mean alpha_s x0 and variance sigma_s^2 whatever is redrawn."""
    keys = jax.random.split(jax.random.key(5))
    eps, noise = (jax.random.normal(k, (50_000,)) for k in keys)
    z = add_noise(jnp.full_like(eps, 2.0), eps, T)
    for eta in (0.0, 0.5, 1.0):
        z_s = move_stochastic(eps, z, T, S, "eps", noise, eta)
        np.testing.assert_allclose((z_s.mean(), z_s.std()), (0.96 * 2, 0.28), atol=6e-3)
    np.testing.assert_allclose(move_stochastic(eps, z, T, S, "eps", noise, 0.0), move(eps, z, T, S, "eps"), atol=1e-6)


def test_posterior_std_is_ddpms_and_vanishes_at_clean():
    beta = 1 - (0.8 / 0.96) ** 2
    np.testing.assert_allclose(posterior_std(T, S) ** 2, beta * 0.28**2 / 0.6**2, rtol=1e-6)
    assert posterior_std(T, CLEAN) == 0.0
