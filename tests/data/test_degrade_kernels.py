"""Blur kernels against their formulas, filtering against direct convolution, resizing against torch."""

import math

import numpy as np
import pytest

from sdd_jax.data import degrade_kernels as dk


def unit_noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("kind", dk.KERNEL_KINDS)
def test_blur_kernels_follow_their_formula_pixel_by_pixel(kind):
    size, sigma_x, sigma_y, rotation, beta = 9, 2.5, 0.8, 0.6, 1.7
    kernel = dk.blur_kernel(kind, size, sigma_x, sigma_y, rotation, beta)
    if kind in ("iso", "generalized_iso", "plateau_iso"):
        sigma_y, rotation = sigma_x, 0.0
    turn = np.array([[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    expected = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            offset = np.array([column - 4, row - 4])
            q = offset @ inverse @ offset
            if kind.startswith("plateau"):
                expected[row, column] = 1 / (1 + q**beta)
            elif kind.startswith("generalized"):
                expected[row, column] = math.exp(-(q**beta) / 2)
            else:
                expected[row, column] = math.exp(-q / 2)
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-9)


def test_isotropic_kernels_are_round_and_anisotropic_ones_lie_along_their_rotation():
    iso = dk.blur_kernel("iso", 13, 2.0, 0.5, rotation=0.7)
    np.testing.assert_allclose(iso, iso.T, atol=1e-15)
    np.testing.assert_allclose(iso, np.rot90(iso), atol=1e-15)
    along_columns = dk.blur_kernel("aniso", 13, 3.0, 0.6, rotation=0.0)
    assert along_columns[6, 9] > 10 * along_columns[9, 6]
    np.testing.assert_allclose(dk.blur_kernel("aniso", 13, 3.0, 0.6, rotation=math.pi / 2), along_columns.T, atol=1e-12)
    downwards = dk.blur_kernel("aniso", 13, 3.0, 0.6, rotation=math.pi / 4)
    assert downwards[9, 9] > 10 * downwards[3, 9]


def test_sinc_kernel_passes_low_and_stops_high_frequencies():
    kernel = dk.sinc_kernel(21, math.pi / 2)
    assert kernel.sum() == pytest.approx(1.0)
    assert kernel.min() < -1e-3, "an ideal low-pass rings"
    response = np.abs(np.fft.fft2(kernel, (64, 64)))
    assert response[0, :8].min() > 0.9
    assert response[0, 24:33].max() < 0.1


def test_delta_like_sigma_stays_finite():
    for kind in dk.KERNEL_KINDS:
        kernel = dk.blur_kernel(kind, 5, 0.05, 0.05, beta=4.0)
        assert np.isfinite(kernel).all() and kernel[2, 2] == pytest.approx(1.0, abs=1e-3)


def test_even_kernels_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="odd"):
        dk.blur_kernel("iso", 8, 1.0, 1.0)
    with pytest.raises(ValueError, match="unknown blur kind"):
        dk.blur_kernel("box", 7, 1.0, 1.0)


@pytest.mark.parametrize("size", [(64, 64), (17, 23), (9, 5)])
def test_filtering_equals_direct_convolution_with_reflection(size):
    ndimage = pytest.importorskip("scipy.ndimage")
    image = unit_noise((*size, 3))
    kernel = unit_noise((7, 7), 1).astype(np.float64)
    expected = np.stack([ndimage.convolve(image[..., c], kernel, mode="mirror") for c in range(3)], axis=-1)
    np.testing.assert_allclose(dk.filter_image(image, kernel), expected, rtol=1e-4)


@pytest.mark.parametrize("interpolation", dk.INTERPOLATIONS)
@pytest.mark.parametrize("size", [(9, 13), (16, 16), (64, 31), (77, 96)])
def test_resize_equals_torch_interpolate(interpolation, size):
    torch = pytest.importorskip("torch")
    image = unit_noise((47, 64, 3))
    options = {} if interpolation == "area" else {"align_corners": False}
    tensor = torch.from_numpy(image.transpose(2, 0, 1)[None])
    expected = torch.nn.functional.interpolate(tensor, size=size, mode=interpolation, **options)
    np.testing.assert_allclose(dk.resize(image, size, interpolation), expected[0].permute(1, 2, 0).numpy(), atol=2e-5)


def test_sharpening_steepens_edges_above_the_threshold_and_leaves_the_rest():
    step = np.full((64, 64, 3), 0.3, np.float32)
    step[:, 32:] = 0.6
    sharp = dk.sharpen(step, 0.5, 13, 10 / 255)
    assert sharp[32, 32, 0] - sharp[32, 31, 0] > 0.3 + 0.05
    np.testing.assert_allclose(sharp[:, :8], step[:, :8], atol=1e-5)
    faint = 0.5 + 0.02 * (step - 0.3)
    np.testing.assert_allclose(dk.sharpen(faint, 0.5, 13, 10 / 255), faint, atol=1e-5)
