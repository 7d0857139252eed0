"""The naming rule is exact both ways on every tensor of every network the package exchanges with PyTorch."""

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from sdd_jax.models import convert

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

UNET = dict(block_out_channels=(32, 64), norm_num_groups=8, attention_head_dim=8, cross_attention_dim=16)
DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
TEXT = dict(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=50,
    bos_token_id=0,
    eos_token_id=1,
)


def networks() -> dict:
    text = transformers.CLIPTextConfig(**TEXT)
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return {
        "unet": lambda: diffusers.UNet2DConditionModel(down_block_types=DOWN, up_block_types=UP, **UNET),
        "unet_xl": lambda: diffusers.UNet2DConditionModel(
            down_block_types=DOWN,
            up_block_types=UP,
            use_linear_projection=True,
            addition_embed_type="text_time",
            transformer_layers_per_block=2,
            time_cond_proj_dim=8,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            **UNET,
        ),
        "vae": lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "controlnet": lambda: diffusers.ControlNetModel(down_block_types=DOWN, **UNET),
        "full_adapter": lambda: diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=2, adapter_type="full_adapter"),
        "light_adapter": lambda: diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=2, adapter_type="light_adapter"),
        "full_adapter_xl": lambda: diffusers.T2IAdapter(
            channels=[8, 16], num_res_blocks=2, adapter_type="full_adapter_xl"
        ),
        "text": lambda: transformers.CLIPTextModel(text),
        "text_projection": lambda: transformers.CLIPTextModelWithProjection(text),
        "clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=vision)),
    }


@pytest.mark.parametrize("name", networks())
def test_round_trip_is_exact(name):
    with torch.device("meta"):
        meta = networks()[name]().state_dict()
    rng = np.random.default_rng(0)
    state_dict = {k: rng.standard_normal(tuple(v.shape), dtype=np.float32)[()] for k, v in meta.items()}
    state_dict = {k: np.asarray(v) for k, v in state_dict.items()}
    back = convert.flax_to_torch(convert.torch_to_flax(state_dict))
    assert back.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert back[key].shape == value.shape and back[key].flags.c_contiguous
        np.testing.assert_array_equal(back[key], value)


def test_names_and_layouts():
    state_dict = {
        "down_blocks.0.resnets.1.conv1.weight": np.zeros((5, 4, 3, 2), np.float16),
        "attn1.to_out.0.weight": np.zeros((5, 4), np.float32),
        "ff.net.0.proj.bias": np.zeros(3, np.float32),
        "time_embedding.linear_1.weight": np.zeros((5, 4), ml_dtypes.bfloat16),
        "text_model.embeddings.token_embedding.weight": np.zeros((5, 4), np.float32),
        "norm1.weight": np.zeros(3, np.float32),
        "text_projection.weight": np.zeros((5, 4), np.float32),
    }
    flat = traverse_util.flatten_dict(convert.torch_to_flax(state_dict), sep="/")
    assert {k: v.shape for k, v in flat.items()} == {
        "down_blocks_0/resnets_1/conv1/kernel": (3, 2, 4, 5),
        "attn1/to_out_0/kernel": (4, 5),
        "ff/net_0/proj/bias": (3,),
        "time_embedding/linear_1/kernel": (4, 5),
        "text_model/embeddings/token_embedding/embedding": (5, 4),
        "norm1/scale": (3,),
        "text_projection/kernel": (4, 5),
    }
    assert [v.dtype for v in flat.values()] == [v.dtype for v in state_dict.values()]


@pytest.mark.parametrize("key", ["unknown_list.0.weight", "layers_1.weight", "norm.scale"])
def test_a_name_that_would_not_come_back_is_refused(key):
    with pytest.raises(ValueError, match=key.split(".")[0]):
        convert.torch_to_flax({key: np.zeros((2, 2), np.float32)})


def test_legacy_names():
    keys = [
        "encoder.mid_block.attentions.0." + name
        for name in ("query.weight", "key.bias", "value.weight", "proj_attn.weight", "group_norm.weight")
    ]
    renamed = convert.rename_legacy({k: np.zeros(1) for k in [*keys, "text_model.embeddings.position_ids"]})
    assert list(renamed) == [
        "encoder.mid_block.attentions.0." + name
        for name in ("to_q.weight", "to_k.bias", "to_v.weight", "to_out.0.weight", "group_norm.weight")
    ]


def test_match_reshapes_one_by_one_convolutions_and_nothing_else():
    linear, conv = np.arange(6.0).reshape(2, 3), np.zeros((1, 1, 2, 3))
    expected = {"to_q": {"kernel": linear}, "proj_in": {"kernel": conv}}
    out = convert.match({"to_q": {"kernel": linear[None, None]}, "proj_in": {"kernel": linear}}, expected, "f")
    np.testing.assert_array_equal(out["to_q"]["kernel"], linear)
    np.testing.assert_array_equal(out["proj_in"]["kernel"], linear[None, None])
    with pytest.raises(ValueError, match="1 of the wrong shape: to_q.weight"):
        convert.match({"to_q": {"kernel": linear.T}, "proj_in": {"kernel": conv}}, expected, "f")


def test_match_lists_what_is_wrong_in_one_line():
    expected = {f"layers_{i}": {"bias": np.zeros(2)} for i in range(5)}
    with pytest.raises(ValueError) as error:
        convert.match({"extra": {"bias": np.zeros(2)}}, expected, "unet/model.safetensors")
    message = str(error.value)
    assert "unet/model.safetensors" in message and "\n" not in message
    assert "5 missing: layers.0.bias, layers.1.bias, layers.2.bias, ..." in message
    assert "1 unexpected: extra.bias" in message
