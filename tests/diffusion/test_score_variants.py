"""Posterior distillation against the posterior it is made of; the contrastive loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.score import contrastive_loss, eps_denoiser, eps_of, posterior_weights, unit_patches

pytestmark = pytest.mark.usefixtures("compile_quickly")
SD = Schedule.scaled_linear()
ACP = np.asarray(SD.alphas_cumprod, np.float64)
T = np.asarray([20, 300, 700, 979])


def weights(stride):
    pull, push = posterior_weights(SD, jnp.asarray(T), stride)
    assert pull.shape == push.shape == (4, 1, 1, 1)
    return np.asarray(pull).ravel(), np.asarray(push).ravel()


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_the_weights_give_the_difference_of_the_two_posterior_noises(stride):
    """z_t and z_s of edit and source, each from the same noise; the noise between them, released computation."""
    rng = np.random.default_rng(0)
    z, zhat, e, ehat, eps, eps_s = rng.normal(size=(6, 4, 3))
    acp, acp_s, acp_before = (ACP[T - lag][:, None] for lag in (0, stride, 1))
    beta = 1 - acp / acp_before

    def posterior_noise(x, predicted):
        x_t = np.sqrt(acp) * x + np.sqrt(1 - acp) * eps
        x_s = np.sqrt(acp_s) * x + np.sqrt(1 - acp_s) * eps_s
        x0 = (x_t - np.sqrt(1 - acp) * predicted) / np.sqrt(acp)
        mean = np.sqrt(acp_s) * beta / (1 - acp) * x0 + np.sqrt(1 - beta) * (1 - acp_s) / (1 - acp) * x_t
        return (x_s - mean) / np.sqrt((1 - acp_s) / (1 - acp) * beta)

    pull, push = (w[:, None] for w in weights(stride))
    want = posterior_noise(z, e) - posterior_noise(zhat, ehat)
    np.testing.assert_allclose(pull * (z - zhat) + push * (e - ehat), want, rtol=2e-3, atol=2e-4)


def test_neighbouring_times_do_not_pull_and_every_second_one_does():
    alone, with_pull = weights(1)[0], weights(2)[0]
    np.testing.assert_array_equal(alone, 0)
    assert np.all(with_pull > 1e-3) and np.all(weights(2)[1] > 0)


def test_a_time_without_a_neighbour_is_not_a_number():
    pull, _ = posterior_weights(SD, jnp.asarray([1]), 2)
    assert np.isnan(pull).all()


def features(rows):
    return jnp.asarray(rows, jnp.float32)[None]


def test_the_contrastive_loss_of_orthogonal_patches_by_hand():
    """Four unit vectors that are each other's negatives: -log(e^(1/.07) / (e^(1/.07) + 3))."""
    same = features(np.eye(4))
    loss = contrastive_loss([same], [3 * same], [(2, 2)], jax.random.key(0), sizes=(1,))
    np.testing.assert_allclose(loss, np.log1p(3 * np.exp(-1 / 0.07)), atol=1e-6)
    moved = features(np.eye(4)[[1, 0, 3, 2]])
    swapped = contrastive_loss([same], [moved], [(2, 2)], jax.random.key(0), sizes=(1,))
    np.testing.assert_allclose(swapped, np.log(3 + np.exp(1 / 0.07)), rtol=1e-5)


def test_layers_and_sizes_add_up_per_sample_and_single_patches_are_left_out():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 16, 5))
    sides, key = [(4, 4)], jax.random.key(1)
    once = contrastive_loss([a], [b], sides, key, sizes=(1,))
    assert once.shape == (3,) and np.all(once > 0)
    twice = contrastive_loss([a, a], [b, b], sides * 2, key, sizes=(1,))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
    np.testing.assert_array_equal(contrastive_loss([a], [b], sides, key, sizes=(1, 4)), once)
    alone = contrastive_loss([a[1:2]], [b[1:2]], sides, key, sizes=(1,))
    np.testing.assert_allclose(alone, once[1:2], rtol=1e-5)


def test_at_most_so_many_patches_are_compared():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 16, 5))
    few = contrastive_loss([a], [b], [(4, 4)], jax.random.key(1), sizes=(1,), patches=1)
    np.testing.assert_allclose(few, 0, atol=1e-6)


def test_the_source_is_a_constant():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 4, 5))

    def loss(a, b):
        return contrastive_loss([a], [b], [(2, 2)], jax.random.key(1)).sum()

    source, edited = jax.grad(loss, argnums=(0, 1))(a, b)
    assert not np.any(source) and np.any(edited)


def test_patches_are_means_of_unit_length():
    x = jnp.arange(24.0).reshape(1, 12, 2)  # 3 x 4 pixels
    found = np.asarray(unit_patches(x, 3, 4, 2))
    grid = np.arange(24.0).reshape(3, 4, 2)[:2]
    want = np.stack([grid[:, :2].mean((0, 1)), grid[:, 2:].mean((0, 1))])
    np.testing.assert_allclose(found[0], want / np.linalg.norm(want, axis=-1, keepdims=True), rtol=1e-6)


def test_a_network_that_guides_itself_gives_the_same_eps():
    def denoise(z, t, context):
        return jnp.tanh(z) + context.mean((1, 2)).reshape(-1, 1, 1, 1)

    z, t, null = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.asarray([500, 800]), jnp.zeros((1, 1, 1))
    context, level = jnp.full((2, 1, 1), 0.3), SD.at(t)
    whole = eps_denoiser(denoise, "v", null)

    def network(z, t, context, w):
        return denoise(z, t, context * w)  # linear in the context: this is guidance against zero

    found = eps_of(network, "v")(z, t, level, context, 4.0)
    np.testing.assert_allclose(found, whole(z, t, level, context, 4.0), atol=1e-5)
