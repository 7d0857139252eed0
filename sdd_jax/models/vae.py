"""Stable Diffusion's autoencoder (Rombach et al. 2022, arXiv:2112.10752; diffusers' AutoencoderKL).

    moments = quant_conv(E(image)) = [mean, logvar]        image [b,H,W,3], moments [b,h,w,2c], H = f h
    z = mean + exp(clip(logvar, -30, 20) / 2) * noise       posterior N(mean, std^2); its mean where no noise is drawn
    image_hat = D(post_quant_conv(z))

E and D are residual blocks at each of `len(block_out_channels)` levels, f = 2^(levels - 1); at the bottleneck one
single-head self-attention between two residual blocks. E halves by a stride-2 convolution that pads one row below and
one column right; D doubles by nearest neighbour. All group norms use eps 1e-6. Latents here are raw: multiplying by
`scaling_factor` is the bundle's business. Parameters are named as in diffusers' files
(`encoder/down_blocks_0/resnets_0/conv1/kernel`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.attention import attend
from sdd_jax.models.blocks import Downsample2D, ResnetBlock2D, Upsample2D
from sdd_jax.models.layers import Conv, Dense, GroupNorm, PointwiseConv

EPS = 1e-6


class VAEConfig(NamedTuple):
    """The fields of an AutoencoderKL config.json that this package supports at any value; defaults are diffusers'."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, config: Mapping[str, Any], source: str = "vae/config.json") -> VAEConfig:
        """Reads a config.json.

        Raises:
          ValueError: naming the field, for a class, block type, activation or latent statistics not supported, and for
            a field that this package does not know.
        """
        levels = len(config.get("block_out_channels", (64,)))
        # what a field must be where its other values would need maths that is not here
        required: dict[str, tuple[Any, ...]] = {
            "_class_name": ("AutoencoderKL",),
            "act_fn": ("silu", "swish"),
            "down_block_types": (["DownEncoderBlock2D"] * levels,),
            "up_block_types": (["UpDecoderBlock2D"] * levels,),
            "shift_factor": (None, 0),
            "latents_mean": (None,),
            "latents_std": (None,),
        }
        for name, value in config.items():
            value = list(value) if isinstance(value, tuple) else value
            if name in required and value not in required[name]:
                raise ValueError(f"{source}: {name} = {value!r} is not supported; use {required[name][0]!r}")
            if name not in required and name not in cls._fields and name != "force_upcast" and name[0] != "_":
                raise ValueError(
                    f"{source}: the field {name!r} is not known to this version and might change the result"
                )
        fields = {name: config[name] for name in cls._fields if name in config}
        fields["block_out_channels"] = tuple(fields.get("block_out_channels", (64,)))
        return cls(**fields)


class AutoencoderKL(nn.Module):
    """`encode` an image to posterior moments, `decode` latents; calling it reconstructs through the posterior mean.

    dtype is the compute dtype; both methods return it. `force_upcast` in a config concerns float16 and has no effect.
    """

    config: VAEConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        cfg = self.config
        self.encoder = Encoder(cfg, self.dtype)
        self.decoder = Decoder(cfg, self.dtype)
        if cfg.use_quant_conv:
            self.quant_conv = PointwiseConv(2 * cfg.latent_channels, dtype=self.dtype)
        if cfg.use_post_quant_conv:
            self.post_quant_conv = PointwiseConv(cfg.latent_channels, dtype=self.dtype)

    def encode(self, image: jax.Array) -> jax.Array:
        """image f[b,H,W,3] in [-1, 1] -> moments f[b,H/f,W/f,2c]."""
        f = self.config.downsampling
        if image.shape[1] % f or image.shape[2] % f:
            raise ValueError(
                f"an image of {image.shape[1]}x{image.shape[2]} pixels cannot be encoded: sides must divide by {f}"
            )
        moments = self.encoder(image)
        return self.quant_conv(moments) if self.config.use_quant_conv else moments

    def decode(self, z: jax.Array) -> jax.Array:
        """Raw latents f[b,h,w,c] -> image f[b,f h,f w,3], nominally in [-1, 1]."""
        return self.decoder(self.post_quant_conv(z) if self.config.use_post_quant_conv else z)

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.decode(jnp.split(self.encode(image), 2, axis=-1)[0])


def posterior(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """moments [b,h,w,2c] -> (mean, std) f32[b,h,w,c]; the log-variance is clipped to [-30, 20]."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))


def latents_of(moments: jax.Array, scaling_factor: float, rng: jax.Array | None = None) -> jax.Array:
    """moments [b,h,w,2c] -> scaled latents f32[b,h,w,c]: a draw from the posterior, or its mean where rng is None."""
    mean, std = posterior(moments)
    if rng is not None:
        mean = mean + std * jax.random.normal(rng, mean.shape)
    return mean * scaling_factor


class Encoder(nn.Module):
    """image [b,H,W,3] -> [b,h,w,2c]."""

    config: VAEConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        last = len(cfg.block_out_channels) - 1
        x = Conv(cfg.block_out_channels[0], dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(cfg.block_out_channels):
            x = Level(
                cfg, width, cfg.layers_per_block, "down" if i < last else "", self.dtype, name=f"down_blocks_{i}"
            )(x)
        x = MidBlock(cfg, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(cfg.norm_num_groups, EPS, dtype=self.dtype, name="conv_norm_out")(x))
        return Conv(2 * cfg.latent_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """latents [b,h,w,c] -> image [b,H,W,3]."""

    config: VAEConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        last = len(cfg.block_out_channels) - 1
        x = Conv(cfg.block_out_channels[-1], dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(cfg, self.dtype, name="mid_block")(x)
        for i, width in enumerate(reversed(cfg.block_out_channels)):
            x = Level(
                cfg, width, cfg.layers_per_block + 1, "up" if i < last else "", self.dtype, name=f"up_blocks_{i}"
            )(x)
        x = nn.silu(GroupNorm(cfg.norm_num_groups, EPS, dtype=self.dtype, name="conv_norm_out")(x))
        return Conv(cfg.out_channels, dtype=self.dtype, name="conv_out")(x)


class Level(nn.Module):
    """Residual blocks at one resolution, then `resample` ("down" halves, "up" doubles, "" neither)."""

    config: VAEConfig
    features: int
    num_layers: int
    resample: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_layers):
            x = _resnet(self.config, self.features, self.dtype, f"resnets_{i}")(x)
        if self.resample == "down":
            x = Downsample2D(self.features, padding=0, dtype=self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample2D(self.features, dtype=self.dtype, name="upsamplers_0")(x)
        return x


class MidBlock(nn.Module):
    """Residual block, self-attention over pixels, residual block, [b,h,w,c] -> [b,h,w,c]."""

    config: VAEConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = _resnet(self.config, width, self.dtype, "resnets_0")(x)
        if self.config.mid_block_add_attention:
            x = PixelAttention(self.config.norm_num_groups, self.dtype, name="attentions_0")(x)
        return _resnet(self.config, width, self.dtype, "resnets_1")(x)


class PixelAttention(nn.Module):
    """Single-head self-attention over all pixels with a residual connection, [b,h,w,c] -> [b,h,w,c]."""

    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        tokens = GroupNorm(self.num_groups, EPS, dtype=self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        q, k, v = (Dense(c, dtype=self.dtype, name=name)(tokens)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        out = Dense(c, dtype=self.dtype, name="to_out_0")(attend(q, k, v)[:, :, 0])
        return x + out.reshape(x.shape)


def _resnet(config: VAEConfig, features: int, dtype: Any, name: str) -> ResnetBlock2D:
    return ResnetBlock2D(features, config.norm_num_groups, EPS, dtype=dtype, name=name)
