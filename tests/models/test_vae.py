"""The autoencoder against diffusers' on random weights, and the posterior against its definition."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_parity import nchw, relative_error

from sdd_jax.models import convert
from sdd_jax.models.vae import AutoencoderKL, VAEConfig, latents_of, posterior

SMALL = dict(block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=1)
LEVELS = dict(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)


@pytest.mark.parametrize(
    "fields",
    [
        dict(SMALL, latent_channels=4),
        dict(
            SMALL,
            block_out_channels=(8, 16),
            layers_per_block=2,
            latent_channels=3,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
    ],
)
def test_encode_and_decode_match_diffusers(fields):
    levels = {name: types[: len(fields["block_out_channels"])] for name, types in LEVELS.items()}
    oracle = diffusers.AutoencoderKL(**levels, **fields).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in oracle.named_parameters():
            p.copy_(
                float("norm" in name and name.endswith("weight")) + 0.15 * torch.randn(p.shape, generator=generator)
            )
    config = VAEConfig.from_json(dict(oracle.config))
    model = AutoencoderKL(config)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 24, 16, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    state = {k: v.numpy() for k, v in oracle.state_dict().items()}
    variables = {"params": convert.match(convert.torch_to_flax(state), shapes, "oracle")}

    moments = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, image)
    latents = np.asarray(moments[..., : config.latent_channels])
    decoded = jax.jit(lambda v, z: model.apply(v, z, method="decode"))(variables, latents)
    with torch.no_grad():
        dist = oracle.encode(nchw(image)).latent_dist
        want = oracle.decode(nchw(latents)).sample
    assert moments.shape == (2, 24 // config.downsampling, 16 // config.downsampling, 2 * config.latent_channels)
    assert relative_error(moments, dist.parameters) < 1e-4 and relative_error(decoded, want) < 1e-4
    mean, std = posterior(moments)
    np.testing.assert_allclose(mean, dist.mean.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(std, dist.std.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


def test_latents_are_the_scaled_mean_or_a_draw():
    moments = jnp.stack([jnp.full((4, 64, 64), 3.0), jnp.full((4, 64, 64), 2 * np.log(0.5))], -1)
    np.testing.assert_allclose(latents_of(moments, 0.2), 0.6, rtol=1e-6)
    draw = np.asarray(latents_of(moments, 0.2, jax.random.key(0)))
    assert abs(draw.mean() - 0.6) < 0.003 and abs(draw.std() - 0.1) < 0.003
    extreme = jnp.asarray([0.0, 0.0, -90.0, 90.0]).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(posterior(extreme)[1].ravel(), [np.exp(-15), np.exp(10)], rtol=1e-5)


@pytest.mark.parametrize(
    "field,value",
    [
        ("shift_factor", 0.1),
        ("latents_mean", [0.0] * 4),
        ("act_fn", "gelu"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 3),
        ("_class_name", "AutoencoderTiny"),
        ("brand_new_option", 3),
    ],
)
def test_unsupported_config_is_named(field, value):
    with pytest.raises(ValueError, match=f"here/config.json.*{field}"):
        VAEConfig.from_json({**SMALL, field: value}, "here/config.json")


def test_harmless_config_fields_are_read_over():
    config = VAEConfig.from_json(
        {**SMALL, **LEVELS, "_diffusers_version": "0.1", "shift_factor": None, "force_upcast": 1}
    )
    assert config == VAEConfig(**SMALL) and config.downsampling == 4


def test_an_image_that_does_not_divide_is_refused():
    model = AutoencoderKL(VAEConfig(**SMALL))
    with pytest.raises(ValueError, match="10x8 pixels.*divide by 4"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 10, 8, 3)))
