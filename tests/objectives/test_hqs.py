"""The entropy deficit by hand and against float64, and what can be asked for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.objectives.hqs import HQSOptions, entropy_deficit, softmax_input

deficit = jax.jit(entropy_deficit)


def entropy64(x):
    """(entropy, ln n - entropy) of softmax(x) in extended precision."""
    x = np.asarray(x, np.longdouble).ravel()
    p = np.exp(x - x.max())
    q = p / p.sum() * x.size
    lost = np.mean(q * np.log(q) - q + 1)
    return float(math.log(x.size) - lost), float(lost)


@pytest.mark.parametrize(
    ("x", "entropy"),
    [
        ([0, math.log(3)], 0.562335),
        ([math.log(2), 0, 0, 0], 1.332179),
        ([math.log(9), 0, 0, 0], 0.836988),
        ([5.0] * 7, math.log(7)),
    ],
)
def test_entropies_by_hand(x, entropy):
    found = math.log(len(x)) - deficit(jnp.asarray([x], jnp.float32))[0]
    assert float(found) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize(("size", "entropy"), [(64**2, 8.317766), (4 * 64**2, 9.704061), (512**2, 12.476649)])
def test_a_uniform_gradient_lacks_nothing(size, entropy):
    assert math.log(size) == pytest.approx(entropy, abs=1e-6)
    assert float(deficit(jnp.full((1, size), 3e-3))[0]) == 0.0


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_the_deficit_is_float64s_on_a_million_elements(scale):
    drawn = (np.random.default_rng(0).normal(size=(2, 2**20)) * scale).astype(np.float32)
    x = np.stack([drawn[0], np.abs(drawn[1])])
    found = np.asarray(deficit(x), np.float64)
    want = [entropy64(row)[1] for row in x]
    np.testing.assert_allclose(found, want, rtol=2e-6)
    if scale == 1e-3:
        assert want == pytest.approx([5e-7, 1.8e-7], rel=0.02), "the reference's figures"
        p = jax.nn.softmax(x)
        naive = np.log(np.float32(2**20)) + np.asarray(jnp.sum(p * jnp.log(p), axis=1), np.float64)
        assert np.all(np.abs(naive / want - 1) > 0.05), "which float32 entropies cannot show"


def test_a_deficit_does_not_mind_shifts_or_large_gradients():
    x = np.random.default_rng(1).normal(size=(1, 400)).astype(np.float32)
    np.testing.assert_allclose(deficit(x + 8), deficit(x), rtol=1e-5)
    alone = np.zeros((1, 400), np.float32)
    alone[0, 3] = 2e4
    assert float(deficit(alone)[0]) == pytest.approx(math.log(400), rel=1e-6)
    np.testing.assert_allclose(deficit(30 * x), entropy64(30 * x)[1], rtol=1e-5)


def test_a_flat_gradient_standardizes_to_zero():
    flat = softmax_input(jnp.full((1, 2, 2, 3), 7.0), HQSOptions(standardize=True))
    np.testing.assert_array_equal(flat, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 5, "last": 2}, "timesteps 5..2"),
        ({"stride": 0}, "strides of 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"images": 1}, "images=1 must be at least 2"),
        ({"draws": 0}, "draws=0 must be at least 1"),
    ],
)
def test_impossible_options(changes, message):
    with pytest.raises(ValueError, match=message):
        HQSOptions(**changes)


def test_the_grid_is_the_releases_and_stays_on_the_schedule():
    assert HQSOptions().times().tolist() == list(range(100, 901, 50))
    with pytest.raises(ValueError, match="last=900 is beyond the model's 500 timesteps"):
        HQSOptions().times(500)
