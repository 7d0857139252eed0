"""Streaming statistics against numpy, the distance against scipy's matrix square root and closed forms."""

import os

import numpy as np
import pytest
import scipy.linalg

from sdd_jax.command import is_ours
from sdd_jax.evals import frechet
from sdd_jax.evals.frechet import FeatureMoments, FeatureStats


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


def test_streamed_statistics_equal_those_of_all_features_at_once():
    x = features(103, 8, 0) + 1e4  # a large mean breaks sum-of-squares formulas
    stats = frechet.feature_stats(np.split(x, [1, 40, 41, 90]))
    np.testing.assert_allclose(stats.mu, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.sigma, np.cov(x, rowvar=False), rtol=1e-8, atol=1e-8)


def test_merging_is_symmetric_and_empty_moments_are_neutral():
    a, b = FeatureMoments.of(features(30, 5, 1)), FeatureMoments.of(features(7, 5, 2))
    ab, ba = a.merge(b).stats(), b.merge(a).stats()
    np.testing.assert_allclose(ab.sigma, ba.sigma, rtol=1e-12)
    np.testing.assert_allclose(FeatureMoments.empty(5).merge(a).stats().sigma, a.stats().sigma)
    np.testing.assert_allclose(a.merge(FeatureMoments.empty(5)).stats().mu, a.stats().mu)
    assert FeatureMoments.empty(5).merge(FeatureMoments.empty(5)).count == 0


def test_float32_features_are_accumulated_in_float64():
    assert FeatureMoments.of(np.ones((4, 2), np.float32)).stats().sigma.dtype == np.float64


@pytest.mark.parametrize("d", [1, 16])
def test_distance_equals_the_matrix_square_root_formula(d):
    a, b = (FeatureMoments.of(features(200, d, seed)).stats() for seed in (3, 4))
    root = np.real(scipy.linalg.sqrtm(a.sigma @ b.sigma))
    expected = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma + b.sigma - 2 * root)
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_closed_forms_for_diagonal_covariances_and_shifts():
    a = FeatureStats(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = FeatureStats(np.array([3.0, 4.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet.frechet_distance(a, b) == pytest.approx(25 + 1 + 0 + 4)
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_singular_covariances_give_a_finite_exact_distance():
    x = features(5, 12, 5)  # rank 4 in 12 dimensions
    a = FeatureMoments.of(x).stats()
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-10 * np.trace(a.sigma))
    point = FeatureStats(a.mu, np.zeros((12, 12)))
    assert frechet.frechet_distance(a, point) == pytest.approx(np.trace(a.sigma))
    assert frechet.frechet_distance(a, FeatureMoments.of(2 * x).stats()) == pytest.approx(
        np.sum(a.mu**2) + np.trace(a.sigma)
    )


def test_small_samples_are_biased_upwards():
    rng = np.random.default_rng(6)
    truth = FeatureStats(np.zeros(16), np.eye(16))

    def estimate(n: int) -> float:
        return frechet.frechet_distance(FeatureMoments.of(rng.standard_normal((n, 16))).stats(), truth)

    assert estimate(30) > 3 * estimate(3000) > 0


def test_statistics_round_trip_and_read_pytorch_fid_files(tmp_path):
    stats = FeatureMoments.of(features(20, 4, 7)).stats()
    frechet.save_stats(tmp_path / "a.npz", stats)
    loaded = frechet.load_stats(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.mu, stats.mu)
    np.testing.assert_array_equal(loaded.sigma, stats.sigma)
    np.savez(tmp_path / "fid.npz", mu=stats.mu.astype(np.float32), sigma=stats.sigma.astype(np.float32))
    assert frechet.frechet_distance(frechet.load_stats(tmp_path / "fid.npz"), stats) == pytest.approx(0, abs=1e-5)


def test_user_errors_say_what_is_wrong(tmp_path):
    a = FeatureMoments.of(features(20, 4, 8))
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        frechet.frechet_distance(a.stats(), FeatureMoments.of(features(20, 5, 8)).stats())
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        a.update(features(3, 5, 8))
    with pytest.raises(ValueError, match="at least 2"):
        FeatureMoments.of(np.ones((1, 4))).stats()
    with pytest.raises(ValueError, match="nan or inf"):
        a.update(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match="no batches"):
        frechet.feature_stats([])
    with pytest.raises(ValueError, match="mu"):
        FeatureStats(np.zeros(3), np.zeros((2, 2)))
    with pytest.raises(FileNotFoundError, match="no feature statistics"):
        frechet.load_stats(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="`mu` and `sigma`"):
        frechet.load_stats(tmp_path / "other.npz")


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_damaged_statistics_are_one_line_and_pickles_in_them_are_not_run(tmp_path):
    np.savez(tmp_path / "whole.npz", mu=np.zeros(3), sigma=np.eye(3))
    whole = (tmp_path / "whole.npz").read_bytes()
    np.savez(tmp_path / "bad.npz", mu=np.array([Malicious(tmp_path / "ran")], object), sigma=np.eye(1))
    pickled = (tmp_path / "bad.npz").read_bytes()
    for content in (b"", b"no zip file", whole[:100], whole[: len(whole) // 2], pickled):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="bad.npz is no readable .npz of feature statistics") as error:
            frechet.load_stats(tmp_path / "bad.npz")
        assert is_ours(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_cosine_distance():
    a = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, 0.0]])
    b = np.array([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(frechet.cosine_distance(a, b), [0, 1 - 2**-0.5, 2, np.nan], atol=1e-12)
    with pytest.raises(ValueError, match="one shape"):
        frechet.cosine_distance(a, b[:2])
