import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import CLEAN, Schedule, half_log_snr
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.diffusion.transport import gaussian_eps, gaussian_flow
from sdd_jax.sampling.generate import sample, sample_path
from sdd_jax.sampling.solvers import DDIM, DPM_SOLVER, DPM_SOLVER_PP, EULER, SOLVERS, solver_named

SD = Schedule.scaled_linear()
SHAPE = (2, 3, 3, 1)
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def fake_network(z, t):
    """Linear in z, different at every t; works on jax and torch arrays alike."""
    return 0.4 * z + 0.3 * (t / 1000.0) - 0.1


def _denoise(z, t):
    return fake_network(z, t.astype(jnp.float32)[:, None, None, None])


NOISE = jax.random.normal(jax.random.key(0), SHAPE)


def _theirs(scheduler, n, noise):
    """The path of a diffusers scheduler through the fake network, [n+1, ...]; stops the network sees, then the end."""
    torch = pytest.importorskip("torch")
    scheduler.set_timesteps(n)
    z = torch.tensor(np.asarray(noise))
    path = [z.numpy()]
    for t in scheduler.timesteps:
        pred = fake_network(scheduler.scale_model_input(z, t), float(t))
        z = scheduler.step(pred, t, z).prev_sample
        path.append(z.numpy())
    return np.stack(path)


@pytest.fixture(scope="module")
def ours():
    """Compiled once per (kind, solver, n)."""
    return jax.jit(
        lambda noise, times, kind, solver: sample_path(_denoise, noise, times, SD, kind, solver),
        static_argnames=("kind", "solver"),
    )


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_ddim_is_that_of_diffusers(ours, kind, n):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing", prediction_type=PREDICTION[kind], clip_sample=False
    )
    path = ours(NOISE, sampling_times(n), kind, DDIM)
    np.testing.assert_allclose(path, _theirs(scheduler, n, NOISE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_dpm_solver_pp_is_that_of_diffusers(ours, kind, n):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing", prediction_type=PREDICTION[kind], final_sigmas_type="zero"
    )
    path = ours(NOISE, sampling_times(n), kind, DPM_SOLVER_PP)
    np.testing.assert_allclose(path, _theirs(scheduler, n, NOISE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_dpm_solver_is_that_of_diffusers_up_to_the_last_step(ours, kind):
    """diffusers ends this solver at sigma_0 and refuses to end it clean, so the last step is left out."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        timestep_spacing="trailing",
        prediction_type=PREDICTION[kind],
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
    )
    path = ours(NOISE, sampling_times(8), kind, DPM_SOLVER)
    np.testing.assert_allclose(path[:-1], _theirs(scheduler, 8, NOISE)[:-1], rtol=1e-4, atol=1e-4)


def test_euler_in_karras_variables_is_ddim(ours):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    theirs = _theirs(scheduler, 4, NOISE / SD.at(999).alpha)
    np.testing.assert_allclose(ours(NOISE, sampling_times(4), "eps", EULER)[-1], theirs[-1], rtol=1e-4, atol=1e-4)


def _gaussian(z, t):
    return gaussian_eps(z, SD.at(t), 0.7, 0.5)


def _error(n, solver):
    """|path - exact flow| / |flow| at t = 199 for data N(.7, .5^2), n equal steps from t = 999."""
    times = np.linspace(999, 199, n + 1).astype(np.int32)
    path = sample_path(_gaussian, NOISE, times, SD, "eps", solver)
    exact = gaussian_flow(NOISE, SD.at(999), SD.at(199), 0.7, 0.5)
    return float(jnp.linalg.norm(path[-2] - exact) / jnp.linalg.norm(exact))


def _ratios(errors):
    return np.array(errors[:-1]) / np.array(errors[1:])


def test_ddim_converges_to_the_exact_flow_at_first_order():
    errors = [_error(n, DDIM) for n in (25, 50, 100, 200)]
    assert np.all((_ratios(errors) > 1.9) & (_ratios(errors) < 2.1)), errors


@pytest.mark.parametrize("solver", [DPM_SOLVER, DPM_SOLVER_PP])
def test_multistep_solvers_converge_at_second_order(solver):
    errors = [_error(n, solver) for n in (25, 50, 100)]
    assert np.all((_ratios(errors) > 3.0) & (_ratios(errors) < 5.0)), errors
    assert errors[0] < 0.5 * _error(25, DDIM)


def test_a_whole_run_converges_to_the_data():
    """Just short of first order: sigma grows like sqrt(t) next to CLEAN, so the error falls as log(n) / n."""
    exact = gaussian_flow(NOISE, SD.at(999), CLEAN, 0.7, 0.5)
    errors = [
        float(jnp.linalg.norm(sample(_gaussian, NOISE, sampling_times(n), SD, "eps") - exact) / jnp.linalg.norm(exact))
        for n in (25, 50, 100)
    ]
    assert np.all((_ratios(errors) > 1.7) & (_ratios(errors) < 2.0)), errors


def test_coefficients_are_half_the_ratio_of_step_lengths_and_zero_at_both_ends():
    levels = SD.at(jnp.array([999, 700, 400, 100]))
    h = np.diff(half_log_snr(levels).ravel())
    np.testing.assert_allclose(DPM_SOLVER_PP.coefficients(levels).ravel(), [0, h[1] / h[0] / 2, h[2] / h[1] / 2, 0])
    np.testing.assert_array_equal(DDIM.coefficients(levels), 0.0)


def test_solvers_by_name():
    assert [solver_named(name) for name in SOLVERS] == [DDIM, DDIM, DPM_SOLVER, DPM_SOLVER_PP]
    with pytest.raises(ValueError, match="unknown solver 'heun'.*ddim"):
        solver_named("heun")
