"""Conditional fine-tuning: the loss by hand, times drawn, captions dropped, the embedding regressed, guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.parameterization import PREDICTIONS
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.models.adapters import ControlNetAdapter, NoAdapter
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.types import ModelBundle, Residuals

ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
SHAPE = (6, 4, 4, 2)


class Echo:
    """An adapter whose only residual is gain times the condition."""

    def init(self, rng, unet):
        return {"gain": jnp.ones(())}

    def prepare(self, frozen, condition):
        return condition

    def residuals(self, params, hint, z_t, t, context, added_cond=None):
        return Residuals((params["gain"] * hint,), None)


def network(params, z, t, context, *, added_cond=None, residuals=None):
    hint = 0.0 if residuals is None else residuals.down[0]
    return params["a"] * z + hint + context.mean((1, 2))[:, None, None, None]


def make_model(denoise=network, prediction="eps"):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    own = {"denoise": denoise, "encode": lambda vae, x, rng=None: x, "prediction": prediction, "alphas_cumprod": ACP}
    return ModelBundle(**{**fields, **own})


class Recorder:
    """Keeps what a network was asked (outside of jit)."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, z, t, context, **rest):
        self.calls.append((np.asarray(z), np.asarray(t), np.asarray(context)))
        return network(params, z, t, context, **rest)


PARAMS = {"unet": {"a": jnp.asarray(0.3)}, "adapter": {"gain": jnp.asarray(0.5)}}
FROZEN = {"teacher": {"unet": {"a": jnp.asarray(0.9)}}, "vae": {}, "text": {}, "null_context": jnp.full((1, 3, 5), 9.0)}


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"image": draw(*SHAPE), "condition": draw(*SHAPE), "context": draw(SHAPE[0], 3, 5)}


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_loss_is_the_error_of_the_networks_own_prediction(batch, prediction):
    seen = Recorder()
    method = ConditionalDiffusion(model=make_model(seen, prediction), adapter=Echo())
    loss, metrics = method.loss(PARAMS, FROZEN, batch, jax.random.key(1), jnp.asarray(0))
    ((z, t, context),) = seen.calls
    level = Schedule(ACP).at(jnp.asarray(t))
    x = batch["image"]
    eps = (z - level.alpha * x) / level.sigma
    assert abs(float(eps.std()) - 1) < 0.1
    target = {"eps": eps, "v": level.alpha * eps - level.sigma * x, "x0": x}[prediction]
    out = network(PARAMS["unet"], z, t, context) + 0.5 * batch["condition"]
    np.testing.assert_allclose(loss, np.mean((target - out) ** 2), rtol=1e-3)
    x_hat = PREDICTIONS[prediction].x0(out, jnp.asarray(z), level)
    np.testing.assert_allclose(metrics["reconstruction"], np.mean((x - x_hat) ** 2), rtol=1e-3)


def test_truncated_snr_weighs_the_error_of_x0(batch):
    """eps's error e is x0's error (sigma / alpha) e: weighed by max(SNR, 1) it counts once where SNR > 1 and 1 / SNR
    times below, 214 times at t = 999. A network that answers 0 has the error eps."""
    seen = Recorder()

    def silent(params, z, t, context, **rest):
        return 0.0 * seen(params, z, t, context, **rest)

    many = {name: jnp.tile(value, (8, *[1] * (value.ndim - 1))) for name, value in batch.items()}
    losses = {}
    for weighting in ("plain", "truncated_snr"):
        method = ConditionalDiffusion(model=make_model(silent), adapter=Echo(), grid_steps=4, weighting=weighting)
        losses[weighting], metrics = method.loss(PARAMS, FROZEN, many, jax.random.key(1), jnp.asarray(0))
    z, t, _ = seen.calls[-1]
    snr = ACP[t] / (1 - ACP[t])
    assert set(t) == {999, 749, 499, 249} and 1 / snr[t == 999][0] == pytest.approx(213.6, rel=1e-2)
    level = Schedule(ACP).at(jnp.asarray(t))
    errors = np.mean(((z - level.alpha * many["image"]) / level.sigma) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses["plain"], errors.mean(), rtol=1e-4)
    np.testing.assert_allclose(losses["truncated_snr"], np.mean(errors * np.maximum(1, 1 / snr)), rtol=1e-3)
    np.testing.assert_allclose(metrics["reconstruction"], np.mean(errors / snr), rtol=1e-3)
    with pytest.raises(ValueError, match="weighting='snr' is not known; use plain, truncated_snr"):
        ConditionalDiffusion(model=make_model(), adapter=Echo(), weighting="snr")


def test_times_are_those_of_the_grid(batch):
    many = {name: jnp.tile(value, (40, *[1] * (value.ndim - 1))) for name, value in batch.items()}
    for count in (4, 1000):
        seen = Recorder()
        method = ConditionalDiffusion(model=make_model(seen), adapter=Echo(), grid_steps=count)
        method.loss(PARAMS, FROZEN, many, jax.random.key(1), jnp.asarray(0))
        found = set(seen.calls[0][1].tolist())
        assert found <= set(trailing_grid(count).tolist()) and len(found) > min(3, count - 1)


def test_a_share_of_the_captions_is_dropped(batch):
    many = {name: jnp.tile(value, (200, *[1] * (value.ndim - 1))) for name, value in batch.items()}
    seen = Recorder()
    method = ConditionalDiffusion(model=make_model(seen), adapter=Echo(), caption_dropout=0.25)
    method.loss(PARAMS, FROZEN, many, jax.random.key(1), jnp.asarray(0))
    dropped = np.all(seen.calls[0][2] == 9.0, axis=(1, 2))
    assert 0.2 < dropped.mean() < 0.3


def test_without_an_adapter_there_is_no_condition(batch):
    seen = Recorder()
    method = ConditionalDiffusion(model=make_model(seen), adapter=NoAdapter())
    params = method.init(jax.random.key(0), FROZEN)
    assert params["adapter"] == {} and params["unet"]["a"] == pytest.approx(0.9)
    blind = {name: value for name, value in batch.items() if name != "condition"}
    loss, _ = method.loss(params, FROZEN, blind, jax.random.key(1), jnp.asarray(0))
    assert np.isfinite(loss)


def test_guided_predictions_keep_the_image_condition_in_both_branches(batch):
    """cond 2, uncond 1, w 3 -> 4, on top of a condition that guidance leaves alone."""
    method = ConditionalDiffusion(model=make_model(), adapter=Echo())
    z, t = jnp.zeros(SHAPE), jnp.zeros(SHAPE[0], jnp.int32)
    readable = {**FROZEN, "null_context": jnp.ones((1, 3, 5))}
    text = (jnp.full((SHAPE[0], 3, 5), 2.0), None)
    found = method.predict(PARAMS, readable, batch["condition"], z, t, text, jnp.float32(3.0))
    np.testing.assert_allclose(found, 4.0 + 0.5 * batch["condition"], rtol=1e-5, atol=1e-5)
    plain = method.pretrained(readable, z, t, text, jnp.float32(3.0))
    np.testing.assert_allclose(plain, 4.0, rtol=1e-6)


def test_a_dropped_caption_loses_its_pooled_state_too(batch):
    """SDXL's second reading of the prompt: the same samples lose both, and all keep their sizes."""
    seen = []

    def denoise(params, z, t, context, *, added_cond=None, residuals=None):
        seen.append((np.asarray(context), jax.tree.map(np.asarray, added_cond)))
        return z

    model = dataclasses.replace(make_model(denoise), sample_size=16, downsampling=4)
    many = {name: jnp.tile(value, (50, *[1] * (value.ndim - 1))) for name, value in batch.items()}
    many["pooled"] = jnp.ones((len(many["image"]), 7))
    frozen = {**FROZEN, "null_pooled": jnp.full((1, 7), -1.0)}
    method = ConditionalDiffusion(model=model, adapter=Echo(), caption_dropout=0.25)
    method.loss(PARAMS, frozen, many, jax.random.key(1), jnp.asarray(0))
    ((context, added),) = seen
    dropped = np.all(context == 9.0, axis=(1, 2))
    assert 0 < dropped.sum() < len(dropped)
    np.testing.assert_array_equal(added["text_embeds"], np.where(dropped[:, None], -1.0, np.ones((1, 7))))
    np.testing.assert_array_equal(added["time_ids"], np.tile([64.0, 64, 0, 0, 64, 64], (len(dropped), 1)))


class Embedding(ControlNetAdapter):
    """A ControlNet whose embedding is a constant."""

    def prepare(self, frozen, condition):
        return condition

    def embed(self, params, hint):
        return jnp.full((*hint.shape[:3], 5), params["gain"])

    def residuals(self, params, hint, z_t, t, context, added_cond=None):
        return None


def test_the_embedding_is_regressed_as_ccds_is(batch):
    """All of an all-zero embedding is missed, |0 - K x|^2 / |K x|^2 = 1; with the weight 0 nothing is added."""
    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3, 2, 5)), jnp.float32)
    frozen = {**FROZEN, "teacher": {"unet": {**FROZEN["teacher"]["unet"], "conv_in": {"kernel": kernel}}}}
    params = {**PARAMS, "adapter": {"gain": jnp.zeros(())}}
    losses = {}
    for weight in (0.0, 0.5):
        method = ConditionalDiffusion(model=make_model(), adapter=Embedding(config={}), hint_weight=weight)
        losses[weight], metrics = method.loss(params, frozen, batch, jax.random.key(1), jnp.asarray(0))
        assert ("hint" in metrics) == bool(weight)
    np.testing.assert_allclose(losses[0.5] - losses[0.0], 0.5, atol=1e-5)
    with pytest.raises(ValueError, match="hint_weight=1.0 trains a ControlNet's embedding"):
        ConditionalDiffusion(model=make_model(), adapter=Echo(), hint_weight=1.0)
