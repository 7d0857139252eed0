"""F by formula: published figures, and what the network's trace counts; the other parts of SD 1.5 by their traces."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch_parity

from sdd_jax.models.bundle import make_bundle, part_shapes
from sdd_jax.models.controlnet import init_controlnet, make_controlnet
from sdd_jax.models.published import PUBLISHED
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.models.unet_flops import unet_flops
from sdd_jax.training.flops import count_flops

SD15 = PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 0.803),
        ("stabilityai/stable-diffusion-2-1", 2.15),
        ("stabilityai/stable-diffusion-xl-base-1.0", 6.76),
    ],
)
def test_published_figures(name, tera):
    config = PUBLISHED[name]["unet"]
    assert unet_flops(config, *[config["sample_size"]] * 2).total == pytest.approx(tera * 1e12, rel=1e-3)


def test_the_kinds_of_sd15():
    assert [round(part / 1e12, 3) for part in unet_flops(SD15["unet"], 64, 64)] == [0.418, 0.259, 0.122, 0.004]


def test_the_controlnet_of_sd15():
    """.27 TFLOP for the encoder's copy and the zero convolutions; the picture's embedding comes on top."""
    controlnet = make_controlnet(SD15["unet"])
    params = jax.eval_shape(functools.partial(init_controlnet, controlnet), jax.random.key(0))
    picture, t = f32(1, 512, 512, 3), jax.ShapeDtypeStruct((1,), jnp.int32)

    def run(params, *inputs, method="__call__"):
        return controlnet.apply({"params": params}, *inputs, method=method)

    whole = count_flops(run, params, f32(1, 64, 64, 4), t, f32(1, 77, 768), picture).total
    embedding = count_flops(functools.partial(run, method="embed"), params, picture).total
    assert round((whole - embedding) / 1e12, 2) == 0.27 and round(embedding / 1e12, 3) == 0.015


def test_the_autoencoder_of_sd15_at_512_pixels():
    bundle, params = make_bundle(SD15, list), part_shapes(SD15, "vae")
    assert round(count_flops(bundle.moments, params, f32(1, 512, 512, 3)).total / 1e12, 2) == 1.12
    assert round(count_flops(bundle.decode, params, f32(1, 64, 64, 4)).total / 1e12, 1) == 2.5


@pytest.mark.parametrize("family", ["SD15", "LCM", "SDXL"])
def test_the_formula_is_the_networks_trace(family):
    config = getattr(torch_parity, family)
    unet = make_unet(config)
    params = jax.eval_shape(lambda key: init_unet(unet, key), jax.random.key(0))
    arguments = torch_parity.inputs(config, (12, 10))
    arguments.pop("condition")

    def forward(params, arguments):
        return unet.apply({"params": params}, **arguments)

    traced = count_flops(forward, params, jax.tree.map(jnp.asarray, arguments))
    formula = unet_flops(config, 12, 10, tokens=7)
    batch = 2
    assert traced.total == batch * formula.total
    assert traced.conv < batch * formula.conv, "1x1 shortcuts run as products"
