"""F by formula: the published models' figures, and equality with what the network's trace counts."""

import jax
import jax.numpy as jnp
import pytest
import torch_parity

from sdd_jax.models.published import PUBLISHED
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.models.unet_flops import unet_flops
from sdd_jax.training.flops import count_flops


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
    config = PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]["unet"]
    assert [round(part / 1e12, 3) for part in unet_flops(config, 64, 64)] == [0.418, 0.259, 0.122, 0.004]


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
