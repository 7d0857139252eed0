"""Optimisers and schedules by name: closed forms, masks, Muon's orthogonal steps, and bad names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax.training.flops import count_flops
from sdd_jax.training.optim import OptimizerConfig, make_optimizer, make_schedule, muon_dimensions


def params_like(seed=0):
    shapes = {
        "conv_in": {"kernel": (3, 3, 4, 8)},
        "block": {"kernel": (3, 3, 8, 16), "bias": (16,)},
        "proj": {"kernel": (16, 8)},
        "token_embedding": {"embedding": (10, 8)},
        "cond_proj": {"kernel": (32, 8)},
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)])


def one_update(config, params, grads):
    optimizer, _ = make_optimizer(config, 100)
    return jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params)[0])()


def test_first_adam_step_is_the_sign_times_the_rate():
    grads = {"x": jnp.array([3.0, -2.0])}
    config = OptimizerConfig(name="adam", learning_rate=0.1, clip_norm=None)
    np.testing.assert_allclose(one_update(config, grads, grads)["x"], [-0.1, 0.1], rtol=1e-5)


def test_clipping_bounds_the_step_of_sgd():
    grads = {"x": jnp.array([30.0, 40.0])}
    config = OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=5.0)
    np.testing.assert_allclose(one_update(config, grads, grads)["x"], [-3.0, -4.0], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_spares_vectors(name):
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    config = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5)
    updates = one_update(config, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(updates["kernel"], -0.05 * np.ones((4, 4)), rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], np.zeros(4))


def test_muon_steps_are_near_orthogonal_and_the_rest_is_adam():
    params, grads = params_like(), params_like(1)
    config = OptimizerConfig(name="muon", learning_rate=1.0, clip_norm=None)
    updates = one_update(config, params, grads)
    for kernel, fans in ((updates["block"]["kernel"], (72, 16)), (updates["proj"]["kernel"], (16, 8))):
        singular = np.linalg.svd(np.asarray(kernel).reshape(fans), compute_uv=False) / (0.2 * np.sqrt(max(fans)))
        assert 0.5 < singular.min() and singular.max() < 1.5
    adam = optax.adamw(1.0, weight_decay=0.0, nesterov=True)
    expected, _ = adam.update(grads, adam.init(params), params)
    of_adam = (("conv_in", "kernel"), ("block", "bias"), ("token_embedding", "embedding"), ("cond_proj", "kernel"))
    for module, name in of_adam:
        np.testing.assert_allclose(updates[module][name], expected[module][name], rtol=1e-5)


def test_an_update_of_muon_costs_what_the_docstring_says():
    params = params_like()
    optimizer, _ = make_optimizer(OptimizerConfig(name="muon"), 100)
    state = optimizer.init(params)
    found = count_flops(lambda grads: optimizer.update(grads, state, params)[0], params)
    assert found.total == sum(5 * (4 * m**2 * n + 2 * m**3) for m, n in ((16, 72), (8, 16)))


def test_muon_takes_trees_with_frozen_leaves():
    params = params_like() | {"frozen": {"kernel": None}}
    config = OptimizerConfig(name="muon", learning_rate=1.0, weight_decay=0.1)
    updates = one_update(config, params, params)
    assert updates["frozen"]["kernel"] is None
    assert muon_dimensions(params)["block"]["kernel"].reduction_axis == (0, 1, 2)


def test_cosine_with_warmup_meets_its_formula():
    config = OptimizerConfig(schedule="cosine", learning_rate=2.0, warmup_steps=10, final_scale=0.1)
    schedule = make_schedule(config, 110)
    assert schedule(0) == pytest.approx(0.0)
    assert schedule(5) == pytest.approx(1.0)
    assert schedule(10) == pytest.approx(2.0)
    assert schedule(60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert schedule(110) == pytest.approx(0.2) and schedule(200) == pytest.approx(0.2)
    assert make_schedule(OptimizerConfig(learning_rate=2.0), 110)(100) == 2.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamx"}, "name='adamx' is not an optimizer; one of adamw, adam, sgd, muon"),
        ({"schedule": "cos"}, "schedule='cos' is not a schedule; one of constant, cosine"),
        ({"name": "sgd", "weight_decay": 0.1}, "weight_decay=0.1 has no effect with sgd"),
    ],
)
def test_bad_names_are_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        OptimizerConfig(**fields)
    assert "\n" not in str(error.value)
