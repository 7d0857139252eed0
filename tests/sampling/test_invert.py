import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.parameterization import converter
from sdd_jax.diffusion.schedule import CLEAN, Schedule, add_noise
from sdd_jax.diffusion.timegrid import BOUNDARIES, sampling_times
from sdd_jax.diffusion.transport import gaussian_eps, gaussian_flow
from sdd_jax.sampling.generate import sample, sample_path
from sdd_jax.sampling.invert import encode, invert, invert_path, jump

SD = Schedule.scaled_linear()
SHAPE = (2, 3, 3, 1)
X0 = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), SHAPE)
EPS = jax.random.normal(jax.random.key(1), SHAPE)


def _gaussian(z, t):
    return gaussian_eps(z, SD.at(t), 0.7, 0.5)


@pytest.mark.parametrize("n", [1, 4, 10])
def test_inversion_and_generation_are_inverse_for_constant_eps(n):
    times = sampling_times(n)
    z = invert(lambda z, t: EPS, X0, times, SD, "eps")
    np.testing.assert_allclose(z, add_noise(X0, EPS, SD.at(999)), atol=1e-5)
    np.testing.assert_allclose(sample(lambda z, t: EPS, z, times, SD, "eps"), X0, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_rounds_converge_to_the_exact_inverse(kind):
    def denoise(z, t):
        return converter("eps", kind)(_gaussian(z, t), z, SD.at(t))

    times = sampling_times(10)
    returned = [
        float(jnp.abs(sample(denoise, invert(denoise, X0, times, SD, kind, rounds), times, SD, kind) - X0).max())
        for rounds in (1, 3, 30)
    ]
    assert returned[0] > 2 * returned[1] > 4 * returned[2] and returned[2] < 1e-3, returned


def test_inversion_converges_to_the_exact_flow():
    """Just short of first order, as generation is: sigma grows like sqrt(t) next to CLEAN."""
    exact = gaussian_flow(X0, CLEAN, SD.at(999), 0.7, 0.5)
    errors = [float(jnp.abs(invert(_gaussian, X0, sampling_times(n), SD, "eps") - exact).max()) for n in (25, 50, 100)]
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.all((ratios > 1.5) & (ratios < 2.0)), errors


def test_the_path_runs_from_data_to_noise_and_mirrors_generation():
    times = sampling_times(5)
    path = invert_path(_gaussian, X0, times, SD, "eps", rounds=30)
    assert path.shape == (6, *SHAPE)
    np.testing.assert_array_equal(path[0], X0)
    np.testing.assert_allclose(path[::-1], sample_path(_gaussian, path[-1], times, SD, "eps"), atol=1e-3)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds=0"):
        invert(_gaussian, X0, sampling_times(4), SD, "eps", rounds=0)


@pytest.mark.parametrize("name", list(BOUNDARIES))
def test_icd_with_a_constant_network_returns_the_image_it_noised(name):
    """Encoding starts from x0 + noise at 19; with eps = that noise every jump is exact and decoding returns x0."""
    boundaries = BOUNDARIES[name]
    z = encode(lambda z, t: EPS, X0, EPS, boundaries, SD, "eps")
    np.testing.assert_allclose(z, add_noise(X0, EPS, SD.at(999)), atol=1e-5)
    decoded = jump(lambda z, t: EPS, z, boundaries.reverse_jumps, SD, "eps")
    np.testing.assert_allclose(decoded, X0, rtol=1e-4, atol=2e-4)


def test_jumps_by_hand():
    z = jnp.full((1, 1, 1, 1), 0.7)
    out = jump(lambda z, t: jnp.full_like(z, -0.3), z, np.array([[999, 779], [779, 519], [519, 259]]), SD, "eps")
    np.testing.assert_allclose(out.item(), 11.707998, rtol=3e-6)


def test_the_network_sees_where_a_jump_starts():
    forward = BOUNDARIES["4_tau0.8"].forward_jumps
    z = jump(lambda z, t: t.astype(jnp.float32)[:, None, None, None] * jnp.ones_like(z), X0, forward[:1], SD, "x0")
    at_t, at_s = SD.at(19), SD.at(259)
    expected = at_s.alpha * 19.0 + at_s.sigma * (X0 - at_t.alpha * 19.0) / at_t.sigma
    np.testing.assert_allclose(z, expected, rtol=1e-4)
