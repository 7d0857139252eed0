"""The style autoencoder's loss in closed form, the gain that is only a learning rate, and the centred codes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.e4e import E4EConfig
from sdd_jax.models.irse import IRSEConfig
from sdd_jax.models.stylegan2 import StyleGAN2Config, make_generator
from sdd_jax.models.towers import TowerConfig, apply_tower, init_tower
from sdd_jax.objectives import style_autoencoder
from sdd_jax.objectives.style_autoencoder import StyleAutoencoder, centre_codes

pytestmark = pytest.mark.usefixtures("compile_quickly")
GENERATOR = StyleGAN2Config(
    size=32, style_dim=4, mapping_layers=0, channel_multiplier=1, channel_base=128, max_channels=6
)
METHOD = StyleAutoencoder(
    generator=GENERATOR,
    encoder=E4EConfig(
        num_ws=8, style_dim=4, side=32, body=IRSEConfig(units=(1,) * 4, widths=(4,) * 4, reduction=2, groups=2)
    ),
    tower=TowerConfig(widths=(4, 4), strides=(2, 2), outputs=3, groups=2, image_size=32),
    perceptual_weight=0.3,
    delta_weight=0.2,
    perceptual_maps=1,
    generator_gain=5.0,
)


def drawn(shapes):
    """Random parameters about as large as trained ones; compiling an initialiser takes far longer."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if leaf.ndim < 2:
            return 0.1 * values + (path[-1].key == "scale")
        if path[0].key == "generator":
            return values / METHOD.generator_gain
        return values / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def parts():
    """(parameters, frozen, image, params -> (codes, reconstruction, loss, metrics, gradient))."""
    rng = np.random.default_rng(1)
    tower = jax.eval_shape(lambda key: init_tower(key, METHOD.tower), jax.random.key(0))
    frozen = {"classifier": jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32), tower)}
    image = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def run(params):
        def loss(params):
            return METHOD.loss(params, frozen, {"image": image}, jax.random.key(3), jnp.asarray(0))

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        ws = METHOD.encode(params, image)
        recon = make_generator(GENERATOR).synthesis(METHOD.generator_params(params), ws)
        return ws, recon, value, metrics, gradient

    return drawn(jax.eval_shape(METHOD.init, jax.random.key(0), {})), frozen, image, run


@pytest.fixture(scope="module")
def found(parts):
    return parts[-1](parts[0])


def test_every_term_is_its_closed_form(parts, found):
    _, frozen, image, _ = parts
    ws, recon, loss, metrics, _ = found
    error = image - np.asarray(recon)
    truth, seen = (apply_tower(METHOD.tower, frozen["classifier"], x)[1][0] for x in (jnp.asarray(image), recon))
    perceptual = float(jnp.mean((truth - seen) ** 2))
    delta = np.mean((np.asarray(ws)[:, 1:] - np.asarray(ws)[:, :1]) ** 2)
    want = np.abs(error).mean() + np.mean(error**2) + 0.3 * perceptual + 0.2 * delta
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], 10 * np.log10(4 / np.mean(error**2)), rtol=1e-4)
    np.testing.assert_allclose(metrics["delta"], delta, rtol=1e-4)
    assert delta > 1e-4 and perceptual > 1e-6


def test_the_gain_is_a_unit_of_stored_weights(parts, monkeypatch):
    """Kernels and the input are stored divided by it and used multiplied; biases, strengths and noises are not."""
    params = parts[0]["generator"]
    used = METHOD.generator_params({"generator": params})
    for (path, stored), value in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(used), strict=True):
        gain = 5.0 if path[-1].key in ("kernel", "input") else 1.0
        np.testing.assert_allclose(value, gain * stored, rtol=1e-6, err_msg=jax.tree_util.keystr(path))
    monkeypatch.setattr(style_autoencoder, "init_generator", lambda rng, config: used)
    monkeypatch.setattr(style_autoencoder, "init_e4e", lambda rng, config: {})
    again = METHOD.init(jax.random.key(0), {})["generator"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, params)


def test_every_weight_but_the_noise_is_trained(found):
    for path, leaf in jax.tree_util.tree_leaves_with_path(found[-1]):
        name = jax.tree_util.keystr(path)
        if "'se'" in name:
            continue  # a gate's two hidden units may both be off
        assert bool(jnp.any(leaf != 0)) != ("noise" in name), name


def test_centred_codes(parts, found):
    """The codes lose their mean, code by code."""
    params, run, ws = parts[0], parts[-1], found[0]
    mean = ws.mean(0)
    centred = run({**params, "encoder": centre_codes(params["encoder"], mean)})[0]
    np.testing.assert_allclose(centred, ws - mean[None], atol=1e-5)
    assert float(jnp.abs(mean).max()) > 0.01


def test_networks_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"the encoder gives codes \(8, 4\), G reads \(6, 4\)"):
        dataclasses.replace(METHOD, generator=dataclasses.replace(GENERATOR, size=16))
    with pytest.raises(ValueError, match="generator_gain=0"):
        dataclasses.replace(METHOD, generator_gain=0.0)
