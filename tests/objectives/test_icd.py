"""iCD's four losses against the paper written again in numpy, with networks that are a line of arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.distances import l2
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import BOUNDARIES, Boundaries
from sdd_jax.models.lora import ATTENTION_TARGETS, LoraSpec
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.objectives.icd import ICD
from sdd_jax.training.flops import count_flops
from sdd_jax.types import ModelBundle

ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
SHAPE = (16, 2, 2, 1)
CONTEXT = jnp.linspace(-1.0, 1.0, SHAPE[0])[:, None, None]
UNET = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=2,
    cross_attention_dim=8,
    time_cond_proj_dim=512,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)


def bundle(denoise, prediction="eps"):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    fields |= {"denoise": denoise, "prediction": prediction, "alphas_cumprod": ACP}
    return ModelBundle(**{**fields, "encode": lambda vae, image, rng=None: image})


def linear(params, z, t, context, *, added_cond=None, timestep_cond=None):
    """a z + b + mean(context) + 2 mean(embedding of w): whatever a network reads enters its output."""
    extra = context.mean((1, 2)) + 2 * timestep_cond.mean(1) + 0.1 * t / 1000
    return params["a"] * z + params["b"] + extra[:, None, None, None]


class Recorder:
    def __init__(self, denoise):
        self.denoise, self.calls = denoise, []

    def __call__(self, params, z, t, context, **rest):
        out = self.denoise(params, z, t, context, **rest)
        guided = np.asarray(rest["timestep_cond"])[:, :256].any(1)  # w = 1 embeds as sines of 0
        self.calls.append(
            (params["name"], np.asarray(z, np.float64), np.asarray(t), guided, np.asarray(out, np.float64))
        )
        return out


def weights(name, a, b):
    return {"name": name, "a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}


PARAMS = {"reverse": weights("reverse", 0.3, 0.1), "forward": weights("forward", 0.2, -0.2)}
FROZEN = {"teacher": {"unet": weights("teacher", 0.5, 0.3)}, "vae": {}, "text": {}}
INPUTS = {"latents": jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32), "context": CONTEXT}
BATCH = {"image": INPUTS["latents"], "context": CONTEXT}


def method(denoise=linear, prediction="eps", **fields):
    return ICD(model=bundle(denoise, prediction), lora=None, **fields)


def level(t):
    """(alpha, sigma) at t, CLEAN at 0, float64[b,1,1,1]."""
    acp = np.where(t == 0, 1.0, ACP[t].astype(np.float64))[:, None, None, None]
    return np.sqrt(acp), np.sqrt(1 - acp)


def jumped(z, out, t, s, prediction):
    (alpha, sigma), (alpha_s, sigma_s) = level(t), level(s)
    if prediction == "eps":
        return alpha_s * (z - sigma * out) / alpha + sigma_s * out
    return alpha_s * (alpha * z - sigma * out) + sigma_s * (sigma * z + alpha * out)


def huber(a, b):
    return np.mean(np.sqrt((a - b) ** 2 + 1e-6) - 1e-3)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", ["reverse", "forward"])
def test_the_consistency_losses_by_hand(name, prediction):
    network = Recorder(linear)
    one = method(network, prediction, scales=(1.0, 8.0))
    term = one.reverse_consistency if name == "reverse" else one.forward_consistency
    loss = term(PARAMS, FROZEN, INPUTS, jax.random.key(1))
    (teacher, z_t, t, w, eps), (target, z_p, t_p, w_p, target_out), (online, z_o, t_o, _, online_out) = network.calls
    assert (teacher, target, online) == ("teacher", name, name)
    np.testing.assert_array_equal(t, t_o)
    np.testing.assert_array_equal(z_t, z_o)
    np.testing.assert_array_equal(w, w_p)
    assert set((t - 19) % 20) == {0} and len(set(t.tolist())) > 5
    if name == "reverse":
        np.testing.assert_array_equal(t_p, np.maximum(t - 20, 0))
        s = np.array([max(b for b in (0, 259, 519, 779) if b <= time) for time in t_p])
        assert set(w) == {True, False}, "w is drawn per sample"
    else:
        np.testing.assert_array_equal(t_p, t + 20)
        s = np.array([min(b for b in (259, 519, 779, 999) if b >= time) for time in t_p])
        assert not w.any(), "the forward model is never guided"
    np.testing.assert_allclose(z_p, jumped(z_t, eps, t, t_p, prediction), atol=2e-5)
    target = np.where((t_p == s)[:, None, None, None], z_p, jumped(z_p, target_out, np.maximum(t_p, 1), s, prediction))
    assert (t_p == s).any() or name == "forward"
    want = huber(jumped(z_t, online_out, t, s, prediction), target)
    np.testing.assert_allclose(loss, want, rtol=2e-3)


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_the_preservation_losses_by_hand(name):
    network = Recorder(linear)
    one = method(network, distance=l2)
    term = one.preserve_forward if name == "forward" else one.preserve_reverse
    loss = term(PARAMS, FROZEN, INPUTS, jax.random.key(2))
    (first, z, start, w, out), (second, carried, turn, w_2, back) = network.calls
    assert (first, second) == (("reverse", "forward") if name == "forward" else ("forward", "reverse"))
    assert not w.any() and not w_2.any()
    pairs = {(min(pair), max(pair)) for pair in zip(start.tolist(), turn.tolist(), strict=True)}
    assert pairs == {(19, 259), (259, 519), (519, 779), (779, 999)}
    assert (start > turn).all() if name == "forward" else (start < turn).all()
    np.testing.assert_allclose(carried, jumped(z, out, start, turn, "eps"), atol=1e-4)
    np.testing.assert_allclose(loss, np.mean((jumped(carried, back, turn, start, "eps") - z) ** 2), rtol=1e-3)
    noise = (z - level(start)[0] * np.asarray(INPUTS["latents"])) / level(start)[1]
    assert 0.6 < noise.std() < 1.4


@pytest.mark.parametrize("name", list(BOUNDARIES))
def test_a_constant_eps_is_preserved_and_consistent(name):
    """With the teacher's and both models' eps the same constant, every jump is exact."""

    def constant(params, z, t, context, **_):
        return jnp.full_like(z, 0.3)

    one = method(constant, boundaries=BOUNDARIES[name])
    terms = [one.preserve_forward, one.preserve_reverse, one.forward_consistency]
    for term in terms:
        assert term(PARAMS, FROZEN, INPUTS, jax.random.key(1)) < 1e-6
    drifting = method(lambda params, z, t, context, **_: 0.3 * z, boundaries=BOUNDARIES[name])
    assert drifting.preserve_forward(PARAMS, FROZEN, INPUTS, jax.random.key(1)) > 1e-3


def gradients(loss):
    """Of a function of PARAMS without their names: {'reverse': ..., 'forward': ...}."""
    values = {name: {k: v for k, v in tree.items() if k != "name"} for name, tree in PARAMS.items()}
    return jax.grad(loss)(values)


def test_each_term_moves_its_own_model_alone():
    one = method()
    for name, (model, _, term) in one.terms.items():
        grads = gradients(lambda p, term=term: term(p, FROZEN, INPUTS, jax.random.key(1)))
        for other in ("reverse", "forward"):
            moved = [float(leaf) != 0 for leaf in jax.tree.leaves(grads[other])]
            assert all(moved) if other == model else not any(moved), (name, other)
    assert {name: model for name, (model, *_) in one.terms.items()} == {
        "reverse_cd": "reverse", "forward_cd": "forward",
        "forward_preservation": "forward", "reverse_preservation": "reverse",
    }  # fmt: skip


def test_the_target_is_not_differentiated():
    """Against the same loss with the target's weights held apart: only the online jump carries a gradient."""
    one = method(scales=(1.0,), distance=l2)
    network = Recorder(linear)
    recorded = method(network, scales=(1.0,), distance=l2)
    recorded.reverse_consistency(PARAMS, FROZEN, INPUTS, jax.random.key(1))
    (_, z_t, t, *_), (_, z_p, t_p, _, target_out), _ = network.calls
    s = np.array([max(b for b in (0, 259, 519, 779) if b <= time) for time in t_p])
    target = np.where((t_p == s)[:, None, None, None], z_p, jumped(z_p, target_out, np.maximum(t_p, 1), s, "eps"))
    (alpha, sigma), (alpha_s, sigma_s) = level(t), level(s)
    out = linear({"a": 0.3, "b": 0.1}, z_t, t, np.asarray(CONTEXT), timestep_cond=np.full((SHAPE[0], 2), 0.5))
    error = jumped(z_t, np.asarray(out), t, s, "eps") - target
    c_out = sigma_s - alpha_s * sigma / alpha
    want = {"a": np.mean(2 * error * c_out * z_t), "b": np.mean(2 * error * c_out)}
    got = gradients(lambda p: one.reverse_consistency(p, FROZEN, INPUTS, jax.random.key(1)))["reverse"]
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=2e-3)


def test_joint_and_alternating_forms():
    joint, rng, step = method(), jax.random.key(1), jnp.asarray(0)
    loss, terms = joint.loss(PARAMS, FROZEN, BATCH, rng, step)
    assert list(terms) == ["reverse_cd", "forward_cd", "forward_preservation", "reverse_preservation"]
    np.testing.assert_allclose(loss, sum(w * terms[k] for k, w in zip(terms, (1, 1, 1.5, 1.5), strict=True)), rtol=1e-6)
    assert len(joint.phases) == 1 and joint.phases[0].mask is None
    phases = dataclasses.replace(joint, alternating=True).phases
    masks = [phase.mask(PARAMS) for phase in phases]
    trained = [[name for name, keep in mask.items() if keep] for mask in masks]
    assert trained == [["reverse"], ["forward"], ["forward"], ["reverse"]]
    for phase, name, weight in zip(phases, terms, (1, 1, 1.5, 1.5), strict=True):
        loss, metrics = phase.loss(PARAMS, FROZEN, BATCH, rng, step)
        assert list(metrics) == [name]
        np.testing.assert_allclose(loss, weight * metrics[name], rtol=1e-6)


def test_ablations_train_what_their_losses_move():
    none = dict(reverse_weight=0.0, forward_weight=0.0, forward_preservation=0.0, reverse_preservation=0.0)
    reverse_only = method(**{**none, "reverse_weight": 1.0})
    assert reverse_only.trained == ("reverse",) and list(reverse_only.terms) == ["reverse_cd"]
    assert set(reverse_only.init(jax.random.key(0), {"teacher": {"unet": {"a": jnp.ones(())}}})) == {"reverse"}
    row_e = method(forward_weight=0.0, reverse_preservation=0.0)
    assert row_e.trained == ("forward", "reverse") and list(row_e.terms) == ["reverse_cd", "forward_preservation"]
    after = method(**{**none, "forward_weight": 1.0, "forward_preservation": 1.5})
    split = {"forward": PARAMS["forward"]}, {**FROZEN, "reverse": PARAMS["reverse"]}
    rng = jax.random.key(1)
    np.testing.assert_array_equal(
        after.loss(*split, BATCH, rng, jnp.asarray(0))[0], after.loss(PARAMS, FROZEN, BATCH, rng, jnp.asarray(0))[0]
    )
    with pytest.raises(ValueError, match="nothing would be trained"):
        method(**none)


def test_boundaries_that_cannot_be_learnt_are_refused():
    with pytest.raises(ValueError, match=r"\[249\] are not on the solver grid 19, .*, or another grid_steps than 50"):
        method(boundaries=Boundaries(reverse=(249, 499, 699, 999), forward=(19, 249, 499, 699)))
    with pytest.raises(ValueError, match="must ascend and end at 999"):
        method(boundaries=Boundaries(reverse=(519, 779), forward=(19, 519)))
    with pytest.raises(ValueError, match="forward boundaries"):
        method(boundaries=Boundaries(reverse=(519, 999), forward=(19, 259)))
    for steps in (0, 1, 30):
        with pytest.raises(ValueError, match=f"grid_steps={steps} does not divide 1000 timesteps into equal steps"):
            method(grid_steps=steps)
    assert method(boundaries=Boundaries(reverse=(199, 999), forward=(19, 199))).trained == ("forward", "reverse")


@pytest.fixture(scope="module")
def real():
    """(bundle, frozen, inputs) of a UNet of width 16 that reads w, its projection not zero."""
    unet = make_unet(UNET)

    def denoise(params, z, t, context, *, added_cond=None, timestep_cond=None):
        return unet.apply({"params": params}, z, t, context, timestep_cond)

    shapes = jax.eval_shape(lambda key: init_unet(unet, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
    inputs = {"image": jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)}
    inputs["context"] = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
    return bundle(denoise), {"teacher": {"unet": drawn}, "vae": {}, "text": {}}, inputs


def test_fresh_adapters_are_the_teacher_and_only_they_are_trained(real):
    model, frozen, batch = real
    one = ICD(model=model, lora=LoraSpec(rank=2, alpha=1))
    params = one.init(jax.random.key(0), frozen)
    assert all(set(pair) == {"a", "b"} for tree in params.values() for pair in tree.values())
    z, t, w = batch["image"], jnp.array([259, 999]), jnp.array([1.0, 8.0])
    evaluate = jax.jit(lambda p: [one.network(p, frozen, batch, n)(z, t, w) for n in ("teacher", "reverse", "forward")])
    teacher, reverse, forward = evaluate(params)
    np.testing.assert_allclose(teacher, reverse, atol=1e-5)
    np.testing.assert_allclose(teacher, forward, atol=1e-5)
    nudged = {**params, "forward": jax.tree.map(lambda x: x + 0.05, params["forward"])}
    teacher, reverse, forward = evaluate(nudged)
    np.testing.assert_allclose(teacher, reverse, atol=1e-5)
    assert np.abs(forward - teacher).max() > 1e-3


def test_the_cost_of_each_term_in_forwards(real):
    model, frozen, batch = real
    t, w = jnp.zeros((2,), jnp.int32), jnp.zeros((2, 512))
    args = (frozen["teacher"]["unet"], batch["image"], t, batch["context"])
    forward = count_flops(lambda *args: model.denoise(*args, timestep_cond=w), *args).total
    inputs = {"latents": batch["image"], "context": batch["context"]}

    def cost(one, name):
        model_name, _, term = one.terms[name]
        params = jax.eval_shape(lambda: one.init(jax.random.key(0), frozen))

        def step(trained, params, frozen, inputs):
            loss = lambda p: term({**params, model_name: p}, frozen, inputs, jax.random.key(0))  # noqa: E731
            return jax.value_and_grad(loss)(trained)

        return count_flops(step, params[model_name], params, frozen, inputs).total / forward

    def whole(one):
        params = jax.eval_shape(lambda: one.init(jax.random.key(0), frozen))

        def step(params, frozen, inputs):
            loss = lambda p: one.loss(p, frozen, inputs, jax.random.key(0), jnp.zeros((), jnp.int32))[0]  # noqa: E731
            return jax.value_and_grad(loss)(params)

        return count_flops(step, params, frozen, batch).total / forward

    full, low = (ICD(model=model, lora=one) for one in (None, LoraSpec(rank=1, alpha=1, targets=ATTENTION_TARGETS)))
    terms = {"reverse_cd": 5, "forward_cd": 5, "forward_preservation": 4, "reverse_preservation": 4}
    for name, want in terms.items():
        assert want - 0.02 < cost(full, name) < want, name
        assert want - 1.12 < cost(low, name) < want - 1, "the layers before the first adapted one have no gradient"
    assert 18 - 0.08 < whole(full) < 18 and 14 - 0.48 < whole(low) < 14
