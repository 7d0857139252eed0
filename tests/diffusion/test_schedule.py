import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import CLEAN, Level, Schedule, add_noise, half_log_snr, snr


@pytest.fixture(scope="module")
def sd() -> Schedule:
    return Schedule.scaled_linear()


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (Schedule.scaled_linear(), {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
        (Schedule.linear(), {"beta_schedule": "linear"}),
        (Schedule.squaredcos(), {"beta_schedule": "squaredcos_cap_v2"}),
        (Schedule.linear(T=50), {"beta_schedule": "linear", "num_train_timesteps": 50}),
    ],
)
def test_tables_are_those_of_diffusers(ours, theirs):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("torch")
    table = diffusers.DDPMScheduler(**theirs).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.alphas_cumprod, table, rtol=0, atol=1e-6)
    assert ours.num_timesteps == len(table) and ours.alphas_cumprod.dtype == np.float32


@pytest.mark.parametrize(
    "t, acp",
    [(0, 0.99915), (19, 0.982244), (259, 0.658976), (339, 0.524892), (500, 0.276333), (519, 0.251578), (699, 0.083128)]
    + [(779, 0.044200), (800, 0.036870), (999, 0.004660)],
)
def test_published_alphas_cumprod(sd, t, acp):
    np.testing.assert_allclose(sd.alphas_cumprod[t], acp, rtol=0, atol=6e-7)


@pytest.mark.parametrize(
    "t, alpha, sigma",
    [(0, 0.999575, 0.029155), (20, 0.990613, 0.136695), (500, 0.525674, 0.850686), (980, 0.076445, 0.997074)],
)
def test_published_levels(sd, t, alpha, sigma):
    np.testing.assert_allclose(sd.at(t), (alpha, sigma), rtol=0, atol=6e-7)


def test_the_data_to_noise_ratio_at_980_and_the_noise_at_19(sd):
    np.testing.assert_allclose(snr(sd.at(980)) ** -0.5, 13.04, atol=5e-3)
    np.testing.assert_allclose(sd.at(19).sigma, 0.133, atol=5e-4)


def test_levels_have_one_axis_per_latent_axis_and_unit_variance(sd):
    level = sd.at(jnp.array([0, 500, 999]))
    assert level.alpha.shape == level.sigma.shape == (3, 1, 1, 1)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1.0, atol=1e-6)
    assert sd.at(5).alpha.shape == ()


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_outside_the_table_is_nan_not_a_neighbour(sd, t):
    assert np.isnan(sd.at(jnp.array([t])).alpha).all()


def test_boundary_zero_is_clean_and_other_boundaries_are_levels(sd):
    level = sd.at_boundary(jnp.array([0, 259]))
    assert (level.alpha[0].item(), level.sigma[0].item()) == CLEAN
    np.testing.assert_array_equal(level.alpha[1], sd.at(jnp.array([259])).alpha[0])
    assert sd.at_boundary(0) == CLEAN and sd.at(0) != CLEAN


def test_noise_is_added_by_hand():
    z = add_noise(jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0]), Level(0.8, 0.6))
    np.testing.assert_allclose(z, [1.1, -1.0], rtol=1e-6)


def test_signal_to_noise_at_the_ends(sd):
    assert snr(CLEAN) == np.inf and half_log_snr(CLEAN) == np.inf
    t = jnp.arange(1000)
    np.testing.assert_allclose(jnp.exp(2 * half_log_snr(sd.at(t))), snr(sd.at(t)), rtol=1e-4)
    assert np.all(np.diff(snr(sd.at(t)).ravel()) < 0)


def test_a_schedule_is_a_pytree_that_jit_takes_as_an_argument(sd):
    level = jax.jit(lambda schedule, t: schedule.at(t))(sd, jnp.array([259]))
    np.testing.assert_allclose(level.alpha**2, 0.658976, rtol=1e-5)


@pytest.mark.parametrize("table", [np.ones(3), np.array([0.5, 0.6]), np.array([0.9, 0.0]), np.ones((2, 2)) * 0.5])
def test_a_table_that_is_no_schedule_is_refused(table):
    with pytest.raises(ValueError, match="alphas_cumprod must"):
        Schedule.from_alphas_cumprod(table)
