"""The UNet against PyTorch diffusers, and the identities that adapters and editing rely on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_parity as parity
from diffusers import UNet2DConditionModel as TorchUNet

from sdd_jax.models.attention import AttentionEdit
from sdd_jax.models.blocks import DownBlock2D
from sdd_jax.models.unet import apply_residuals, init_unet, make_unet
from sdd_jax.types import Residuals

TINY = parity.SD21 | {"block_out_channels": [8, 16], "norm_num_groups": 4, "cross_attention_dim": 6}


@functools.cache
def tiny() -> tuple[Any, Any, dict[str, Any]]:
    """A small UNet, random parameters and inputs."""
    unet = make_unet(TINY)
    made = parity.inputs(TINY, (4, 4))
    made.pop("condition")
    shapes = jax.eval_shape(functools.partial(init_unet, unet), jax.random.key(0))
    return unet, jax.tree.map(jnp.asarray, parity.random_params(shapes, seed=0)), made


@functools.cache
def tiny_prediction() -> jax.Array:
    unet, params, made = tiny()
    return jax.jit(unet.apply)({"params": params}, **made)


@pytest.mark.parametrize(
    ("config", "size"),
    [(parity.SD15, (8, 8)), (parity.SD21, (9, 7)), (parity.LCM, (8, 6)), (parity.SDXL, (8, 12))],
    ids=["sd15", "sd21-odd", "lcm", "sdxl"],
)
def test_matches_diffusers_on_random_weights(config: dict[str, Any], size: tuple[int, int]) -> None:
    theirs = TorchUNet.from_config(config)
    params = parity.randomise(theirs, seed=1)
    made = parity.inputs(config, size)
    made.pop("condition")
    unet = make_unet(dict(theirs.config))
    shapes = jax.eval_shape(lambda: init_unet(unet, jax.random.key(0)))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)

    ours = jax.jit(unet.apply)({"params": params}, **made)
    with torch.no_grad():
        expected = theirs(**parity.torch_arguments(made)).sample
    assert parity.relative_error(ours, expected) <= 1e-4


def test_residuals_add_or_mix_and_mixing_by_zero_keeps_every_bit() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    h, mid, r = (jax.random.normal(key, (2, 3)) for key in keys)
    zero = apply_residuals((h,), mid, Residuals((r,), r, jnp.zeros(())))
    np.testing.assert_array_equal(zero[0][0], h)
    np.testing.assert_array_equal(zero[1], mid)
    added = apply_residuals((h,), mid, Residuals((r,), None))
    np.testing.assert_array_equal(added[0][0], h + r)
    np.testing.assert_array_equal(added[1], mid)
    mixed = apply_residuals((h,), mid, Residuals((r,), r, jnp.full((), 0.25)))
    np.testing.assert_allclose(mixed[1], 0.75 * mid + 0.25 * r, rtol=1e-6)
    assert apply_residuals((h.astype(jnp.bfloat16),), mid, Residuals((r,), r))[0][0].dtype == jnp.bfloat16


def test_mixed_encoder_is_silent_at_mu_zero_where_only_mu_learns() -> None:
    unet, params, made = tiny()
    copy = jax.tree.map(lambda p: p + 0.1, params)

    def loss(mu: jax.Array, adapter: Any) -> tuple[jax.Array, jax.Array]:
        features = unet.apply({"params": adapter}, **made, method="encode")
        prediction = unet.apply({"params": params}, **made, residuals=features._replace(mix=mu))
        return jnp.square(prediction).mean(), prediction

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, silent), (mu_grad, adapter_grad) = grad(jnp.zeros(()), copy)
    np.testing.assert_allclose(silent, tiny_prediction(), atol=2e-6)
    np.testing.assert_array_equal(silent, grad(jnp.zeros(()), params)[0][1])
    assert abs(float(mu_grad)) > 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(adapter_grad))

    (_, mixed), (_, adapter_grad) = grad(jnp.full((), 0.5), copy)
    assert float(jnp.abs(mixed - silent).max()) > 1e-3
    assert float(jnp.abs(adapter_grad["mid_block"]["resnets_0"]["conv1"]["kernel"]).max()) > 0
    np.testing.assert_allclose(grad(jnp.full((), 0.3), params)[0][1], silent, atol=2e-6)


def test_encoder_reads_only_the_encoders_parameters() -> None:
    unet, params, made = tiny()
    encoder = {name: value for name, value in params.items() if name.startswith(("conv_in", "time", "down", "mid"))}
    features = jax.eval_shape(lambda: unet.apply({"params": encoder}, **made, method="encode"))
    shapes = [tuple(leaf.shape[1:]) for leaf in features.down]
    assert shapes == [(4, 4, 8), (4, 4, 8), (2, 2, 8), (2, 2, 16)]
    assert features.mid.shape == (2, 2, 2, 16)


def test_neutral_edits_change_nothing_and_see_every_layer() -> None:
    unet, params, made = tiny()
    seen: dict[str, list[str]] = {"probs": [], "qkv": [], "features": []}

    def probs(probs: jax.Array, *, layer: str, is_cross: bool) -> jax.Array:
        assert layer.endswith("attn2") == is_cross
        assert probs.shape[1] == (4 if layer.startswith("mid_block") else 2), "heads per level"
        seen["probs"].append(layer)
        return probs

    def qkv(q: jax.Array, k: jax.Array, v: jax.Array, *, layer: str, is_cross: bool) -> tuple[jax.Array, ...]:
        seen["qkv"].append(layer)
        return q, k, v

    def features(h: jax.Array, *, layer: str) -> jax.Array:
        seen["features"].append(layer)
        return h

    edit = AttentionEdit(probs=probs, qkv=qkv, features=features)
    edited = jax.jit(lambda p: unet.apply({"params": p}, **made, attention_edit=edit))(params)
    np.testing.assert_allclose(edited, tiny_prediction(), atol=1e-6)
    assert seen["probs"] == seen["qkv"]
    places = ["down_blocks_0/attentions_0", "mid_block/attentions_0"] + [f"up_blocks_1/attentions_{i}" for i in (0, 1)]
    assert seen["probs"] == [f"{place}/transformer_blocks_0/{a}" for place in places for a in ("attn1", "attn2")]
    assert seen["features"][-1] == "up_blocks_1/resnets_1" and len(seen["features"]) == 8


def test_masactrl_as_an_edit_reaches_the_target_and_leaves_the_source() -> None:
    unet, params, made = tiny()

    def qkv(q: jax.Array, k: jax.Array, v: jax.Array, *, layer: str, is_cross: bool) -> tuple[jax.Array, ...]:
        return (q, k, v) if is_cross else (q, jnp.stack([k[0], k[0]]), jnp.stack([v[0], v[0]]))

    edited = jax.jit(lambda p: unet.apply({"params": p}, **made, attention_edit=AttentionEdit(qkv=qkv)))(params)
    plain = tiny_prediction()
    np.testing.assert_allclose(edited[0], plain[0], atol=1e-6)
    assert float(jnp.abs(edited[1] - plain[1]).max()) > 1e-4


def test_rematerialisation_keeps_gradients() -> None:
    x, temb, context = (
        jax.random.normal(jax.random.key(i), size) for i, size in enumerate([(1, 4, 4, 8), (1, 6), (1, 3, 6)])
    )
    shape: dict[str, Any] = dict(features=8, num_layers=1, heads=2, depths=(1,), num_groups=4, eps=1e-5)
    blocks = {remat: DownBlock2D(**shape, add_downsample=True, remat=remat) for remat in ("none", "dots", "block")}
    variables = parity.random_params(jax.eval_shape(blocks["none"].init, jax.random.key(0), x, temb, context), seed=0)

    def gradient(block: DownBlock2D) -> tuple[Any, str]:
        loss = jax.jit(jax.grad(lambda p: jnp.square(block.apply(p, x, temb, context)[0]).mean()))
        return loss(variables), loss.lower(variables).as_text()

    gradients, programs = zip(*map(gradient, blocks.values()), strict=True)
    for again in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, gradients[0])
    products = [text.count("stablehlo.dot_general") + text.count("stablehlo.convolution") for text in programs]
    assert products[0] == products[1] < products[2]


def test_bfloat16_compute_stays_close_and_returns_float32() -> None:
    unet, params, made = tiny()
    half = make_unet(TINY, dtype=jnp.bfloat16)
    prediction = jax.jit(half.apply)({"params": jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)}, **made)
    expected = tiny_prediction()
    assert prediction.dtype == jnp.float32
    assert 0 < float(jnp.linalg.norm(prediction - expected) / jnp.linalg.norm(expected)) < 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_embed_type", "projection"),
        ("encoder_hid_dim_type", "text_proj"),
        ("only_cross_attention", [True, False]),
        ("dual_cross_attention", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("attention_type", "gated"),
        ("mid_block_only_cross_attention", True),
        ("conv_in_kernel", 1),
        ("timestep_post_act", "silu"),
        ("act_fn", "gelu"),
        ("addition_embed_type", "text"),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("attention_head_dim", 7),
        ("layers_per_block", [1, 1, 1]),
        ("a_field_of_tomorrow", 1),
    ],
)
def test_unsupported_field_is_an_error_that_names_it(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        make_unet(TINY | {field: value})


def test_wrong_inputs_are_named() -> None:
    unet, params, made = tiny()

    def shape_of(**changed: Any) -> None:
        jax.eval_shape(lambda: unet.apply({"params": params}, **(made | changed)))

    with pytest.raises(ValueError, match="cross_attention_dim is 6"):
        shape_of(context=np.zeros((2, 3, 5), np.float32))
    with pytest.raises(ValueError, match="in_channels is 4"):
        shape_of(z=made["z"][..., :3])
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        shape_of(timestep_cond=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="1 skip residuals, the UNet 4"):
        shape_of(residuals=Residuals((jnp.asarray(made["z"]),), None))
    with pytest.raises(ValueError, match="added_cond"):
        xl = make_unet(parity.SDXL)
        jax.eval_shape(lambda: xl.init(jax.random.key(0), made["z"], made["t"], jnp.zeros((2, 3, 24))))
