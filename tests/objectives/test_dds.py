"""The translation loss against its gradient written again in numpy, with networks that are a line of arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.objectives.dds import DDS
from sdd_jax.training.flops import count_flops
from sdd_jax.types import ModelBundle

pytestmark = pytest.mark.usefixtures("compile_quickly")
ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
UNET = {
    "block_out_channels": [4],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "mid_block_type": None,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "cross_attention_dim": 2,
}
SHAPE = (4, 4, 4, 2)
A = 0.5


def linear(params, z, t, context, *, added_cond=None):
    """gain z + mean(context): the teacher's gain is A, the translator's is learned, and starts there."""
    return params["gain"] * z + context.mean((1, 2))[:, None, None, None]


def make_model(denoise=linear, **changes):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    fields |= {
        "denoise": denoise,
        "encode": lambda vae, image, rng=None: image,
        "prediction": "eps",
        "alphas_cumprod": ACP,
        "configs": {"unet": UNET},
    }
    return ModelBundle(**{**fields, **changes})


def method(**fields):
    return DDS(**{"model": make_model(), "output": "direct", "steps": 100, **fields})


FROZEN = {
    "teacher": {"unet": {"gain": jnp.asarray(A), "conv_out": {}}},
    "vae": {},
    "text": {},
    "null_context": jnp.zeros((1, 3, 2)),
    "task_context": jnp.asarray([[[0.1, 0.3]] * 3, [[-0.2, 0.4]] * 3]),
}
STEP, RNG = jnp.asarray(40), jax.random.key(1)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=SHAPE), jnp.float32),
        "context": jnp.full((4, 3, 2), 0.07),
        "source_context": jnp.full((4, 3, 2), 0.05),
        "task": jnp.asarray([0, 1, 1, 0]),
    }


def params_of(objective):
    return objective.init(jax.random.key(0), FROZEN)


def test_the_start_is_the_teacher_with_the_tasks_states():
    params = params_of(method())
    assert set(params) == {"unet", "task", "time"} and params["time"].shape == (2, 4)
    np.testing.assert_array_equal(params["task"], FROZEN["task_context"])
    np.testing.assert_array_equal(params["unet"]["gain"], A)


@pytest.mark.parametrize("subtract", [True, False])
def test_the_gradient_is_the_score_and_the_identity(batch, subtract):
    """dL/dz = (g + 2 lambda (z - zhat)) / (H W) per sample, averaged; g = a alpha (z - zhat) + w (b_y - b_yhat)."""
    objective = method(subtract_source=subtract, identity=0.8, identity_end=0.2)
    params = params_of(objective)
    grads = jax.grad(lambda p: objective.loss(p, FROZEN, batch, RNG, STEP)[0])(params)
    _, metrics = objective.loss(params, FROZEN, batch, RNG, STEP)

    _, time_rng, noise_rng = jax.random.split(RNG, 3)
    t = np.asarray(objective.draw_times(time_rng, 4))
    eps = np.asarray(jax.random.normal(noise_rng, SHAPE), np.float64)
    alpha, sigma = (np.sqrt(x.astype(np.float64))[:, None, None, None] for x in (ACP[t], 1 - ACP[t]))
    zhat = np.asarray(batch["image"], np.float64)
    states = np.asarray(FROZEN["task_context"])[np.asarray(batch["task"])].mean((1, 2))[:, None, None, None]
    z = A * zhat + states
    w, lam = 1 + 6.5 * 40 / 50, 0.2 + 0.6 * (1 + np.cos(np.pi * 0.4)) / 2
    np.testing.assert_allclose(metrics["guidance"], w, rtol=1e-6)
    np.testing.assert_allclose(metrics["identity_weight"], lam, rtol=1e-6)
    g = A * alpha * (z - zhat) + w * (0.07 - 0.05) if subtract else A * (alpha * z + sigma * eps) + w * 0.07 - eps
    np.testing.assert_allclose(metrics["score"], np.sqrt(np.mean(g**2)), rtol=1e-4)
    np.testing.assert_allclose(metrics["change"], np.sqrt(np.mean((z - zhat) ** 2)), rtol=1e-4)
    dz = (g + 2 * lam * (z - zhat)) / 16 / 4
    np.testing.assert_allclose(grads["unet"]["gain"], np.sum(dz * zhat), rtol=1e-3)
    for k in range(2):
        want = np.sum(dz[np.asarray(batch["task"]) == k]) / 6
        np.testing.assert_allclose(grads["task"][k], want, rtol=1e-3, atol=1e-6)


def score_of(objective, frozen, batch):
    """(g, z, zhat, eps, t, alpha, sigma) of latents that are not the source's, at w = 3, in float64."""
    rng = np.random.default_rng(1)
    z, eps = (jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(2))
    t = jnp.asarray([100, 300, 600, 900])
    level = Schedule(jnp.asarray(ACP)).at(t)
    g = objective.score(frozen, batch, z, batch["image"], eps, t, level, jnp.float32(3.0))
    alpha, sigma = (np.sqrt(x.astype(np.float64))[:, None, None, None] for x in (ACP[t], 1 - ACP[t]))
    return g, *(np.asarray(x, np.float64) for x in (z, batch["image"], eps)), alpha, sigma


def test_a_teacher_of_v_is_read_as_eps(batch):
    """v = A z_t + c, eps_hat = alpha v + sigma z_t."""
    g, z, zhat, _, alpha, sigma = score_of(method(model=make_model(prediction="v")), FROZEN, batch)
    want = (alpha * A + sigma) * alpha * (z - zhat) + 3.0 * alpha * (0.07 - 0.05)
    np.testing.assert_allclose(g, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("subtract", [True, False])
def test_pooled_states_are_each_branchs_own_and_the_empty_prompts(batch, subtract):
    """SDXL: eps_hat reads the mean of the pooled state: the target's, the source's, without text the null one's."""

    def denoise(params, z, t, context, *, added_cond):
        assert added_cond["time_ids"].shape == (len(z), 6)
        return linear(params, z, t, context) + added_cond["text_embeds"].mean(1)[:, None, None, None]

    model = make_model(denoise, sample_size=4, downsampling=1)
    pooled = {"pooled": jnp.full((4, 2), 0.4), "source_pooled": jnp.full((4, 2), 0.1)}
    frozen = {**FROZEN, "null_pooled": jnp.full((1, 2), -0.3)}
    objective = method(model=model, subtract_source=subtract)
    g, z, zhat, eps, alpha, sigma = score_of(objective, frozen, {**batch, **pooled})
    if subtract:
        want = A * alpha * (z - zhat) + 3.0 * (0.07 + 0.4 - 0.05 - 0.1)
    else:
        want = A * (alpha * z + sigma * eps) - 2.0 * -0.3 + 3.0 * (0.07 + 0.4) - eps
    np.testing.assert_allclose(g, want, rtol=1e-4, atol=1e-5)


def test_equal_captions_and_an_identity_translator_have_no_gradient(batch):
    """A residual translator that answers 0 on a task whose caption is the source's: loss and gradient exactly 0."""
    objective = method(output="residual")
    frozen = {**FROZEN, "task_context": jnp.zeros((2, 3, 2))}
    params = {**objective.init(RNG, frozen), "unet": {"gain": jnp.zeros(()), "conv_out": {}}}
    same = {**batch, "source_context": batch["context"]}
    loss, grads = jax.value_and_grad(lambda p: objective.loss(p, frozen, same, RNG, STEP)[0])(params)
    assert loss == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(grads))
    other = jax.grad(lambda p: objective.loss(p, frozen, batch, RNG, STEP)[0])(params)
    assert np.any(other["task"])


def test_nothing_frozen_is_differentiated(batch):
    objective = method()
    params = params_of(objective)
    grads = jax.grad(lambda frozen: objective.loss(params, frozen, batch, RNG, STEP)[0])(FROZEN)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_schedules_by_hand():
    objective = method(guidance=7.5, guidance_start=1.5, guidance_warmup=0.5, identity=2.0, identity_end=0.5)
    at = lambda f: [float(f(jnp.asarray(i))) for i in (0, 25, 50, 100, 150)]  # noqa: E731
    np.testing.assert_allclose(at(objective.guidance_at), [1.5, 4.5, 7.5, 7.5, 7.5])
    np.testing.assert_allclose(
        at(objective.identity_at), [2.0, 0.5 + 1.5 * (1 + np.cos(np.pi / 4)) / 2, 1.25, 0.5, 0.5], rtol=1e-6
    )
    assert at(method(guidance_warmup=0.0).guidance_at) == [7.5] * 5


def test_times_are_the_range_or_the_selected():
    found = method().draw_times(RNG, 20_000)
    assert (found.min(), found.max()) == (50, 948)
    chosen = method(timesteps=(300, 500)).draw_times(RNG, 200)
    assert set(chosen.tolist()) == {300, 500} and chosen.dtype == jnp.int32


def test_the_weight_in_t(batch):
    times = {"timesteps": (400,)}
    plain, weighted = (method(**times, **powers) for powers in ({}, {"alpha_power": 1.0, "sigma_power": 2.0}))
    params = params_of(plain)
    scores = [float(m.loss(params, FROZEN, batch, RNG, STEP)[1]["score"]) for m in (plain, weighted)]
    np.testing.assert_allclose(scores[1] / scores[0], np.sqrt(ACP[400]) * (1 - ACP[400]), rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t_min": 0}, "must lie in 1..999"),
        ({"t_max": 1000}, "must lie in 1..999"),
        ({"t_min": 500, "t_max": 400}, "the lower first"),
        ({"timesteps": (0, 5)}, "must lie in 1..999"),
        ({"guidance_warmup": 2.0}, "is a share of the steps"),
        ({"identity": -1.0}, "not below 0"),
        ({"output": "delta"}, "output='delta' is not known"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(ValueError, match=message):
        method(**fields)


@pytest.mark.parametrize(("subtract", "scores"), [(True, 4), (False, 2)])
def test_a_step_is_the_translators_and_the_scores_forwards(tiny_model, batch, subtract, scores):
    """7F (SDS 5F): what the loss adds to the translator's own gradient is exactly 4 (2) forwards."""
    bundle, weights = tiny_model
    objective = DDS(model=bundle, steps=10, subtract_source=subtract)
    z, task = jnp.zeros((2, 8, 8, 4)), jnp.asarray([0, 1])
    frozen = {
        "teacher": {"unet": weights["unet"]}, "null_context": jnp.zeros((1, 5, 16)),
        "task_context": jnp.zeros((2, 5, 16)),
    }  # fmt: skip
    params = jax.eval_shape(objective.init, RNG, frozen)
    rows = {
        "moments": jnp.zeros((2, 8, 8, 8)), "task": task, "context": jnp.zeros((2, 5, 16)),
        "source_context": jnp.zeros((2, 5, 16)),
    }  # fmt: skip
    step = count_flops(jax.grad(lambda p: objective.loss(p, frozen, rows, RNG, STEP)[0]), params).total
    own = count_flops(jax.grad(lambda p: jnp.sum(objective.translator.apply(p, z, task) ** 2)), params).total
    forward = count_flops(bundle.denoise, weights["unet"], z, jnp.zeros(2, jnp.int32), jnp.zeros((2, 5, 16))).total
    assert step - own == scores * forward
    assert 2.7 * forward < own <= 3 * forward
