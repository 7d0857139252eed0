"""The autoencoder's loss in closed form, and the normalisation that must not change its reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sdd_jax.models.towers import TowerConfig, apply_tower, init_tower
from sdd_jax.models.vae import AutoencoderKL, VAEConfig, posterior
from sdd_jax.objectives.autoencoder import Autoencoder, normalise_latents

TOWER = TowerConfig(widths=(4, 4), strides=(2, 2), outputs=3, groups=2, image_size=8)
pytestmark = pytest.mark.usefixtures("compile_quickly")
MEAN, LOGVAR = np.asarray([0.5, -1.0, 2.0]), np.asarray([0.0, -2.0, -4.0])


def method(**weights):
    """An 'autoencoder' that says the same moments everywhere and decodes to `params['gain']` times the latents."""

    def moments(params, image):
        row = jnp.concatenate([jnp.asarray(MEAN, jnp.float32), jnp.asarray(LOGVAR, jnp.float32)])
        return jnp.broadcast_to(row, (*image.shape[:3], 6))

    decode = lambda params, z: params["gain"] * z  # noqa: E731
    return Autoencoder(
        init_vae=lambda rng: {"gain": jnp.ones(())}, moments=moments, decode=decode, tower=TOWER, **weights
    )


@pytest.fixture(scope="module")
def classifier():
    return jax.jit(lambda key: init_tower(key, TOWER))(jax.random.key(0))


def test_every_term_is_its_closed_form(classifier, monkeypatch):
    image = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1)
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(noise).reshape(shape))
    autoencoder = method(perceptual_weight=0.3, kl_weight=0.01, perceptual_maps=1)
    loss, metrics = autoencoder.loss(
        {"gain": jnp.asarray(0.5)}, {"classifier": classifier}, {"image": image}, jax.random.key(2), jnp.asarray(0)
    )
    recon = 0.5 * (MEAN + np.exp(LOGVAR / 2) * noise)
    error = np.asarray(image) - recon
    kl = np.mean(0.5 * (MEAN**2 + np.exp(LOGVAR) - 1 - LOGVAR))
    truth, found = (apply_tower(TOWER, classifier, jnp.asarray(x, jnp.float32))[1][0] for x in (image, recon))
    perceptual = float(jnp.mean((truth - found) ** 2))
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(metrics["l1"], np.abs(error).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["psnr"], 10 * np.log10(4 / np.mean(error**2)), rtol=1e-4)
    np.testing.assert_allclose(metrics["perceptual"], perceptual, rtol=1e-4)
    want = np.abs(error).mean() + np.mean(error**2) + 0.3 * perceptual + 0.01 * kl
    np.testing.assert_allclose(loss, want, rtol=1e-4)


def test_normalised_latents_decode_to_the_same_image():
    network = AutoencoderKL(VAEConfig.from_json({**tiny.VAE, "block_out_channels": [8], "sample_size": 8,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}))  # fmt: skip
    image = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3), minval=-1)
    params = jax.jit(lambda key: network.init(key, image))(jax.random.key(0))["params"]
    # moments far from zero mean and unit variance in every channel
    bias = jnp.asarray([3.0, -2.0, 0.5, 0.0, -1.0, 0.0, 1.0, -3.0])
    params["quant_conv"] = {"kernel": 2.0 * params["quant_conv"]["kernel"], "bias": bias}

    @jax.jit
    def run(params):
        moments = network.apply({"params": params}, image, method="encode")
        mean, std = posterior(moments)
        return mean, std, network.apply({"params": params}, mean, method="decode")

    mean, std, recon = run(params)
    axes = (0, 1, 2)
    centre = mean.mean(axes)
    spread = jnp.sqrt((mean**2 + std**2).mean(axes) - centre**2)
    mean_n, std_n, recon_n = run(normalise_latents(params, centre, spread))
    np.testing.assert_allclose(recon_n, recon, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mean_n.mean(axes), 0.0, atol=1e-4)
    np.testing.assert_allclose((mean_n**2 + std_n**2).mean(axes), 1.0, rtol=1e-3)
    assert float(jnp.abs(centre).max()) > 1
