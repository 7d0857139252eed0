import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.parameterization import converter
from sdd_jax.diffusion.schedule import Level, Schedule
from sdd_jax.diffusion.score import dds_gradient, eps_denoiser, keep_top_k, sds_gradient, surrogate
from sdd_jax.diffusion.transport import gaussian_eps

SD = Schedule.scaled_linear()
SHAPE = (2, 4, 4, 3)
NULL = jnp.zeros((1, 1, 1))


def _linear(z, t, context, calls=None):
    """eps = .5 z_t + mean(context): the linear model of the reference."""
    if calls is not None:
        calls.append(z.shape[0])
    return 0.5 * z + context.mean((1, 2)).reshape(-1, 1, 1, 1)


def _normal(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def _prompt(value):
    return jnp.full((2, 1, 1), value)


T = jnp.array([500, 800])
LEVEL = SD.at(T)


def test_dds_of_a_linear_model_by_hand_and_in_one_call():
    calls = []
    eps_hat = eps_denoiser(lambda z, t, c: _linear(z, t, c, calls), "eps", NULL)
    z = _normal(0)
    level = Level(0.8, 0.6)
    for seed in (1, 2):
        g = dds_gradient(eps_hat, z + 0.25, z, _normal(seed), T, level, _prompt(0.05), _prompt(0.03), 7.5)
        np.testing.assert_allclose(g, 0.25, atol=1e-5)
    assert calls == [8, 8]


def test_dds_is_exactly_zero_for_equal_pairs_and_antisymmetric():
    eps_hat = eps_denoiser(_linear, "eps", NULL)
    z, zhat, eps = _normal(0), _normal(1), _normal(2)
    w = jnp.array([7.5, 2.0])
    same = dds_gradient(eps_hat, z, z, eps, T, LEVEL, _prompt(0.3), _prompt(0.3), w)
    np.testing.assert_array_equal(same, 0.0)
    there = dds_gradient(eps_hat, z, zhat, eps, T, LEVEL, _prompt(0.3), _prompt(0.1), w)
    back = dds_gradient(eps_hat, zhat, z, eps, T, LEVEL, _prompt(0.1), _prompt(0.3), w)
    np.testing.assert_array_equal(there, -back)
    assert np.abs(there).min() > 0


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_dds_is_the_difference_of_two_sds_whatever_the_network_predicts(kind):
    def denoise(z, t, context):
        eps = jnp.tanh(z) + context.mean((1, 2)).reshape(-1, 1, 1, 1)
        return converter("eps", kind)(eps, z, SD.at(t))

    eps_hat = eps_denoiser(denoise, kind, NULL)
    z, zhat, eps = _normal(0), _normal(1), _normal(2)
    g = dds_gradient(eps_hat, z, zhat, eps, T, LEVEL, _prompt(0.3), _prompt(0.1), 4.0)
    target = sds_gradient(eps_hat, z, eps, T, LEVEL, _prompt(0.3), 4.0)
    source = sds_gradient(eps_hat, zhat, eps, T, LEVEL, _prompt(0.1), 4.0)
    np.testing.assert_allclose(g, target - source, atol=5e-5)


def test_sds_of_gaussian_data_at_its_mean_is_shrunken_noise():
    mean, std, eps = 0.7, 0.5, _normal(3)
    eps_hat = eps_denoiser(lambda z, t, c: gaussian_eps(z, SD.at(t), mean, std), "eps", NULL)
    g = sds_gradient(eps_hat, jnp.full(SHAPE, mean), eps, T, LEVEL, _prompt(0.0), 1.0)
    kappa = LEVEL.alpha**2 * std**2 / (LEVEL.alpha**2 * std**2 + LEVEL.sigma**2)
    np.testing.assert_allclose(g, -kappa * eps, atol=1e-5)


def test_sds_drifts_where_dds_stays():
    eps_hat = eps_denoiser(lambda z, t, c: gaussian_eps(z, SD.at(t), 0.0, 0.5), "eps", NULL)
    source = sds = dds = jnp.full(SHAPE, 1.3)
    for seed in range(20):
        eps = _normal(seed)
        sds = sds - 0.1 * sds_gradient(eps_hat, sds, eps, T, LEVEL, _prompt(0.0), None)
        dds = dds - 0.1 * dds_gradient(eps_hat, dds, source, eps, T, LEVEL, _prompt(0.0), _prompt(0.0), None)
    np.testing.assert_array_equal(dds, source)
    assert np.abs(sds - source).mean() > 0.1


def test_leaving_guidance_out_is_guidance_of_one_at_half_the_cost():
    calls = []
    eps_hat = eps_denoiser(lambda z, t, c: _linear(z, t, c, calls), "eps", NULL)
    args = (eps_hat, _normal(0), _normal(1), T, LEVEL, _prompt(0.3))
    np.testing.assert_allclose(sds_gradient(*args, None), sds_gradient(*args, 1.0), atol=1e-6)
    assert calls == [2, 4]


def test_the_gradient_skips_the_network():
    eps_hat = eps_denoiser(_linear, "eps", NULL)
    z, eps = _normal(0), _normal(1)

    def loss(z):
        return surrogate(z, sds_gradient(eps_hat, z, eps, T, LEVEL, _prompt(0.3), 2.0)).sum()

    g = sds_gradient(eps_hat, z, eps, T, LEVEL, _prompt(0.3), 2.0)
    np.testing.assert_allclose(jax.grad(loss)(z), g / 16, rtol=1e-6)


def test_symmetric_and_masked_surrogates():
    z, zhat, g = _normal(0), _normal(1), _normal(2)
    dz, dzhat = jax.grad(lambda z, zhat: surrogate(z - zhat, g).sum(), argnums=(0, 1))(z, zhat)
    np.testing.assert_array_equal(dz, -dzhat)
    mask = jnp.zeros((2, 4, 4, 1)).at[:, :2].set(1.0)
    masked = jax.grad(lambda z: surrogate(z, g, mask).sum())(z)
    np.testing.assert_array_equal(masked[:, 2:], 0.0)
    np.testing.assert_allclose(masked[:, :2], dz[:, :2], rtol=1e-6)


def test_the_notebooks_optimiser_is_an_effective_step():
    z, g = jnp.zeros((1, 64, 64, 4)), jax.random.normal(jax.random.key(0), (1, 64, 64, 4))
    moved = z - 0.1 * jax.grad(lambda z: 2000 * surrogate(z, g).sum())(z)
    np.testing.assert_allclose(moved, -0.048828125 * g, rtol=1e-5)


def test_top_k_by_hand_with_ties_and_per_sample():
    g = jnp.array([[3.0, -1, 2, -5, 0.5, 4], [1, -1, 1, 1, 0.5, 2]])
    np.testing.assert_array_equal(keep_top_k(g, 3), [[3, 0, 0, -5, 0, 4], [1, -1, 1, 1, 0, 2]])
    np.testing.assert_array_equal(keep_top_k(g, 100), g)
    np.testing.assert_array_equal(keep_top_k(g.reshape(2, 1, 2, 3), 3).reshape(2, 6), keep_top_k(g, 3))
