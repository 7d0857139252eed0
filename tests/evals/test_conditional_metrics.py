"""Metrics of conditions: best for the truth, and failed by a copy of the condition."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from sdd_jax.data import portraits
from sdd_jax.data.conditions import masked_image
from sdd_jax.data.records import nuisance_targets, to_float
from sdd_jax.evals.conditional import (
    edge_agreement,
    edit_scores,
    inpainting_metrics,
    rank_correlation,
    read_depth_maps,
    shared_metrics,
)
from sdd_jax.evals.instruments import Readings

THRESHOLDS = (40.0, 90.0)
INDICES = portraits.split_indices("heldout")[:4]


@pytest.fixture(scope="module")
def images():
    return np.stack([to_float(portraits.image(i)) for i in INDICES])


def test_edges_of_the_truth_agree_and_those_of_others_do_not(images):
    edges = np.stack([portraits.edges(portraits.image(i)) > 0 for i in INDICES])
    assert edge_agreement(images, edges, THRESHOLDS) == 1
    others = edge_agreement(images[::-1], edges, THRESHOLDS)
    assert others < 0.7
    assert edge_agreement(np.zeros_like(images), edges, THRESHOLDS) == 0
    one = np.zeros((1, 8, 8), bool)
    one[0, 4] = True
    shifted = np.zeros((1, 8, 8, 3), np.float32)
    shifted[:, 4:] = 1.0
    assert edge_agreement(shifted, one, THRESHOLDS) > 0.8, "a pixel of shift is tolerated"


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 3, 6, 6)).astype(np.float32)
    want = np.mean([spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)])
    assert rank_correlation(a, b) == pytest.approx(want, abs=1e-6)
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, np.zeros_like(a)) == 0


def test_depth_of_exact_readings_is_the_depth():
    chosen = [portraits.portrait(i) for i in INDICES]
    labels = np.stack([portraits.labels(p.attributes) for p in chosen])
    nuisance = np.stack([nuisance_targets(p.index) for p in chosen])
    truth = np.stack([portraits.render(p).depth for p in chosen])
    found = read_depth_maps(Readings(labels, np.zeros((4, 1)), nuisance))
    np.testing.assert_allclose(found, truth, atol=1e-3)
    wild = read_depth_maps(Readings(labels, np.zeros((4, 1)), 50 * nuisance))
    assert np.isfinite(wild).all() and rank_correlation(found, truth) > rank_correlation(wild, truth)
    assert rank_correlation(truth, truth[::-1]) < 0.97


def test_inpainting_is_measured_where_it_was_hidden_and_exact_elsewhere(images):
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    made = np.stack([masked_image(portraits.image(i), mask) for i in INDICES])
    inside = np.where(mask[..., None], images + 0.1, images)
    found = inpainting_metrics(inside, images, made)
    assert found["known_error"] == 0 and found["psnr_hidden"] == pytest.approx(10 * np.log10(4 / 0.01), abs=0.3)
    moved = inside.copy()
    moved[2, 0, 0] += 8 / 127.5
    assert inpainting_metrics(moved, images, made)["known_error"] == pytest.approx(8, abs=1)
    assert inpainting_metrics(made[..., :3], images, made)["psnr_hidden"] < 20, "leaving the hole open"


def test_copying_the_source_of_an_edit_scores_nothing():
    labels = np.tile(np.arange(7), (5, 1))
    edited = np.array([0, 2, 4, 6, 1])
    copied = labels.copy()
    copied[np.arange(5), edited] += 1
    assert edit_scores(labels, labels, edited) == {"success": 1, "preserved": 1}
    assert edit_scores(copied, labels, edited) == {"success": 0, "preserved": 1}
    broken = labels.copy()
    broken[:, 3] += 1
    assert edit_scores(broken, labels, edited) == {"success": 1, "preserved": pytest.approx(25 / 30)}


class Probe:
    """Instruments of arithmetic: labels are the sign of the mean, the embedding the mean colour."""

    def read(self, images):
        mean = images.mean((1, 2))
        return Readings((mean > 0).astype(np.int32), mean / np.linalg.norm(mean, axis=1, keepdims=True), mean)


def test_shared_metrics_are_perfect_for_the_truth(images):
    labels = Probe().read(images).labels
    found, read = shared_metrics(Probe(), images, images, labels)
    assert found["psnr"] == np.inf and found["attributes"] == 1 and found["ssim"] == pytest.approx(1, abs=1e-5)
    assert found["clip_distance"] == pytest.approx(0, abs=1e-6) and found["frechet"] == pytest.approx(0, abs=1e-5)
    np.testing.assert_array_equal(read.labels, labels)
    worse, _ = shared_metrics(Probe(), -images, images, labels)
    assert worse["attributes"] == 0 and worse["psnr"] < 20
