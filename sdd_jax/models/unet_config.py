"""diffusers' `config.json` of a UNet or ControlNet, read strictly: what is not supported is an error, never ignored.

Traps that the reading settles: `attention_head_dim` holds the NUMBER of heads (a naming error that diffusers keeps for
compatibility), per level where it is a list; `transformer_layers_per_block` holds one entry per level, each a number or
one number per layer; a field left out has diffusers' default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
MID_BLOCKS = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False, None: False}

# Fields that change the maths, with the only values under which they do not.
SWITCHED_OFF: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dropout": (0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "global_pool_conditions": (False,),
    "mid_block_only_cross_attention": (None, False),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Fields that change nothing here: softmax is float32 always, and the heads count belongs to another embedding type.
WITHOUT_EFFECT = {"sample_size", "upcast_attention", "addition_embed_type_num_heads"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A UNet's shape, one entry per level in every tuple (encoder order; `up_depths` and `up_attention` decoder order).

    depths: transformer blocks per layer of a level. attention: whether a level has transformers. heads: of attention.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    has_mid: bool
    mid_attention: bool
    heads: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    mid_depth: int
    up_depths: tuple[tuple[int, ...], ...]
    cross_attention_dim: tuple[int, ...]
    time_embedding_dim: int
    time_cond_proj_dim: int | None
    text_time: bool
    addition_time_embed_dim: int | None
    projection_input_dim: int | None
    flip_sin_to_cos: bool
    freq_shift: float
    center_input_sample: bool
    downsample_padding: int
    mid_block_scale_factor: float
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool


DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "time_embedding_dim": None,
    "time_cond_proj_dim": None,
    "projection_class_embeddings_input_dim": None,
}


def parse_config(config: Mapping[str, Any], model: str = "UNet2DConditionModel") -> UNetConfig:
    """Reads a `config.json` mapping; `model` names it in errors. Keys with a leading underscore are metadata.

    Raises ValueError with the field's name and value where the config asks for what is not supported or contradicts
    itself.
    """
    for name, value in config.items():
        if name.startswith("_") or name in WITHOUT_EFFECT or name in DEFAULTS:
            continue
        if name not in SWITCHED_OFF:
            raise ValueError(f"{model} config has the unknown field {name}={value!r}; remove it if it has no effect")
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for one in values:
            if one not in SWITCHED_OFF[name]:
                allowed = " or ".join(map(repr, SWITCHED_OFF[name]))
                raise ValueError(f"{model} config field {name}={value!r} is not supported; only {allowed} is")
    c = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}

    def fail(name: str, why: str) -> ValueError:
        return ValueError(f"{model} config field {name}={c[name]!r} is not supported: {why}")

    def known(name: str, types: Mapping[Any, bool]) -> tuple[bool, ...]:
        for one in c[name]:
            if one not in types:
                raise fail(name, f"the block types known are {', '.join(map(str, types))}")
        return tuple(types[one] for one in c[name])

    channels = tuple(c["block_out_channels"])

    def per_level(name: str) -> tuple[Any, ...]:
        value = c[name]
        entries = (value,) * len(channels) if isinstance(value, int) else tuple(value)
        if len(entries) != len(channels):
            raise fail(name, f"block_out_channels has {len(channels)} levels")
        return entries

    def per_layer(name: str, layers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        rows = []
        for depth, count in zip(per_level(name), layers, strict=True):
            row = (depth,) * count if isinstance(depth, int) else tuple(depth)
            if len(row) != count:
                raise fail(name, f"a level of {count} layers needs {count} entries, not {len(row)}")
            rows.append(row)
        return tuple(rows)

    attention, up_attention = known("down_block_types", DOWN_BLOCKS), known("up_block_types", UP_BLOCKS)
    for name in ("down_block_types", "up_block_types"):
        per_level(name)
    if c["mid_block_type"] not in MID_BLOCKS:
        raise fail("mid_block_type", f"the block types known are {', '.join(map(str, MID_BLOCKS))}")
    if c["norm_num_groups"] is None:
        raise fail("norm_num_groups", "models without normalisation are not")
    if c["downsample_padding"] not in (0, 1):
        raise fail("downsample_padding", "only 0 and 1 are known")
    if c["addition_embed_type"] not in (None, "text_time"):
        raise fail("addition_embed_type", "only null and 'text_time' are")
    text_time = c["addition_embed_type"] == "text_time"
    for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if text_time and c[name] is None:
            raise fail(name, "addition_embed_type 'text_time' needs it")

    head_field = "attention_head_dim" if c["num_attention_heads"] is None else "num_attention_heads"
    heads = per_level(head_field)
    for width, count in zip(channels, heads, strict=True):
        if width % count:
            raise fail(head_field, f"it is the number of heads, and {count} does not divide {width} channels")
    layers = per_level("layers_per_block")
    depth_field, up_field = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    depths, up_layers = per_level(depth_field), tuple(count + 1 for count in reversed(layers))
    if c[up_field] is None:
        if not all(isinstance(depth, int) for depth in depths):
            raise fail(depth_field, f"a list per layer needs {up_field} too")
        c[up_field] = tuple(reversed(depths))
    return UNetConfig(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        channels=channels,
        layers=layers,
        attention=attention,
        up_attention=up_attention,
        has_mid=c["mid_block_type"] is not None,
        mid_attention=MID_BLOCKS[c["mid_block_type"]],
        heads=heads,
        depths=per_layer(depth_field, layers),
        mid_depth=depths[-1] if isinstance(depths[-1], int) else depths[-1][0],
        up_depths=per_layer(up_field, up_layers),
        cross_attention_dim=per_level("cross_attention_dim"),
        time_embedding_dim=c["time_embedding_dim"] or 4 * channels[0],
        time_cond_proj_dim=c["time_cond_proj_dim"],
        text_time=text_time,
        addition_time_embed_dim=c["addition_time_embed_dim"],
        projection_input_dim=c["projection_class_embeddings_input_dim"],
        flip_sin_to_cos=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        center_input_sample=c["center_input_sample"],
        downsample_padding=c["downsample_padding"],
        mid_block_scale_factor=c["mid_block_scale_factor"],
        norm_num_groups=c["norm_num_groups"],
        norm_eps=c["norm_eps"],
        use_linear_projection=c["use_linear_projection"],
    )
