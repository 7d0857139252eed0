"""Progressive distillation: the target is where the teacher's steps lead, and a perfect student has no loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import CLEAN, Level, Schedule
from sdd_jax.diffusion.timegrid import sampling_times, trailing_grid
from sdd_jax.diffusion.transport import gaussian_eps, move
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.objectives.progressive import ProgressiveDistillation, one_step_data
from sdd_jax.types import ModelBundle

TABLE = Schedule.scaled_linear()
ACP = np.asarray(TABLE.alphas_cumprod)
SHAPE = (8, 2, 2, 1)
N = 4
FROZEN = {"teacher": {"unet": {"who": jnp.asarray(0.0)}}, "vae": {}, "text": {}}
STUDENT = {"unet": {"who": jnp.asarray(1.0)}, "adapter": {}}
FINE = [*trailing_grid(2 * N).tolist(), -1]


def make_model(denoise):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    own = {"denoise": denoise, "encode": lambda vae, x, rng=None: x, "prediction": "eps", "alphas_cumprod": ACP}
    return ModelBundle(**{**fields, **own})


def level(t):
    return CLEAN if t < 0 else TABLE.at(t)


def teacher_of(z, at, scale):
    return scale * gaussian_eps(z, at, 0.5, 0.7)


def perfect(scale=1.0):
    """A network that is the teacher for params 0, and for the student the eps of its two steps, by brute force."""

    def denoise(params, z, t, context, *, added_cond=None, residuals=None):
        mean = context.mean((1, 2))[:, None, None, None]
        at = TABLE.at(t)
        student = jnp.zeros_like(z)
        for start, middle, end in zip(FINE[:-1:2], FINE[1::2], FINE[2::2], strict=True):
            z_m = move(teacher_of(z, level(start), scale), z, level(start), level(middle), "eps")
            z_s = move(teacher_of(z_m, level(middle), scale), z_m, level(middle), level(end), "eps")
            x = one_step_data(z, z_s, level(start), level(end))
            eps = (z - level(start).alpha * x) / level(start).sigma
            student = jnp.where((t == start)[:, None, None, None], eps, student)
        return jnp.where(params["who"] == 0.0, teacher_of(z, at, 1.0) * (1.0 + mean), student)

    return denoise


def batch_of(count=SHAPE[0]):
    rng = np.random.default_rng(0)
    image = jnp.asarray(0.5 + 0.7 * rng.normal(size=(count, *SHAPE[1:])), jnp.float32)
    return {"image": image, "context": jnp.zeros((count, 1, 1))}


def test_the_students_times_are_those_that_it_is_sampled_at():
    method = ProgressiveDistillation(model=make_model(perfect()), adapter=NoAdapter(), grid_steps=N)
    stops, is_last = method.draw_times(jax.random.key(0), 400)
    stops = np.asarray(stops)
    assert set(stops[0].tolist()) == set(sampling_times(N, N).tolist())
    for start, middle, end, last in zip(*stops, np.asarray(is_last), strict=True):
        position = FINE.index(start)
        assert FINE[position + 1] == middle and (FINE[position + 2] == (-1 if last else end))


def test_the_student_that_takes_two_steps_at_once_has_no_loss():
    method = ProgressiveDistillation(model=make_model(perfect()), adapter=NoAdapter(), grid_steps=N)
    loss, metrics = method.loss(STUDENT, FROZEN, batch_of(), jax.random.key(1), jnp.asarray(0))
    assert loss < 1e-4
    teacher = {"unet": FROZEN["teacher"]["unet"], "adapter": {}}
    assert method.loss(teacher, FROZEN, batch_of(), jax.random.key(1), jnp.asarray(0))[0] > 1e-3


def test_a_guided_teacher_is_matched_guided():
    """The prompt doubles eps and the empty one does not, so w = 1.5 makes it 2.5 times as large."""
    model = make_model(perfect(scale=2.5))
    method = ProgressiveDistillation(model=model, adapter=NoAdapter(), grid_steps=N, guidance_scale=1.5)
    batch = {**batch_of(), "context": jnp.ones((SHAPE[0], 1, 1))}
    readable = {**FROZEN, "null_context": jnp.zeros((1, 1, 1))}
    assert method.loss(STUDENT, readable, batch, jax.random.key(1), jnp.asarray(0))[0] < 1e-3
    off = dataclasses.replace(method, guidance_scale=1.0)
    assert off.loss(STUDENT, readable, batch, jax.random.key(1), jnp.asarray(0))[0] > 1e-2


def test_one_step_data_inverts_the_ddim_step():
    z, x = (jax.random.normal(jax.random.key(i), SHAPE) for i in range(2))
    at_t = Level(jnp.float32(0.8), jnp.float32(0.6))
    for at_s in (Level(0.96, 0.28), CLEAN):
        eps = (z - at_t.alpha * x) / at_t.sigma
        z_s = at_s.alpha * x + at_s.sigma * eps
        np.testing.assert_allclose(one_step_data(z, z_s, at_t, at_s), x, rtol=1e-4, atol=1e-4)


def test_the_weight_is_the_truncated_snr():
    def wrong(params, z, t, context, **rest):
        at = TABLE.at(t)
        exact = perfect()({"who": params["who"]}, z, t, context)
        return exact - jnp.where(params["who"] == 1.0, 1.0, 0.0) * at.alpha / at.sigma  # x0_hat is 1 too large

    method = ProgressiveDistillation(model=make_model(wrong), adapter=NoAdapter(), grid_steps=N)
    loss, metrics = method.loss(STUDENT, FROZEN, batch_of(), jax.random.key(1), jnp.asarray(0))
    stops, _ = method.draw_times(jax.random.split(jax.random.key(1), 3)[1], SHAPE[0])
    acp = ACP[np.asarray(stops[0])]
    np.testing.assert_allclose(metrics["mse"], 1.0, rtol=1e-2)
    np.testing.assert_allclose(loss, np.maximum(acp / (1 - acp), 1.0).mean(), rtol=1e-2)


def test_the_teacher_is_not_differentiated_and_mistakes_are_named():
    def scaled(params, z, t, context, **rest):
        return params["gain"] * z

    method = ProgressiveDistillation(model=make_model(scaled), adapter=NoAdapter(), grid_steps=N)

    def loss(student, teacher):
        readable = {**FROZEN, "teacher": {"unet": {"gain": teacher}}}
        params = {"unet": {"gain": student}, "adapter": {}}
        return method.loss(params, readable, batch_of(), jax.random.key(0), jnp.asarray(0))[0]

    student, teacher = jax.grad(loss, argnums=(0, 1))(jnp.asarray(0.3), jnp.asarray(0.4))
    assert student != 0 and teacher == 0
    for options, message in (({"train_unet": False}, "nothing to distil into"), ({"substeps": 1}, "at least 1 and 2")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(method, **options)
