"""The degradation against libjpeg's tables, the statistics of its noise and the odds of its table."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from sdd_jax.data import degrade as dg
from sdd_jax.data.degrade_spec import (
    PORTRAITS,
    REAL_ESRGAN,
    STABLE_SR,
    DegradeStage,
    jpeg_factor,
    jpeg_quality_of,
    preset,
)


def picture(size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    channels = [np.sin(20 * x * y), np.cos(9 * x + 15 * y), np.where((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, 0.7, -0.8)]
    return (0.9 * np.stack(channels, axis=-1)).astype(np.float32)


def unit_noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


OFF = dataclasses.replace(
    REAL_ESRGAN.first,
    blur_probability=0.0,
    resize_probabilities=(0.0, 0.0, 1.0),
    gaussian_probability=1.0,
    gaussian_sigma=(0.0, 0.0),
    jpeg_quality=None,
)
IDENTITY = dataclasses.replace(REAL_ESRGAN, first=OFF, second=OFF, final_sinc_probability=0.0, sharpen_weight=0.0)


# ---- draws


def frequencies(draw, count: int, outcomes: int) -> np.ndarray:
    return np.bincount([draw() for _ in range(count)], minlength=outcomes) / count


@pytest.mark.parametrize("stage", [REAL_ESRGAN.first, REAL_ESRGAN.second])
def test_choices_come_with_their_probabilities(stage):
    rng = np.random.default_rng(0)
    count = 20_000
    for probabilities in (stage.kind_probabilities, stage.resize_probabilities):
        p = np.array(probabilities)
        seen = frequencies(lambda p=probabilities: dg.sample_choice(rng, p), count, len(p))
        chi_square = count * ((seen - p) ** 2 / p).sum()
        assert chi_square < 25, f"chi-square {chi_square} with {len(p) - 1} degrees of freedom"
    sizes = frequencies(lambda: dg.sample_odd(rng, stage.kernel_size), count, 23)
    assert set(np.flatnonzero(sizes)) == {7, 9, 11, 13, 15, 17, 19, 21}
    np.testing.assert_allclose(sizes[7::2], 1 / 8, atol=0.01)


def test_scales_go_up_down_or_stay_within_their_range():
    rng = np.random.default_rng(0)
    scales = np.array([dg.sample_scale(rng, REAL_ESRGAN.first) for _ in range(20_000)])
    shares = [(scales > 1).mean(), (scales < 1).mean(), (scales == 1).mean()]
    np.testing.assert_allclose(shares, [0.2, 0.7, 0.1], atol=0.01)
    assert 0.15 <= scales.min() < 0.16 and 1.49 < scales.max() <= 1.5
    assert scales[scales < 1].mean() == pytest.approx(0.575, abs=0.01)


def test_half_of_the_betas_lie_below_one_each_half_uniform():
    rng = np.random.default_rng(0)
    betas = np.array([dg.sample_beta(rng, (0.5, 4.0)) for _ in range(20_000)])
    below = betas < 1
    assert below.mean() == pytest.approx(0.5, abs=0.02)
    assert betas[below].mean() == pytest.approx(0.75, abs=0.01) and betas[~below].mean() == pytest.approx(2.5, abs=0.05)
    assert betas.min() >= 0.5 and betas.max() <= 4.0


def test_kernels_sum_to_one_and_are_point_symmetric():
    stage = REAL_ESRGAN.first
    rng = np.random.default_rng(0)
    for _ in range(200):
        kernel = dg.sample_kernel(rng, stage)
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] in range(7, 22, 2)
        assert kernel.sum() == pytest.approx(1.0, abs=1e-9)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)


def test_kernels_are_sincs_as_often_as_asked():
    rng = np.random.default_rng(0)
    negative = [dg.sample_kernel(rng, REAL_ESRGAN.first).min() < -1e-6 for _ in range(2000)]
    assert np.mean(negative) == pytest.approx(0.1, abs=0.03)
    always = dataclasses.replace(REAL_ESRGAN.first, sinc_probability=1.0)
    assert all(dg.sample_kernel(rng, always).min() < 0 for _ in range(50))


# ---- noise


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_sigma_and_gray_noise_one_field(gray):
    noise = dg.gaussian_noise(np.random.default_rng(0), np.zeros((200, 200, 3), np.float32), 0.1, gray)
    assert noise.std() == pytest.approx(0.1, rel=0.02) and abs(noise.mean()) < 0.002
    correlation = np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]
    assert correlation == pytest.approx(1.0 if gray else 0.0, abs=0.02)


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_has_variance_intensity_over_vals(gray):
    image = np.repeat(np.array([0.2, 0.4, 0.6, 0.8, 1.0], np.float32), 20_000).reshape(5, -1, 1).repeat(3, axis=2)
    noise = dg.poisson_noise(np.random.default_rng(0), image, gray)
    variance = noise.var(axis=(1, 2))
    np.testing.assert_allclose(variance, image[:, 0, 0] / 8, rtol=0.05)  # five levels: vals = 8
    np.testing.assert_allclose(noise.mean(axis=(1, 2)), 0.0, atol=0.01)
    assert np.array_equal(noise[..., 0], noise[..., 1]) == gray


# ---- JPEG


@pytest.mark.parametrize("quality", [30, 49, 50, 75, 95])
def test_jpeg_at_whole_qualities_is_libjpeg_at_that_quality(quality):
    image = (picture(64) + 1) / 2
    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer), np.float32) / 255
    np.testing.assert_array_equal(dg.jpeg(image, quality), expected)


def test_jpeg_error_falls_as_quality_grows():
    image = (picture(64) + 1) / 2
    errors = [np.square(dg.jpeg(image, quality) - image).mean() for quality in (10, 30.5, 60.5, 95.5)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[-1]


def test_jpeg_clamps_and_takes_odd_sizes():
    out = dg.jpeg(unit_noise((5, 11, 3)) * 3 - 1, 60.0)
    assert out.shape == (5, 11, 3) and out.min() >= 0 and out.max() <= 1


def test_jpeg_factor_and_its_inverse():
    assert jpeg_factor(25) == 2 and jpeg_factor(50) == 1 and jpeg_factor(75) == 0.5
    for quality in (12.5, 30, 50, 62.5, 95):
        assert jpeg_quality_of(jpeg_factor(quality)) == pytest.approx(quality)


# ---- the whole


@pytest.mark.parametrize(
    ("size", "spec"), [(64, PORTRAITS), (64, STABLE_SR.scaled(64)), (64, REAL_ESRGAN), (512, REAL_ESRGAN)]
)
def test_pairs_have_their_shape_range_and_eight_bits(size, spec):
    for seed in range(3 if size == 512 else 30):
        truth, low = dg.degrade(picture(size), np.random.default_rng(seed), spec)
        assert truth.shape == (size, size, 3) and low.shape == (size // 4, size // 4, 3)
        for image in (truth, low):
            assert image.dtype == np.float32 and image.min() >= -1 and image.max() <= 1
        levels = (low + 1) * 127.5
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
        upsampled = dg.condition(low, size)
        assert upsampled.shape == truth.shape and upsampled.dtype == np.float32 and np.abs(upsampled).max() <= 1


def test_rectangles_and_odd_intermediate_sizes():
    for seed in range(20):
        image = picture(64)[:36, :52]
        truth, low = dg.degrade(image, np.random.default_rng(seed), PORTRAITS)
        assert truth.shape == (36, 52, 3) and low.shape == (9, 13, 3)
        assert dg.condition(low, (36, 52)).shape == (36, 52, 3)


def test_the_generator_is_the_only_randomness():
    first = dg.degrade(picture(64), np.random.default_rng(3), PORTRAITS)
    again = dg.degrade(picture(64), np.random.default_rng(3), PORTRAITS)
    other = dg.degrade(picture(64), np.random.default_rng(4), PORTRAITS)
    np.testing.assert_array_equal(first[1], again[1])
    assert np.abs(first[1] - other[1]).max() > 0.05


def test_everything_off_is_the_identity_and_leaves_the_input_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    before = image.copy()
    truth, low = dg.degrade(image, np.random.default_rng(0), dataclasses.replace(IDENTITY, factor=1))
    np.testing.assert_array_equal(np.round((low + 1) * 127.5), before)
    np.testing.assert_allclose(truth, before / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(image, before)


def test_only_resizing_by_area_averages_blocks(monkeypatch):
    monkeypatch.setattr(dg, "INTERPOLATIONS", ("area",))
    image = picture(32)
    _, low = dg.degrade(image, np.random.default_rng(0), IDENTITY)
    np.testing.assert_allclose(low, image.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)), atol=1.01 / 255)


def test_uint8_and_float_images_agree():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    as_float = (image.astype(np.float32) / 127.5 - 1).astype(np.float32)
    a = dg.degrade(image, np.random.default_rng(1), PORTRAITS)
    b = dg.degrade(as_float, np.random.default_rng(1), PORTRAITS)
    np.testing.assert_allclose(a[0], b[0], atol=1e-5)


def test_the_order_of_sinc_and_jpeg_is_a_fair_coin(monkeypatch):
    """With only the last JPEG and the final sinc on, which one ran last is seen by recording the calls."""
    calls: list[str] = []
    jpeg, filter_image = dg.jpeg, dg.filter_image
    monkeypatch.setattr(dg, "jpeg", lambda *a: (calls.append("jpeg"), jpeg(*a))[1])
    monkeypatch.setattr(dg, "filter_image", lambda *a: (calls.append("sinc"), filter_image(*a))[1])
    second = dataclasses.replace(OFF, jpeg_quality=(30.0, 95.0))
    spec = dataclasses.replace(IDENTITY, second=second, final_sinc_probability=0.8)
    rng = np.random.default_rng(0)
    orders = []
    for _ in range(400):
        calls.clear()
        dg.degrade(picture(16), rng, spec)
        orders.append("-".join(calls))
    share = {order: orders.count(order) / 400 for order in ("sinc-jpeg", "jpeg-sinc", "jpeg")}
    assert share["jpeg"] == pytest.approx(0.2, abs=0.07)
    assert share["sinc-jpeg"] == pytest.approx(0.4, abs=0.08) and share["jpeg-sinc"] == pytest.approx(0.4, abs=0.08)


# ---- numbers and messages


def test_presets_hold_the_tables_numbers():
    first, second = REAL_ESRGAN.first, REAL_ESRGAN.second
    assert (first.blur_probability, second.blur_probability) == (1.0, 0.8)
    assert first.sigma == (0.2, 3.0) and second.sigma == (0.2, 1.5)
    assert first.resize_probabilities == (0.2, 0.7, 0.1) and second.resize_probabilities == (0.3, 0.4, 0.3)
    assert first.resize_scale == (0.15, 1.5) and second.resize_scale == (0.3, 1.2)
    assert first.gaussian_sigma == (1, 30) and second.gaussian_sigma == (1, 25)
    assert first.poisson_scale == (0.05, 3.0) and second.poisson_scale == (0.05, 2.5)
    assert first.jpeg_quality == second.jpeg_quality == (30, 95)
    assert STABLE_SR.first.gaussian_sigma == (1, 15) and STABLE_SR.second.jpeg_quality == (60, 100)
    assert STABLE_SR.second.blur_probability == 0.5 and STABLE_SR.first.sigma == (0.2, 1.5)


def test_scaling_shrinks_lengths_and_noise_and_stops_at_256():
    assert REAL_ESRGAN.scaled(512) is REAL_ESRGAN and REAL_ESRGAN.scaled(256) is REAL_ESRGAN
    small = REAL_ESRGAN.scaled(64)
    assert small.first.kernel_size == (3, 5) and small.first.sigma == (0.05, 0.75)
    assert small.first.gaussian_sigma == (0.25, 7.5) and small.sharpen_window == 13
    assert small.first.resize_scale == pytest.approx((0.6, 1.5)) and small.second.resize_scale == (1.0, 1.2)
    assert jpeg_factor(small.first.jpeg_quality[0]) == pytest.approx(jpeg_factor(30) / 4)


def test_presets_are_ordered_by_severity():
    """At 64 px the unscaled table loses more than `PORTRAITS`, and that more than the factor alone."""

    def error(spec) -> float:
        total = 0.0
        for seed in range(40):
            truth, low = dg.degrade(picture(64), np.random.default_rng(seed), spec)
            total += float(np.square(dg.condition(low, 64) - truth).mean())
        return total

    raw = dataclasses.replace(REAL_ESRGAN, sharpen_weight=0.0)
    assert error(raw) > 1.2 * error(PORTRAITS) > 1.2 * error(IDENTITY)


def test_wrong_input_is_refused_in_one_line():
    rng = np.random.default_rng(0)
    for image, message in (
        (np.zeros((64, 64), np.float32), "give uint8 or float32"),
        (np.zeros((64, 64, 3), np.float64), "give uint8 or float32"),
        (np.full((64, 64, 3), 255.0, np.float32), "outside"),
        (np.full((64, 64, 3), np.nan, np.float32), "outside"),
        (np.zeros((62, 64, 3), np.uint8), "multiples of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            dg.degrade(image, rng, PORTRAITS)
    with pytest.raises(ValueError, match="portraits, real_esrgan, stable_sr"):
        preset("bsrgan", 64)
    for change, message in (
        ({"kernel_size": (7, 20)}, "odd"),
        ({"resize_scale": (1.1, 1.5)}, "down <= 1"),
        ({"resize_probabilities": (0.5, 0.5, 0.5)}, "sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(REAL_ESRGAN.first, **change)


def test_presets_by_name():
    assert preset("portraits", 64) is PORTRAITS and preset("real_esrgan", 512) is REAL_ESRGAN
    assert preset("stable_sr", 64) == STABLE_SR.scaled(64)
    assert isinstance(PORTRAITS.first, DegradeStage)
