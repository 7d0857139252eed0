import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.guidance import guide, step_guidance
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import BOUNDARIES, sampling_times
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.sampling.generate import initial_noise, sample, sample_consistency, sample_path
from sdd_jax.sampling.invert import jump
from sdd_jax.sampling.solvers import DDIM, DPM_SOLVER_PP

SD = Schedule.scaled_linear()
SHAPE = (2, 3, 3, 1)
NOISE = jax.random.normal(jax.random.key(0), SHAPE)
TIMES = sampling_times(4)


def _gaussian(z, t):
    return gaussian_eps(z, SD.at(t), 0.7, 0.5)


def test_constant_eps_leads_to_one_place_in_any_number_of_steps():
    eps = jax.random.normal(jax.random.key(1), SHAPE)
    level = SD.at(999)
    expected = (NOISE - level.sigma * eps) / level.alpha
    for n in (1, 2, 7):
        x0 = sample(lambda z, t: eps, NOISE, sampling_times(n), SD, "eps")
        np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", [DDIM, DPM_SOLVER_PP])
def test_constant_x0_is_reached_exactly(solver):
    data = jax.random.normal(jax.random.key(1), SHAPE)
    np.testing.assert_allclose(sample(lambda z, t: data, NOISE, TIMES, SD, "x0", solver), data, atol=1e-6)


def test_standard_normal_data_under_ddim_shrinks_by_known_factors():
    """v* = 0: each step multiplies by alpha_s alpha_t + sigma_s sigma_t; the last, to CLEAN, by alpha_t."""
    alpha, sigma = (np.asarray(a).ravel() for a in SD.at(jnp.asarray(TIMES)))
    factor = np.prod(alpha[1:] * alpha[:-1] + sigma[1:] * sigma[:-1]) * alpha[-1]
    x0 = sample(lambda z, t: jnp.zeros_like(z), NOISE, TIMES, SD, "v")
    np.testing.assert_allclose(x0, factor * NOISE, rtol=1e-5)


def test_the_network_sees_each_time_for_the_whole_batch():
    seen = []

    def denoise(z, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t).tolist()), t, ordered=True)
        return z

    jax.block_until_ready(sample(denoise, NOISE, TIMES, SD, "v"))
    jax.effects_barrier()
    assert seen == [[t, t] for t in TIMES.tolist()]


def test_the_path_starts_at_the_noise_and_ends_at_the_sample():
    path = sample_path(_gaussian, NOISE, TIMES, SD, "eps")
    assert path.shape == (5, *SHAPE)
    np.testing.assert_array_equal(path[0], NOISE)
    np.testing.assert_array_equal(path[-1], sample(_gaussian, NOISE, TIMES, SD, "eps"))


def test_new_times_do_not_compile_again():
    traces = []

    @jax.jit
    def run(times):
        traces.append(1)
        return sample(_gaussian, NOISE, times, SD, "eps")

    a, b = run(TIMES), run(sampling_times(4, 50))
    assert len(traces) == 1 and not np.array_equal(a, b)


def test_guidance_wraps_outside_and_may_depend_on_time():
    def guided(z, t):
        return guide(_gaussian(z, t), 0.5 * z, step_guidance(t, 8.0, 0.4))

    late = sample_path(guided, NOISE, TIMES, SD, "eps")
    plain = sample_path(_gaussian, NOISE, TIMES, SD, "eps")
    np.testing.assert_allclose(late[:4], plain[:4], atol=1e-6)
    assert np.abs(late[4] - plain[4]).max() > 1e-2


def test_ddim_at_the_boundaries_is_icds_decoding():
    boundaries = BOUNDARIES["4_tau0.8"]
    times = np.array(boundaries.reverse[::-1], np.int32)
    decoded = jump(_gaussian, NOISE, boundaries.reverse_jumps, SD, "eps")
    np.testing.assert_allclose(sample(_gaussian, NOISE, times, SD, "eps"), decoded, atol=1e-6)


@pytest.mark.parametrize("times", [np.array([1, 2]), np.array([5, 5])])
def test_times_that_do_not_decrease_are_refused(times):
    with pytest.raises(ValueError, match="must decrease strictly"):
        sample(_gaussian, NOISE, times, SD, "eps")


def test_a_sample_of_noise_does_not_depend_on_the_batch_size():
    key = jax.random.key(3)
    one, many = initial_noise(key, (1, 4, 4, 2)), initial_noise(key, (512, 4, 4, 2))
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_allclose((many.mean(), many.std()), (0, 1), atol=2e-2)
    assert not np.array_equal(many[0], many[1])


def test_consistency_sampling_draws_the_data_of_its_model():
    """x0 = 3 + z/2 is affine, so mean and variance after each noising are known; the noise is fresh at each step."""
    z = initial_noise(jax.random.key(0), (4000, 1, 1, 1))
    draw = jax.jit(lambda rng: sample_consistency(lambda z, t: 3.0 + 0.5 * z, z, TIMES, SD, "x0", rng))
    x0, other = draw(jax.random.key(1)), draw(jax.random.key(2))
    mean, var = 3.0, 0.25
    for t in TIMES[1:]:
        alpha, sigma = SD.at(int(t))
        mean, var = 3.0 + 0.5 * alpha * mean, 0.25 * (alpha**2 * var + sigma**2)
    np.testing.assert_allclose((x0.mean(), x0.std()), (mean, var**0.5), atol=2e-2)
    assert np.abs(np.corrcoef(x0.ravel(), other.ravel())[0, 1]) < 0.3


def test_one_step_of_consistency_sampling_is_the_prediction():
    x0 = sample_consistency(_gaussian, NOISE, sampling_times(1), SD, "eps", jax.random.key(1))
    np.testing.assert_allclose(x0, sample(_gaussian, NOISE, sampling_times(1), SD, "eps"), rtol=1e-5, atol=1e-5)
