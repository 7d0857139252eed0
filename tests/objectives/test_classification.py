"""Attribute classification and nuisance regression against numpy; softened images stay images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.towers import TowerConfig, apply_tower
from sdd_jax.objectives.classification import Classification
from sdd_jax.objectives.regression import Regression
from sdd_jax.objectives.softening import soften

pytestmark = pytest.mark.usefixtures("compile_quickly")
TOWER = TowerConfig(widths=(4,), strides=(4,), outputs=5, groups=2, image_size=8)


@pytest.fixture
def image():
    return jax.random.uniform(jax.random.key(1), (3, 8, 8, 3), minval=-1)


def test_the_loss_is_the_sum_of_cross_entropies(image):
    method = Classification(tower=TOWER, sizes=(2, 3), noise=0.0)
    params = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
    labels = np.asarray([[0, 2], [1, 0], [1, 1]])
    rng = jax.random.key(5)
    batch = {"image": image, "labels": jnp.asarray(labels)}
    loss, metrics = method.loss(params, {}, batch, rng, jnp.asarray(0))
    logits = np.asarray(apply_tower(TOWER, params, soften(rng, image, 0.0))[0], np.float64)
    parts = (logits[:, :2], logits[:, 2:])
    cross = [np.log(np.exp(p).sum(1)) - p[np.arange(3), labels[:, i]] for i, p in enumerate(parts)]
    np.testing.assert_allclose(loss, sum(c.mean() for c in cross), rtol=1e-4)
    hits = [(p.argmax(1) == labels[:, i]).mean() for i, p in enumerate(parts)]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits))


def test_softening_blends_with_a_blur_and_keeps_the_range(image):
    soft = soften(jax.random.key(0), image, 0.0)
    assert soft.min() >= image.min() and soft.max() <= image.max()
    assert np.all(np.var(soft, (1, 2, 3)) < np.var(image, (1, 2, 3)))
    flat = jnp.full((2, 8, 8, 3), 0.3)
    np.testing.assert_allclose(soften(jax.random.key(0), flat, 0.0), flat, rtol=1e-6)
    # one share per image: the change lies along one direction, the same for all pixels of the image
    blurred = np.pad(np.asarray(image), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    kernel = np.asarray([0.25, 0.5, 0.25])
    blurred = sum(kernel[i] * kernel[j] * blurred[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3))
    shares = np.asarray(soft - image) / (blurred - np.asarray(image))
    for share in shares:
        np.testing.assert_allclose(share, np.median(share), atol=1e-2)
    assert np.ptp([np.median(share) for share in shares]) > 0.02


def test_the_noise_has_a_random_deviation_and_no_mean():
    flat = jnp.zeros((64, 16, 16, 3))
    noise = np.asarray(soften(jax.random.key(0), flat, 0.1))
    deviations = noise.std((1, 2, 3))
    assert abs(noise.mean()) < 1e-3
    assert 0 < deviations.min() < 0.02 and 0.08 < deviations.max() < 0.103


def test_regression_is_the_mean_squared_error_on_the_softened_image(image):
    method = Regression(tower=TOWER)
    params = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
    targets = jax.random.normal(jax.random.key(2), (3, 5))
    loss, _ = method.loss(params, {}, {"image": image, "targets": targets}, jax.random.key(3), jnp.asarray(0))
    predicted = apply_tower(TOWER, params, soften(jax.random.key(3), image, 0.1))[0]
    np.testing.assert_allclose(loss, np.mean((np.asarray(predicted) - np.asarray(targets)) ** 2), rtol=1e-5)
