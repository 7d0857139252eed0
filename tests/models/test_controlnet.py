"""ControlNet against PyTorch diffusers, alone and through the UNet it steers; its start from a UNet."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_parity as parity
from diffusers import ControlNetModel as TorchControlNet
from diffusers import UNet2DConditionModel as TorchUNet

from sdd_jax.models.controlnet import (
    ControlNetConditioningEmbedding,
    controlnet_params_from_unet,
    init_controlnet,
    make_controlnet,
)
from sdd_jax.models.unet import init_unet, make_unet


@pytest.mark.parametrize(
    ("config", "scale"), [(parity.SD15, 1.0), (parity.SD21, 0.5), (parity.SDXL, 0.7)], ids=["sd15", "sd21", "sdxl"]
)
def test_steers_the_unet_as_in_diffusers(config: dict[str, Any], scale: float) -> None:
    their_unet = TorchUNet.from_config(config)
    their_control = TorchControlNet.from_config(parity.control_config(config))
    unet_params, control_params = parity.randomise(their_unet, seed=1), parity.randomise(their_control, seed=2)
    unet, control = make_unet(dict(their_unet.config)), make_controlnet(dict(their_control.config))
    shapes = jax.eval_shape(lambda: init_controlnet(control, jax.random.key(0)))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, control_params)

    made = parity.inputs(config, (8, 8), condition_factor=4)
    condition = made.pop("condition")

    @jax.jit
    def steered(unet_params: Any, control_params: Any) -> Any:
        residuals = control.apply({"params": control_params}, **made, condition=condition, scale=scale)
        return residuals, unet.apply({"params": unet_params}, **made, residuals=residuals)

    residuals, prediction = steered(unet_params, control_params)
    arguments = parity.torch_arguments(made)
    with torch.no_grad():
        down, mid = their_control(
            **arguments, controlnet_cond=parity.nchw(condition), conditioning_scale=scale, return_dict=False
        )
        expected = their_unet(
            **arguments, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    for ours, theirs in zip([*residuals.down, residuals.mid], [*down, mid], strict=True):
        assert parity.relative_error(ours, theirs) <= 1e-4
    assert parity.relative_error(prediction, expected) <= 1e-4


def test_fresh_controlnet_is_silent_holds_the_unets_encoder_and_learns() -> None:
    config = parity.CONVOLUTIONAL
    unet, control = make_unet(config), make_controlnet(parity.control_config(config))
    unet_params = parity.random_params(jax.eval_shape(functools.partial(init_unet, unet), jax.random.key(0)), seed=0)
    init = functools.partial(init_controlnet, control)

    @jax.jit
    def initialise_own(key: jax.Array) -> dict[str, Any]:
        return {name: value for name, value in init(key).items() if name.startswith("controlnet")}

    key = jax.random.key(1)
    fresh = parity.random_params(jax.eval_shape(init, key), seed=1) | initialise_own(key)
    params = controlnet_params_from_unet(unet_params, fresh)
    for name in ("conv_in", "time_embedding", "down_blocks_0", "down_blocks_1", "mid_block"):
        jax.tree.map(np.testing.assert_array_equal, params[name], unet_params[name])
    assert params.keys() == fresh.keys()
    made = parity.inputs(config, (4, 4), condition_factor=4)

    @jax.jit
    def loss(params: Any) -> Any:
        residuals = control.apply({"params": params}, **made)
        return jnp.stack([jnp.sum(leaf) for leaf in [*residuals.down, residuals.mid]]).sum(), residuals

    (_, residuals), grads = jax.value_and_grad(loss, has_aux=True)(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(residuals))
    assert np.abs(grads["controlnet_mid_block"]["kernel"]).max() > 0
    assert np.abs(grads["controlnet_down_blocks_0"]["kernel"]).max() > 0


def test_start_from_another_shape_of_unet_is_an_error() -> None:
    wide = {"conv_in": {"kernel": np.zeros((3, 3, 4, 8))}}
    narrow = {"conv_in": {"kernel": np.zeros((3, 3, 4, 4))}}
    with pytest.raises(ValueError, match="conv_in/kernel"):
        controlnet_params_from_unet(wide, narrow)
    with pytest.raises(ValueError, match="no mid_block/resnets_0"):
        controlnet_params_from_unet(wide, {"mid_block": {"resnets_0": {}}})


def test_condition_of_the_wrong_size_and_unsupported_fields_are_errors() -> None:
    control = make_controlnet(parity.control_config(parity.SD15))
    made = parity.inputs(parity.SD15, (4, 4), condition_factor=8)
    with pytest.raises(ValueError, match=r"need \(16, 16, 3\)"):
        jax.eval_shape(lambda: control.init(jax.random.key(0), **made))
    for field, value in {"global_pool_conditions": True, "time_cond_proj_dim": 8, "class_embed_type": "x"}.items():
        with pytest.raises(ValueError, match=f"ControlNetModel config field {field}="):
            make_controlnet(parity.control_config(parity.SD15) | {field: value})


def test_bgr_reverses_the_conditions_channels() -> None:
    rgb, bgr = (
        make_controlnet(parity.control_config(parity.CONVOLUTIONAL) | {"controlnet_conditioning_channel_order": order})
        for order in ("rgb", "bgr")
    )
    params = parity.randomise(TorchControlNet.from_config(parity.control_config(parity.CONVOLUTIONAL)), seed=3)
    made = parity.inputs(parity.CONVOLUTIONAL, (4, 4), condition_factor=4)
    condition = made.pop("condition")
    mid = jax.jit(lambda p, image: rgb.apply({"params": p}, **made, condition=image).mid)
    reversed_mid = jax.jit(lambda p, image: bgr.apply({"params": p}, **made, condition=image).mid)(params, condition)
    np.testing.assert_allclose(mid(params, condition[..., ::-1]), reversed_mid, rtol=1e-5, atol=1e-6)
    assert np.abs(mid(params, condition) - reversed_mid).max() > 1e-3


def test_a_fresh_embedding_carries_the_conditions_contrast_to_its_last_layer() -> None:
    embedding = ControlNetConditioningEmbedding(64, (16, 32, 96, 256))
    condition = jax.random.uniform(jax.random.key(0), (4, 64, 64, 3))
    params = jax.jit(embedding.init)(jax.random.key(1), condition)
    _, kept = jax.jit(functools.partial(embedding.apply, capture_intermediates=True, mutable=["intermediates"]))(
        params, condition
    )
    last = jax.nn.silu(kept["intermediates"]["blocks_5"]["__call__"][0])
    assert 0.1 < float(jnp.std(last) / jnp.std(condition)) < 10.0
