"""Bars, means over images, and rules, by hand."""

import math

import numpy as np
import pytest

from sdd_jax.objectives.selection import Curve, hybrid_score, min_max, parse_rule, select, timestep_weights

LN = math.log


def readings(rows):
    """(deficit, N) of one image, [m,1], from its gradient at each timestep."""
    deficit, magnitude = [], []
    for row in rows:
        p = np.exp(row) / np.exp(row).sum()
        deficit.append(LN(len(row)) + (p * np.log(p)).sum())
        magnitude.append(np.abs(row).sum())
    return np.asarray(deficit)[:, None], np.asarray(magnitude)[:, None]


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        ([[0, 0, 0, 0], [LN(2), 0, 0, 0], [LN(9), 0, 0, 0]], [-1, -0.586019, 1]),
        ([[0] * 4, [2] * 4, [LN(2), 0, 0, 0]], [-1, 0, 0.086643]),
        ([[1, 1], [1, 1]], [0, 0]),
    ],
)
def test_scores_by_hand(rows, scores):
    np.testing.assert_allclose(hybrid_score(*readings(rows))[:, 0], scores, atol=1e-6)


def test_bars_are_of_each_image_and_zero_where_nothing_varies():
    values = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, 1.0], [2.0, 5.0, 0.0]])
    np.testing.assert_array_equal(min_max(values), [[0, 0, 1], [1, 0, 0.5], [0.5, 0, 0]])


def test_a_stream_of_batches_is_one_mean():
    rng = np.random.default_rng(0)
    deficit, magnitude = rng.uniform(0, 1e-6, (5, 7)), rng.uniform(0, 9, (5, 7))
    scores = hybrid_score(deficit, magnitude)
    for parts in ([slice(0, 7)], [slice(0, 3), slice(3, 4), slice(4, 7)]):
        curve = Curve(np.arange(5), 2**20)
        for part in parts:
            curve.add(deficit[:, part], magnitude[:, part])
        assert curve.count == 7
        np.testing.assert_allclose(curve.hqs, scores.mean(1), rtol=1e-12)
        np.testing.assert_allclose(curve.stderr, scores.std(1, ddof=1) / math.sqrt(7), rtol=1e-9)
        np.testing.assert_allclose(curve.N, magnitude.mean(1), rtol=1e-12)
        np.testing.assert_allclose(LN(2**20) - curve.H, deficit.mean(1), rtol=1e-6)
        np.testing.assert_allclose(curve.halves, [scores[:, ::2].mean(1), scores[:, 1::2].mean(1)], rtol=1e-12)


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="a gradient is not finite: lower the guidance"):
        Curve(np.arange(2), 4).add(np.array([[1.0], [np.nan]]), np.ones((2, 1)))


T, SCORES = np.array([100, 200, 300, 400]), np.array([0.2, 0.9, -0.3, 0.5])


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("threshold:0.2", [200, 400]),
        ("threshold:-1", [100, 200, 300, 400]),
        ("threshold:0.8", [200]),
        ("top:3", [100, 200, 400]),
        ("argmax", [200]),
        ("all", [100, 200, 300, 400]),
    ],
)
def test_rules(rule, chosen):
    assert select(rule, T, SCORES).tolist() == chosen


def test_random_timesteps_are_of_the_grid_and_of_a_seed():
    drawn = {tuple(select("random:2", T, SCORES, seed).tolist()) for seed in range(20)}
    assert len(drawn) > 3 and all(len(set(ts)) == 2 and set(ts) <= set(T.tolist()) for ts in drawn)
    assert select("random:2", T, SCORES, 3).tolist() == select("random:2", T, SCORES, 3).tolist()


@pytest.mark.parametrize("rule", ["", "best", "threshold", "threshold:x", "threshold:nan", "argmax:1", "top", "all:2"])
def test_no_such_rule(rule):
    with pytest.raises(ValueError, match="selects no timesteps; use threshold:XI, top:K, argmax, random:K or all"):
        parse_rule(rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("threshold:0.9", "no timestep has an HQS above 0.9; the highest is 0.900"),
        ("top:5", "cannot select 5 of 4"),
        ("random:0", "cannot select 0 of 4"),
        ("top:1.5", "cannot select 1.5 of 4"),
    ],
)
def test_a_rule_that_selects_nothing(rule, message):
    with pytest.raises(ValueError, match=message):
        select(rule, T, SCORES)


def test_weights():
    np.testing.assert_allclose(timestep_weights("uniform", SCORES), 0.25)
    np.testing.assert_allclose(timestep_weights("hqs", np.array([1.0, 0.0, -1.0])), [2 / 3, 1 / 3, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="use uniform, hqs"):
        timestep_weights("best", SCORES)
    with pytest.raises(ValueError, match="the lowest score, -1"):
        timestep_weights("hqs", np.array([-1.0, -1.0]))
