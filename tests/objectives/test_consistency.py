"""Consistency distillation on the Gaussian teacher, whose flow is known: the exact consistency function has no loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import CLEAN, Schedule
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.diffusion.transport import gaussian_eps, move
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.objectives.consistency import ConsistencyDistillation
from sdd_jax.types import ModelBundle

TABLE = Schedule.scaled_linear()
ACP = np.asarray(TABLE.alphas_cumprod)
SHAPE = (8, 2, 2, 1)
N = 10
TEACHER, ONLINE, TARGET = ({"unet": {"who": jnp.asarray(who)}, "adapter": {}} for who in (0.0, 1.0, 2.0))
GRID = trailing_grid(N)[::-1]


def make_model(denoise):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    own = {"denoise": denoise, "encode": lambda vae, x, rng=None: x, "prediction": "eps", "alphas_cumprod": ACP}
    return ModelBundle(**{**fields, **own})


def walk_to_data(z, t):
    """Where DDIM steps of the Gaussian teacher over the grid lead from z at t: the discrete consistency function."""
    for start, end in zip(GRID[::-1], [*GRID[::-1][1:], -1], strict=True):
        at_t = TABLE.at(int(start))
        at_s = CLEAN if end < 0 else TABLE.at(int(end))
        moved = move(gaussian_eps(z, at_t, 0.5, 0.7), z, at_t, at_s, "eps")
        z = jnp.where((t >= start)[:, None, None, None], moved, z)
    return z


def perfect(params, z, t, context, *, added_cond=None, residuals=None):
    """The teacher's eps, and for online and target the eps whose x0 is the consistency function."""
    at = TABLE.at(t)
    student = (z - at.alpha * walk_to_data(z, t)) / at.sigma
    return jnp.where(params["who"] == 0.0, gaussian_eps(z, at, 0.5, 0.7), student)


def batch_of():
    rng = np.random.default_rng(0)
    image = jnp.asarray(0.5 + 0.7 * rng.normal(size=SHAPE), jnp.float32)
    return {"image": image, "context": jnp.zeros((SHAPE[0], 1, 1))}


FROZEN = {"teacher": TEACHER, "target": TARGET, "vae": {}, "text": {}}


def loss_of(denoise, **options):
    method = ConsistencyDistillation(model=make_model(denoise), adapter=NoAdapter(), grid_steps=N, **options)
    return method.loss(ONLINE, FROZEN, batch_of(), jax.random.key(3), jnp.asarray(0))


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_the_exact_consistency_function_has_no_loss(distance):
    assert loss_of(perfect, distance=distance)[0] < 1e-5

    def off(params, z, t, context, **rest):
        return perfect(params, z, t, context, **rest) * jnp.where(params["who"] == 1.0, 1.05, 1.0)

    assert loss_of(off, distance=distance)[0] > 1e-3


def test_the_lowest_time_is_anchored_in_the_data():
    """A constant agrees with itself everywhere but there, where the target is the teacher's own step to CLEAN."""

    def constant(params, z, t, context, **rest):
        at = TABLE.at(t)
        return jnp.where(params["who"] == 0.0, gaussian_eps(z, at, 0.5, 0.7), (z - at.alpha * 3.0) / at.sigma)

    method = ConsistencyDistillation(model=make_model(constant), adapter=NoAdapter(), grid_steps=N, distance="l2")
    t, s, is_last = method.draw_times(jax.random.split(jax.random.key(3), 3)[1], SHAPE[0])
    assert 0 < int(is_last.sum()) < SHAPE[0]
    batch = batch_of()
    loss, _ = method.loss(ONLINE, FROZEN, batch, jax.random.key(3), jnp.asarray(0))
    low = TABLE.at(int(GRID[0]))
    noise = jax.random.normal(jax.random.split(jax.random.key(3), 3)[2], SHAPE)
    z = low.alpha * batch["image"] + low.sigma * noise
    anchor = (z - low.sigma * gaussian_eps(z, low, 0.5, 0.7)) / low.alpha
    each = np.mean((np.asarray(anchor) - 3.0) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, np.mean(np.where(is_last, each, 0.0)), rtol=1e-3)


def test_all_neighbouring_pairs_are_drawn():
    method = ConsistencyDistillation(model=make_model(perfect), adapter=NoAdapter(), grid_steps=N)
    t, s, is_last = (np.asarray(x) for x in method.draw_times(jax.random.key(0), 2000))
    assert set(t.tolist()) == set(GRID.tolist())
    np.testing.assert_array_equal(is_last, t == GRID[0])
    position = np.searchsorted(GRID, t)
    np.testing.assert_array_equal(s, GRID[np.maximum(position - 1, 0)])


def test_it_starts_from_the_fine_tuned_model_and_differentiates_the_online_one_alone():
    method = ConsistencyDistillation(model=make_model(perfect), adapter=NoAdapter(), grid_steps=N)
    teacher = {"unet": {"who": jnp.asarray(4.0, jnp.bfloat16)}, "adapter": {"own": jnp.asarray(5.0)}}
    start = method.init(jax.random.key(0), {"teacher": teacher})
    assert start["unet"]["who"] == 4 and start["unet"]["who"].dtype == jnp.float32 and start["adapter"]["own"] == 5
    alone = dataclasses.replace(method, train_unet=False).init(jax.random.key(0), {"teacher": teacher})
    assert set(alone) == {"adapter"}

    def scaled(params, z, t, context, **rest):
        return params["gain"] * z

    method = dataclasses.replace(method, model=make_model(scaled))
    trees = [{"unet": {"gain": jnp.asarray(g)}, "adapter": {}} for g in (0.3, 0.4, 0.5)]

    def loss(online, target, teacher):
        readable = {"teacher": teacher, "target": target, "vae": {}, "text": {}}
        return method.loss(online, readable, batch_of(), jax.random.key(0), jnp.asarray(0))[0]

    online, target, teacher = jax.grad(loss, argnums=(0, 1, 2))(*trees)
    assert online["unet"]["gain"] != 0 and target["unet"]["gain"] == 0 and teacher["unet"]["gain"] == 0


def test_an_unknown_distance_is_named():
    with pytest.raises(ValueError, match="distance='l1' is not known; use l2, pseudo_huber"):
        ConsistencyDistillation(model=make_model(perfect), adapter=NoAdapter(), distance="l1")
