"""The train step: EMA, accumulation, masks, phases, randomness and the non-finite guard."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_job import WIDTH, Toy, teacher

from sdd_jax.training.state import create_state, merge, select
from sdd_jax.training.step import make_train_step
from sdd_jax.types import Phase

SEED = jax.random.key(0)


class Quadratic:
    """loss = mean (a - x)^2 + (b - x)^2 over the batch, with the given phases."""

    def __init__(self, phases=None):
        self.phases = phases or (Phase(self.loss),)

    def init(self, rng, frozen):
        return {"a": jnp.ones(()), "b": jnp.ones(())}

    def loss(self, params, frozen, batch, rng, step):
        error = (params["a"] - batch["x"]) ** 2 + (params["b"] - batch["x"]) ** 2
        return jnp.mean(error), {"key": jax.random.uniform(rng), "shared": jax.random.uniform(frozen["step_rng"])}


def setup(objective, optimizer=None, ema_decay=None, accumulate=1, frozen=None):
    optimizer = optimizer or optax.sgd(0.25)
    frozen = frozen or {}
    state = create_state(SEED, objective, optimizer, frozen, with_ema=ema_decay is not None)
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    step = make_train_step(objective, optimizer, schedule=schedule, ema_decay=ema_decay, accumulate=accumulate)
    return state, functools.partial(jax.jit(step), frozen=frozen, rng=SEED)


def batch_of(*values):
    return {"x": jnp.array(values, jnp.float32)}


def test_ema_of_target_one_and_online_two_is_one_point_one():
    state, step = setup(Quadratic(), ema_decay=0.9)
    state, metrics = step(state, batch=batch_of(3.0))  # a <- 1 - 0.25 * 2 (1 - 3) = 2
    assert state.params["a"] == pytest.approx(2.0)
    assert state.ema["a"] == pytest.approx(1.1)
    assert metrics["loss"] == pytest.approx(8.0)
    assert metrics["grad_norm"] == pytest.approx(np.sqrt(2) * 4)
    assert metrics["param_norm"] == pytest.approx(np.sqrt(8))


def test_a_warming_average_forgets_where_it_began():
    optimizer, objective = optax.sgd(0.25), Quadratic()
    state = create_state(SEED, objective, optimizer, {}, with_ema=True)
    step = make_train_step(objective, optimizer, schedule=optax.constant_schedule(1.0), ema_decay=0.9, ema_warmup=True)
    state, _ = step(state, {}, batch_of(3.0), SEED)  # a: 1 -> 2, decay 1 / 10
    assert state.ema["a"] == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)
    after, _ = step(state, {}, batch_of(3.0), SEED)  # decay 2 / 11
    assert after.ema["a"] == pytest.approx(2 / 11 * state.ema["a"] + 9 / 11 * after.params["a"])
    late, _ = step(state.replace(step=jnp.asarray(1000)), {}, batch_of(3.0), SEED)
    assert late.ema["a"] == pytest.approx(0.9 * state.ema["a"] + 0.1 * late.params["a"])


def test_target_is_the_average_from_before_the_step():
    class Reads(Quadratic):
        def loss(self, params, frozen, batch, rng, step):
            return super().loss(params, frozen, batch, rng, step)[0], {"target": frozen["target"]["a"]}

    state, step = setup(Reads(), ema_decay=0.9)
    seen = []
    for _ in range(2):
        state, metrics = step(state, batch=batch_of(3.0))
        seen.append(float(metrics["target"]))
    assert seen == pytest.approx([1.0, 1.1])


def test_accumulation_is_the_mean_over_the_whole_batch():
    toy = Toy(noise=0.0)
    batch = {"x": jax.random.normal(jax.random.key(1), (8, WIDTH))}
    results = []
    for accumulate in (1, 4):
        state, step = setup(toy, optax.adam(1e-2), ema_decay=0.5, accumulate=accumulate, frozen=teacher())
        results.append(step(state, batch=batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *results)


def test_microbatches_differ_in_their_own_key_and_agree_on_the_steps():
    class Spread(Quadratic):
        def loss(self, params, frozen, batch, rng, step):
            loss, metrics = super().loss(params, frozen, batch, rng, step)
            return loss, metrics | {f"{key}2": value**2 for key, value in metrics.items()}

    state, step = setup(Spread(), accumulate=4)
    _, metrics = step(state, batch=batch_of(1, 2, 3, 4))
    assert metrics["key2"] - metrics["key"] ** 2 > 1e-3
    assert metrics["shared2"] - metrics["shared"] ** 2 == pytest.approx(0.0, abs=1e-6)


def test_randomness_is_a_function_of_seed_and_step():
    state, step = setup(Quadratic())
    first, metrics = step(state, batch=batch_of(0.0))
    _, again = step(state, batch=batch_of(0.0))
    _, later = step(first, batch=batch_of(0.0))
    assert metrics["key"] == again["key"] and metrics["key"] != later["key"]
    assert metrics["shared"] != later["shared"] and metrics["shared"] != metrics["key"]


def test_masked_leaves_do_not_move_and_have_no_moments():
    objective = Quadratic()
    objective.phases = (Phase(objective.loss, lambda params: {"a": True, "b": False}),)
    state, step = setup(objective, optax.adamw(0.1, weight_decay=0.1))
    assert len(jax.tree.leaves(state.opt_state)) == len(jax.tree.leaves(optax.adamw(0.1).init({"a": jnp.ones(())})))
    after, metrics = step(state, batch=batch_of(3.0))
    assert after.params["b"] == 1.0 and after.params["a"] != 1.0
    assert metrics["grad_norm"] == pytest.approx(4.0)


def test_phases_update_in_order_each_its_own_leaves():
    objective = Quadratic()

    def chase(params, frozen, batch, rng, step):
        return (params["b"] - params["a"]) ** 2, {}

    objective.phases = (
        Phase(objective.loss, lambda params: {"a": True, "b": False}),
        Phase(chase, lambda params: {"a": False, "b": True}),
    )
    state, step = setup(objective)
    state, metrics = step(state, batch=batch_of(3.0))
    assert state.params["a"] == pytest.approx(2.0)
    assert state.params["b"] == pytest.approx(1.0 - 0.25 * 2 * (1.0 - 2.0))  # sees the a of the first phase
    assert metrics["phase0/loss"] == pytest.approx(8.0) and metrics["phase1/loss"] == pytest.approx(1.0)
    assert metrics["loss"] == pytest.approx(9.0)


def test_non_finite_step_changes_only_the_counters():
    toy = Toy(poison_from=1, poison_until=3)
    state, step = setup(toy, optax.adam(1e-2), ema_decay=0.9, frozen=teacher())
    batch = {"x": jnp.ones((4, WIDTH))}
    before, _ = step(state, batch=batch)
    bad, first = step(before, batch=batch)
    worse, second = step(bad, batch=batch)
    good, third = step(worse, batch=batch)
    for field in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(worse, field), getattr(before, field))
    assert [int(m["streak"]) for m in (first, second, third)] == [1, 2, 0]
    assert [int(m["skipped"]) for m in (first, second, third)] == [1, 2, 2]
    assert int(good.step) == 4
    assert not np.array_equal(good.params["dense"]["kernel"], before.params["dense"]["kernel"])
    assert third["lr"] == pytest.approx(0.9)  # the schedule counts updates: this is the second


def test_infinite_gradient_of_a_finite_loss_is_skipped():
    class Cliff(Quadratic):
        def loss(self, params, frozen, batch, rng, step):
            return jnp.sqrt(params["a"] - 1.0), {}

    state, step = setup(Cliff())
    after, metrics = step(state, batch=batch_of(0.0))
    assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 1
    assert after.params["a"] == 1.0


def test_state_survives_donation_though_init_returns_frozen_weights():
    frozen = jax.tree.map(jnp.asarray, teacher())
    state = jax.jit(lambda key, f: create_state(key, Toy(), optax.sgd(0.1), f, with_ema=True))(SEED, frozen)
    step = make_train_step(Toy(), optax.sgd(0.1), schedule=optax.constant_schedule(0.1), ema_decay=0.9)
    jax.jit(step, donate_argnums=0)(state, frozen, {"x": jnp.ones((4, WIDTH))}, SEED)
    assert frozen["teacher"]["gain"] == 1.0 and state.params["gain"].is_deleted()


def test_merge_inverts_select_for_prefix_masks():
    params = {"unet": {"kernel": 1.0, "bias": 2.0}, "adapter": {"kernel": 3.0}}
    trained = select(params, lambda _: {"unet": False, "adapter": True})
    assert jax.tree.leaves(trained) == [3.0]
    assert merge(params, jax.tree.map(lambda x: x + 1, trained)) == params | {"adapter": {"kernel": 4.0}}
