"""T2I-Adapter: a small convolutional network whose features are added inside a frozen UNet's encoder.

    x_0 = conv_in(unshuffle(c));   x_i <- body_i(x_{i-1});   the UNet's level i continues with h_i + x_i

It reads the condition c alone, neither z_t nor t, so its features are made once for all steps of a sampling run. body_i
is `num_res_blocks` times x + W_1x1 relu(W_3x3 x), after an average pooling where the level is smaller than the one
before and a 1x1 convolution where it is wider.

The features' sizes are those of the places where diffusers adds them: a level's own size, or half of it where the level
has no attention and a downsampler. With attention at every level but the last (SD 1.x, 2.x) that is diffusers'
`full_adapter`, and the parameters are its state dict by the generic rule.

At initialisation `conv_in` is zero and so is every bias, hence every feature (relu(0) = 0) and the UNet is bit-equal to
itself; the gradient reaches `conv_in` through the residual paths. (The original starts at random.)

Source: Mou et al. 2023, arXiv:2302.08453.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sdd_jax.models.layers import Conv
from sdd_jax.models.unet_config import parse_config
from sdd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class T2IAdapterConfig:
    """channels: width of each level. halves: whether each level's features are half as large as the ones before.

    unshuffle: image pixels per pixel of the first features. in_channels: of the condition.
    """

    channels: tuple[int, ...]
    halves: tuple[bool, ...]
    unshuffle: int
    in_channels: int = 3
    num_res_blocks: int = 2

    def to_json(self) -> dict[str, Any]:
        """The `config.json` of diffusers' T2IAdapter; ValueError for a shape that it has no name for."""
        if self.halves != (False, *(True,) * (len(self.channels) - 1)):
            raise ValueError(
                "this UNet's T2I-Adapter has no published format: it has a level without attention before another one"
            )
        return {
            "adapter_type": "full_adapter",
            "channels": list(self.channels),
            "downscale_factor": self.unshuffle,
            "in_channels": self.in_channels,
            "num_res_blocks": self.num_res_blocks,
        }


def t2i_config(unet: Mapping[str, Any], downsampling: int, in_channels: int = 3) -> T2IAdapterConfig:
    """The adapter for the UNet of a diffusers `config.json` whose latents are `downsampling` times smaller."""
    c = parse_config(unet)
    last = len(c.channels) - 1
    factors = [2 ** (i + (not c.attention[i] and i < last)) for i in range(last + 1)]
    halves = (False, *(b > a for a, b in zip(factors[:-1], factors[1:], strict=True)))
    return T2IAdapterConfig(tuple(c.channels), halves, downsampling * factors[0], in_channels)


class ResnetBlock(nn.Module):
    """x + W_1x1 relu(W_3x3 x)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(Conv(self.features, dtype=self.dtype, name="block1")(x))
        return x + Conv(self.features, kernel_size=1, dtype=self.dtype, name="block2")(h)


class Body(nn.Module):
    """One level: `[b,h,w,i] -> [b,h or h/2,w or w/2,features]`; odd sides round up, as in the UNet."""

    features: int
    halve: bool
    num_res_blocks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.halve:
            x = nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, dtype=self.dtype, name="in_conv")(x)
        for i in range(self.num_res_blocks):
            x = ResnetBlock(self.features, dtype=self.dtype, name=f"resnets_{i}")(x)
        return x


class FullAdapter(nn.Module):
    """The whole stack, under the name that diffusers gives it."""

    config: T2IAdapterConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: jax.Array) -> tuple[jax.Array, ...]:
        c, b = self.config, condition.shape[0]
        factor, (height, width) = c.unshuffle, condition.shape[1:3]
        if height % factor or width % factor or condition.shape[3] != c.in_channels:
            raise ValueError(
                f"the condition has shape {condition.shape[1:]}; the T2I-Adapter needs sides that are multiples of "
                f"{factor} and {c.in_channels} channels"
            )
        # torch's pixel_unshuffle orders a block's channels [channel, row, column]
        x = condition.reshape(b, height // factor, factor, width // factor, factor, -1)
        x = x.transpose(0, 1, 3, 5, 2, 4).reshape(b, height // factor, width // factor, -1)
        x = Conv(c.channels[0], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="conv_in")(x)
        features: tuple[jax.Array, ...] = ()
        for i, (width_out, halve) in enumerate(zip(c.channels, c.halves, strict=True)):
            x = Body(width_out, halve, c.num_res_blocks, dtype=self.dtype, name=f"body_{i}")(x)
            features += (x,)
        return features


class T2IAdapterModel(nn.Module):
    """A condition f32[b,H,W,c] in [0, 1] -> one feature per level of the UNet's encoder, for `Residuals.inner`."""

    config: T2IAdapterConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: jax.Array) -> tuple[jax.Array, ...]:
        return FullAdapter(self.config, dtype=self.dtype, name="adapter")(condition)


def init_t2i_adapter(adapter: T2IAdapterModel, rng: jax.Array) -> Params:
    """Fresh float32 parameters; all features are zero."""
    side = adapter.config.unshuffle * 2 ** sum(adapter.config.halves)
    return adapter.init({"params": rng}, jnp.zeros((1, side, side, adapter.config.in_channels)))["params"]
