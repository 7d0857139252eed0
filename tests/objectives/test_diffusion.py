"""Plain diffusion: the weights' closed forms, caption dropout, and the network that knows the answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.objectives.diffusion import Diffusion
from sdd_jax.types import ModelBundle

ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
SCALE = 0.5


def make_model(denoise, prediction):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    return ModelBundle(**{
        **fields, "denoise": denoise, "prediction": prediction, "alphas_cumprod": ACP, "latent_scale": SCALE,
    })  # fmt: skip


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(64, 2, 2, 3))
    return {
        "moments": jnp.asarray(np.concatenate([mean, np.full_like(mean, -30.0)], -1), jnp.float32),
        "context": jnp.asarray(rng.normal(size=(64, 4, 5)), jnp.float32),
    }


FROZEN = {"null_context": jnp.full((1, 4, 5), -7.0)}


def run(method, batch, key=1):
    return method.loss({"unet": {}}, FROZEN, batch, jax.random.key(key), jnp.asarray(0))


def blank(record):
    """A network that says zero and keeps what it was asked."""

    def denoise(params, z, t, context, *, added_cond=None):
        record.append((np.asarray(z, np.float64), np.asarray(t), np.asarray(context)))
        return jnp.zeros_like(z)

    return denoise


@pytest.mark.parametrize("gamma", [None, 5.0, 0.7])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_weights_and_targets_are_the_closed_forms(batch, prediction, gamma):
    calls = []
    method = Diffusion(
        model=make_model(blank(calls), prediction), init_unet=lambda rng: {}, min_snr_gamma=gamma, caption_dropout=0.0
    )
    loss, metrics = run(method, batch)
    ((z, t, _),) = calls
    acp = ACP[t].astype(np.float64)
    alpha, sigma = np.sqrt(acp)[:, None, None, None], np.sqrt(1 - acp)[:, None, None, None]
    x0 = np.asarray(batch["moments"], np.float64)[..., :3] * SCALE
    eps = (z - alpha * x0) / sigma
    assert abs(eps.mean()) < 0.15 and abs(eps.std() - 1) < 0.1 and len(set(t.tolist())) > 40
    target = {"eps": eps, "v": alpha * eps - sigma * x0, "x0": x0}[prediction]
    errors = np.mean(target**2, (1, 2, 3))
    snr = acp / (1 - acp)
    weight = {"eps": np.minimum(snr, gamma or np.inf) / snr, "v": np.minimum(snr, gamma or np.inf) / (snr + 1),
              "x0": np.minimum(snr, gamma or np.inf)}[prediction]  # fmt: skip
    want = errors.mean() if gamma is None else np.mean(weight * errors)
    np.testing.assert_allclose(loss, want, rtol=1e-3)
    np.testing.assert_allclose(metrics["mse"], errors.mean(), rtol=1e-3)
    assert gamma is None or abs(float(loss) / errors.mean() - 1) > 1e-2


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_oracle_has_no_loss(batch, prediction):
    x0 = batch["moments"][..., :3] * SCALE

    def oracle(params, z, t, context, *, added_cond=None):
        at = Schedule(ACP).at(t)
        eps = (z - at.alpha * x0) / at.sigma
        return {"eps": eps, "v": at.alpha * eps - at.sigma * x0, "x0": x0}[prediction]

    method = Diffusion(model=make_model(oracle, prediction), init_unet=lambda rng: {}, min_snr_gamma=5.0)
    assert run(method, batch)[0] < 1e-6


@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0, 0), (0.5, 18, 46), (1.0, 64, 64)])
def test_dropped_captions_are_exactly_the_empty_one(batch, rate, low, high):
    calls = []
    method = Diffusion(model=make_model(blank(calls), "eps"), init_unet=lambda rng: {}, caption_dropout=rate)
    run(method, batch)
    seen = calls[0][2]
    dropped = np.all(seen == -7.0, (1, 2))
    assert low <= dropped.sum() <= high
    np.testing.assert_array_equal(seen[~dropped], np.asarray(batch["context"])[~dropped])


def test_latents_are_drawn_from_the_posterior(batch):
    calls = []
    method = Diffusion(model=make_model(blank(calls), "x0"), init_unet=lambda rng: {})
    wide = {**batch, "moments": jnp.concatenate([jnp.zeros((64, 2, 2, 3)), jnp.full((64, 2, 2, 3), 2.0)], -1)}
    loss, _ = run(method, wide)
    np.testing.assert_allclose(loss, (SCALE * np.exp(1.0)) ** 2, rtol=0.2)  # E x0^2 = (scale std)^2
