"""Descents on latents against recursions written again in numpy, for networks that are a line of arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.score import eps_denoiser, posterior_weights
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.sampling import score_editing
from sdd_jax.sampling.score_editing import STEP, Draw, Prompts, descend, draw_iteration, layer_sides, shaped, timesteps

pytestmark = pytest.mark.usefixtures("compile_quickly")
SD = Schedule.scaled_linear()
SHAPE = (2, 4, 4, 3)
TIMES = jnp.asarray(timesteps())
KEY = jax.random.key(0)
Z = jax.random.normal(jax.random.key(5), SHAPE)


def prompts(value, b=2):
    return Prompts(jnp.full((b, 1, 1), value, jnp.float32), {})


def linear(z, t, context):
    """eps = .5 z_t + mean(context)."""
    return 0.5 * z + context.mean((1, 2)).reshape(-1, 1, 1, 1)


EPS_HAT = eps_denoiser(linear, "eps", jnp.zeros((1, 1, 1)))


def run(gradient, z=Z, length=6, optimizer=None, step=0.1, start=0, state=None):
    optimizer = optax.sgd(step) if optimizer is None else optimizer
    state = optimizer.init(z) if state is None else state

    @jax.jit
    def go(z, state, start):
        return descend(gradient, z, state, optimizer, KEY, TIMES, SD, start, length)

    return go(z, state, jnp.int32(start))


def draws(length, shape=SHAPE):
    return [draw_iteration(KEY, jnp.int32(i), shape, TIMES, SD) for i in range(length)]


def test_the_published_step():
    assert STEP == 0.048828125 == 0.1 * 2000 / (64 * 64)


def test_dds_of_a_linear_network_is_its_recursion():
    """g = a alpha_t (z - zhat) + w (b_y - b_yhat), the noise gone: z_i follows from the times alone."""
    edited, _ = run(score_editing.dds(EPS_HAT, Z, prompts(0.03), prompts(0.05), 7.5))
    want = np.asarray(Z, np.float64)
    for draw in draws(6):
        alpha = np.asarray(draw.level.alpha, np.float64)
        want = want - 0.1 * (0.5 * alpha * (want - np.asarray(Z)) + 7.5 * 0.02)
    np.testing.assert_allclose(edited, want, atol=1e-5)
    assert np.abs(want - np.asarray(Z)).min() > 0.05


def test_equal_prompts_stay_exactly_and_sds_drifts():
    eps_hat = eps_denoiser(lambda z, t, c: gaussian_eps(z, SD.at(t), 0.0, 0.5), "eps", jnp.zeros((1, 1, 1)))
    stayed, _ = run(score_editing.dds(eps_hat, Z, prompts(0.0), prompts(0.0), 3.0), length=20)
    np.testing.assert_array_equal(stayed, Z)
    drifted, _ = run(score_editing.sds(eps_hat, prompts(0.0), 3.0), length=20)
    assert np.abs(drifted - Z).mean() > 0.1


def test_sds_is_its_gradient_at_the_drawn_noise():
    edited, _ = run(score_editing.sds(EPS_HAT, prompts(0.05), 2.0), length=1)
    (draw,) = draws(1)
    z_t = add_noise(Z, draw.eps, draw.level)
    np.testing.assert_allclose(edited, Z - 0.1 * (0.5 * z_t + 0.1 - draw.eps), atol=1e-5)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1)], ids=["sgd", "adam"])
def test_a_run_may_be_cut_anywhere(optimizer):
    gradient = score_editing.sds(EPS_HAT, prompts(0.05), 2.0)
    whole, _ = run(gradient, length=6, optimizer=optimizer)
    z, state = run(gradient, length=2, optimizer=optimizer)
    z, _ = run(gradient, z=z, state=state, start=2, length=4, optimizer=optimizer)
    np.testing.assert_allclose(whole, z, atol=1e-6)


def test_a_sample_is_edited_the_same_alone_and_in_a_batch():
    both, _ = run(score_editing.sds(EPS_HAT, prompts(0.05), 2.0))
    alone, _ = run(score_editing.sds(EPS_HAT, prompts(0.05, 1), 2.0), z=Z[:1])
    np.testing.assert_allclose(both[:1], alone, atol=1e-6)


def test_adam_moves_as_far_whatever_the_gradients_size():
    """The reason why SGD is the default: a gradient a thousandth as large moves the latents as far."""
    large = score_editing.dds(EPS_HAT, Z, prompts(0.0), prompts(1.0), 1.0)
    moved = [run(shaped(lambda z, d, k=k: k * large(z, d)), length=3, optimizer=optax.adam(0.1))[0] for k in (1, 1e-3)]
    np.testing.assert_allclose(moved[0] - Z, moved[1] - Z, rtol=1e-2)


def test_times_are_drawn_per_sample_from_the_list():
    times = jnp.asarray([7, 400, 948])
    found = np.stack([draw_iteration(KEY, jnp.int32(i), (5, 2, 2, 1), times, SD).t for i in range(40)])
    assert set(found.ravel().tolist()) == {7, 400, 948}
    assert any(len(set(row)) > 1 for row in found.tolist())
    np.testing.assert_array_equal(timesteps(), np.arange(50, 949))
    np.testing.assert_array_equal(timesteps(chosen=(300, 20, 300)), [20, 300])
    for bad in ({"first": 0}, {"last": 1000}, {"first": 9, "last": 8}, {"chosen": (5, 1000)}):
        with pytest.raises(ValueError, match="give some of 1..999"):
            timesteps(**bad)


def test_the_symmetric_form_moves_the_source_the_other_way():
    both = jnp.concatenate([Z, Z])
    gradient = score_editing.symmetric_dds(EPS_HAT, prompts(0.0), prompts(0.2), 3.0)
    edited, source = jnp.split(run(gradient, z=both)[0], 2)
    np.testing.assert_allclose(edited - Z, -(source - Z), atol=1e-5)
    assert np.abs(edited - Z).min() > 0.05


def test_pds_is_weighted_dds_and_a_pull():
    delta = score_editing.dds(EPS_HAT, Z, prompts(0.0), prompts(0.2), 3.0)
    (draw,) = draws(1)
    pull, push = posterior_weights(SD, draw.t, 2)
    found = score_editing.pds(delta, Z, SD, 2)(Z + 0.3, draw)
    np.testing.assert_allclose(found, pull * 0.3 + push * delta(Z + 0.3, draw), rtol=1e-4)
    alone = score_editing.pds(delta, Z, SD, 1)(Z + 0.3, draw)
    _, neighbours = posterior_weights(SD, draw.t, 1)
    np.testing.assert_allclose(alone, neighbours * delta(Z + 0.3, draw), atol=1e-4)


def test_masks_weights_and_clips():
    level = Level(jnp.full((2, 1, 1, 1), 0.8), jnp.full((2, 1, 1, 1), 0.6))
    draw = Draw(jnp.zeros(SHAPE), jnp.zeros(2, jnp.int32), level, KEY)
    g = jnp.concatenate([jnp.full((1, 4, 4, 3), 3.0), jnp.full((1, 4, 4, 3), -0.1)])
    same = lambda z, draw: g  # noqa: E731
    np.testing.assert_array_equal(shaped(same)(Z, draw), g)
    np.testing.assert_allclose(shaped(same, alpha_power=1, sigma_power=2)(Z, draw), 0.8 * 0.36 * g, rtol=1e-6)
    clipped = shaped(same, clip=1.0)(Z, draw)
    np.testing.assert_allclose(clipped[0], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(clipped[1], g[1])
    mask = jnp.zeros((1, 4, 4, 1)).at[:, :2].set(1.0)
    masked = shaped(same, mask=mask)(Z, draw)
    np.testing.assert_array_equal(masked[:, 2:], 0)
    np.testing.assert_array_equal(masked[:, :2], g[:, :2])


def toy(side):
    """A network that leaves its smoothed input on a tape, DDS made of it, and its features."""
    tape = []

    def denoise(z, t, context):
        tape[:] = [jnp.tanh(z).reshape(z.shape[0], -1, z.shape[-1])]
        return linear(z, t, context)

    def features(z_t, t, prompts):
        denoise(z_t, t, prompts.context)
        return tuple(tape)

    z = jax.random.normal(jax.random.key(1), (2, side, side, 3))
    delta = score_editing.dds(eps_denoiser(denoise, "eps", jnp.zeros((1, 1, 1))), z, prompts(0.0), prompts(0.2), 3.0)
    return z, delta, functools.partial(score_editing.cds, delta, tape, features, prompts(0.2))


def test_cds_adds_a_pull_of_patches_to_their_places():
    z, delta, contrastive = toy(8)
    draw = draw_iteration(KEY, jnp.int32(0), z.shape, jnp.asarray([300]), SD)
    np.testing.assert_array_equal(contrastive(0.0)(z, draw), delta(z, draw))
    shifted = jnp.roll(z, 1, axis=1)
    extra = contrastive(3.0)(shifted, draw) - delta(shifted, draw)
    closer, further = (shifted - sign * extra for sign in (1, -1))

    def distance(x):
        a, b = (jnp.tanh(add_noise(value, draw.eps, draw.level)) for value in (x, z))
        return float(-jnp.mean(jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)))

    assert distance(closer) < distance(shifted) < distance(further)


def test_the_contrast_is_as_strong_at_every_resolution():
    sizes = []
    for side in (8, 16):
        z, delta, contrastive = toy(side)
        draw = draw_iteration(KEY, jnp.int32(0), z.shape, jnp.asarray([300]), SD)
        moved = z + 0.5 * jax.random.normal(KEY, z.shape)
        extra = contrastive(3.0, patches=10**6)(moved, draw) - delta(moved, draw)
        sizes.append(float(jnp.sqrt(jnp.mean(extra**2))))
    assert 0.6 < sizes[0] / sizes[1] < 1.7


@pytest.mark.parametrize(("tokens", "sides"), [(64, (8, 8)), (16, (4, 4)), (4, (2, 2))])
def test_sides_of_layers(tokens, sides):
    assert layer_sides(tokens, 8, 8) == sides
    assert layer_sides(tokens * 2, 8, 16) == (sides[0], 2 * sides[1])
