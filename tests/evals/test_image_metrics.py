"""PSNR and SSIM against scikit-image, masks against cropping, retrieval against hand-made neighbours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.evals import image_metrics as metrics


@functools.cache
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:31] / 24
    a = np.stack([np.sin(9 * x * y), np.cos(7 * x), x * y - 0.5], axis=-1)[None].repeat(3, axis=0)
    noise = rng.standard_normal(a.shape) * np.array([0.01, 0.1, 0.5])[:, None, None, None]
    return a.astype(np.float32), np.clip(a + noise, -1, 1).astype(np.float32)


def test_psnr_equals_scikit_image():
    oracle = pytest.importorskip("skimage.metrics")
    a, b = pair()
    expected = [oracle.peak_signal_noise_ratio(x, y, data_range=2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr(a, b), expected, rtol=1e-5)


def test_ssim_equals_scikit_image():
    oracle = pytest.importorskip("skimage.metrics")
    a, b = pair()
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2, channel_axis=-1)
    expected = [
        oracle.structural_similarity(x, y, **options)
        for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True)
    ]
    np.testing.assert_allclose(jax.jit(metrics.ssim)(a, b), expected, atol=2e-5)


def test_identical_images_and_known_errors():
    a, _ = pair()
    assert np.isposinf(metrics.psnr(a, a)).all()
    np.testing.assert_allclose(metrics.ssim(a, a), 1.0, atol=1e-5)
    zeros = jnp.zeros((1, 16, 16, 3))
    np.testing.assert_allclose(metrics.psnr(zeros, zeros + 0.2), 20.0, rtol=1e-5)
    np.testing.assert_allclose(metrics.psnr(zeros - 1, zeros + 1), 0.0, atol=1e-5)


def test_bfloat16_images_are_compared_in_float32():
    zeros = jnp.zeros((1, 16, 16, 3), jnp.bfloat16)
    assert metrics.psnr(zeros, zeros).dtype == metrics.ssim(zeros, zeros).dtype == jnp.float32


def test_masked_psnr_sees_only_the_mask():
    a, b = pair()
    mask = np.zeros((3, 24, 31, 1), np.float32)
    mask[:, 4:20, 8:28] = 1
    cropped = metrics.psnr(a[:, 4:20, 8:28], b[:, 4:20, 8:28])
    np.testing.assert_allclose(metrics.masked_psnr(a, b, mask), cropped, rtol=1e-5)
    np.testing.assert_allclose(metrics.masked_psnr(a, b, np.ones_like(mask)), metrics.psnr(a, b), rtol=1e-5)
    assert np.isnan(metrics.masked_psnr(a, b, np.zeros_like(mask))).all()


def test_retrieval_finds_the_nearest_and_counts_ties_as_misses():
    truths = jnp.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]]])
    outputs = jnp.array([[0.1, 0.0], [0.9, 0.0], [2.0, 2.0]])
    np.testing.assert_array_equal(metrics.nearest_match(outputs, truths), [0, 1, 0])
    assert metrics.retrieval_accuracy(outputs, truths) == pytest.approx(1 / 3)
    assert metrics.retrieval_accuracy(outputs, truths, jnp.array([0, 1, 1])) == pytest.approx(2 / 3)
    assert metrics.retrieval_accuracy(outputs, truths, jnp.array([1, 0, 0])) == 0


def test_wrong_shapes_are_refused():
    a, b = pair()
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(a, b[:1])
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(a[:, :8], b[:, :8])
    with pytest.raises(ValueError, match="mask of shape"):
        metrics.masked_psnr(a, b, np.ones((3, 24, 31, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[n, m, d\]"):
        metrics.retrieval_accuracy(jnp.zeros((2, 3)), jnp.zeros((2, 4, 5)))
