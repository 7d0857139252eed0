"""ControlNet: a trainable copy of the UNet's encoder that reads an image and speaks through zero convolutions.

    h_0 = conv_in(z) + hint(condition);   r_i = scale * zero_conv_i(h_i),   r_mid = scale * zero_conv_mid(mid)

`hint` brings the condition `[b,H,W,3]`, in [0, 1] as diffusers has it, to the latents' size: one stride-2 convolution
per step in `conditioning_embedding_out_channels`, so H = h * 2^(len - 1). Output convolutions start at zero: a fresh
ControlNet changes nothing. Source: Zhang et al. 2023, "Adding conditional control to text-to-image diffusion models".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sdd_jax.models.attention import AttentionEdit
from sdd_jax.models.layers import Conv
from sdd_jax.models.unet import UNetEncoder, check_remat, example_inputs
from sdd_jax.models.unet_config import parse_config
from sdd_jax.types import Params, Residuals

CONDITION_DEFAULTS: dict[str, Any] = {
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
}
COPIED = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")


_KEEPS_SCALE = nn.initializers.variance_scaling(3.0, "fan_in", "uniform")


class ControlNetConditioningEmbedding(nn.Module):
    """The condition's pyramid: `[b,H,W,c] -> [b, H / 2^(len-1), W / 2^(len-1), features]`, zero at initialisation.

    Its kernels start at a gain that carries the condition's contrast through the SiLUs. At PyTorch's default gain the
    last layer sees a few thousandths of it, and a ControlNet learns its condition late and suddenly.
    """

    features: int
    channels: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: jax.Array) -> jax.Array:
        h = nn.silu(Conv(self.channels[0], kernel_init=_KEEPS_SCALE, dtype=self.dtype, name="conv_in")(condition))
        for i, (narrow, wide) in enumerate(zip(self.channels[:-1], self.channels[1:], strict=True)):
            h = nn.silu(Conv(narrow, kernel_init=_KEEPS_SCALE, dtype=self.dtype, name=f"blocks_{2 * i}")(h))
            strided = Conv(wide, stride=2, kernel_init=_KEEPS_SCALE, dtype=self.dtype, name=f"blocks_{2 * i + 1}")
            h = nn.silu(strided(h))
        return Conv(self.features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="conv_out")(h)


class ControlNetModel(UNetEncoder):
    """The whole network. Build it with `make_controlnet`; `bgr` reverses the condition's channels first."""

    condition_channels: int = 3
    condition_widths: tuple[int, ...] = (16, 32, 96, 256)
    bgr: bool = False

    def setup(self) -> None:
        super().setup()
        c = self.config

        def zero_conv(features: int) -> Conv:
            return Conv(features, kernel_size=1, kernel_init=nn.initializers.zeros, dtype=self.dtype)

        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            c.channels[0], self.condition_widths, dtype=self.dtype
        )
        last = len(c.channels) - 1
        widths = [c.channels[0]]
        for i, width in enumerate(c.channels):
            widths += [width] * (c.layers[i] + (i < last))
        self.controlnet_down_blocks = [zero_conv(width) for width in widths]
        self.controlnet_mid_block = zero_conv(c.channels[-1])

    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        condition: jax.Array,
        added_cond: Mapping[str, jax.Array] | None = None,
        scale: jax.Array | float = 1.0,
    ) -> Residuals:
        """Residuals from latents z `[b,h,w,c]`, t `[b]`, context `[b,n,d]` and the condition `[b,H,W,3]` in [0, 1].

        scale: a factor on every residual. Raises ValueError where the condition's size does not fit the latents'.
        """
        factor = 2 ** (len(self.condition_widths) - 1)
        expected = (z.shape[1] * factor, z.shape[2] * factor, self.condition_channels)
        if condition.shape[1:] != expected:
            raise ValueError(
                f"the condition has shape {condition.shape[1:]}; for latents {z.shape[1:3]} the ControlNet's "
                f"conditioning_embedding_out_channels={self.condition_widths} need {expected}"
            )
        hint = self.embed(condition)
        skips, mid = self.encode_features(z, self.embed_time(t, None, added_cond), context, AttentionEdit(), hint)
        down = tuple(conv(h) * scale for conv, h in zip(self.controlnet_down_blocks, skips, strict=True))
        return Residuals(down, self.controlnet_mid_block(mid) * scale)

    def embed(self, condition: jax.Array) -> jax.Array:
        """`hint` of a condition `[b,H,W,3]` in [0, 1]: `[b,h,w,features]`."""
        out: jax.Array = self.controlnet_cond_embedding(condition[..., ::-1] if self.bgr else condition)
        return out


def make_controlnet(
    config: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32, remat: str = "none"
) -> ControlNetModel:
    """Builds the ControlNet of a diffusers `config.json`; arguments and errors as for `unet.make_unet`."""
    own = CONDITION_DEFAULTS | {name: value for name, value in config.items() if name in CONDITION_DEFAULTS}
    order = own["controlnet_conditioning_channel_order"]
    if order not in ("rgb", "bgr"):
        raise ValueError(f"ControlNetModel config field controlnet_conditioning_channel_order={order!r}: rgb or bgr")
    for name in ("up_block_types", "out_channels", "time_cond_proj_dim"):
        if config.get(name) is not None:
            raise ValueError(f"ControlNetModel config field {name}={config[name]!r} is not supported: drop it")
    levels = len(config.get("block_out_channels", (320, 640, 1280, 1280)))
    encoder = {name: value for name, value in config.items() if name not in own} | {
        "up_block_types": ("UpBlock2D",) * levels
    }
    return ControlNetModel(
        parse_config(encoder, "ControlNetModel"),
        dtype=dtype,
        remat=check_remat(remat),
        condition_channels=own["conditioning_channels"],
        condition_widths=tuple(own["conditioning_embedding_out_channels"]),
        bgr=order == "bgr",
    )


def init_controlnet(controlnet: ControlNetModel, rng: jax.Array) -> Params:
    """Fresh float32 parameters; `controlnet_params_from_unet` then copies the encoder."""
    inputs = example_inputs(controlnet.config)
    size = inputs["z"].shape[1] * 2 ** (len(controlnet.condition_widths) - 1)
    condition = jnp.zeros((1, size, size, controlnet.condition_channels))
    return controlnet.init({"params": rng}, **inputs, condition=condition)["params"]


def controlnet_params_from_unet(unet_params: Params, controlnet_params: Params) -> Params:
    """`controlnet_params` (fresh ones) with the encoder's weights replaced by the UNet's, as a ControlNet starts.

    Raises ValueError where a copied array is missing in the UNet or has another shape.
    """

    def copy(own: Any, source: Any, path: str) -> Any:
        if isinstance(own, Mapping):
            missing = set(own) - set(source)
            if missing:
                raise ValueError(f"the UNet has no {path}/{min(missing)}; make the ControlNet from its config")
            return {name: copy(own[name], source[name], f"{path}/{name}") for name in own}
        if own.shape != source.shape:
            raise ValueError(
                f"{path} is {source.shape} in the UNet, {own.shape} in the ControlNet; make that from the UNet's config"
            )
        return source

    return {
        name: copy(value, unet_params.get(name, {}), name) if name.startswith(COPIED) else value
        for name, value in controlnet_params.items()
    }
