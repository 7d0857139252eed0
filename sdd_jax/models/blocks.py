"""Residual, resampling and composite blocks of a Stable Diffusion UNet (and, without time, of its VAE).

    ResnetBlock2D(x, temb) = (shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + W silu(temb))))) / scale

Features are `[b, h, w, c]`; `temb` is `[b, e]`, or None where a block has no time embedding; `context` is `[b, n, d]`.
Modules carry diffusers' parameter names. `remat` says what the backward pass recomputes, layer by layer (a residual
block, a transformer): "none", "dots" (all but convolutions and matrix products), "block" (everything inside).
Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sdd_jax.models.attention import AttentionEdit, Transformer2DModel
from sdd_jax.models.layers import PRODUCT, Conv, Dense, GroupNorm, PointwiseConv

SAVES = jax.checkpoint_policies
REMAT_POLICIES = {
    "dots": SAVES.save_from_both_policies(SAVES.dots_saveable, SAVES.save_only_these_names(PRODUCT)),
    "block": SAVES.nothing_saveable,
}


def call_layer(remat: str, layer: nn.Module, *arrays: jax.Array | None, edit: AttentionEdit | None) -> jax.Array:
    """`layer(*arrays, edit=edit)`, its activations recomputed in the backward pass as `remat` says."""

    def call(layer: Any, *arrays: jax.Array | None) -> jax.Array:
        return layer(*arrays, edit=edit)

    if remat == "none":
        return call(layer, *arrays)
    return nn.remat(call, policy=REMAT_POLICIES[remat])(layer, *arrays)


class ResnetBlock2D(nn.Module):
    """Two convolutions with a shortcut: `[b,h,w,i], temb [b,e] or None -> [b,h,w,features]`.

    output_scale_factor divides the sum of branch and shortcut. eps is the norms' epsilon.
    """

    features: int
    num_groups: int = 32
    eps: float = 1e-5
    output_scale_factor: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None = None, edit: AttentionEdit | None = None) -> jax.Array:
        h = nn.silu(GroupNorm(self.num_groups, self.eps, dtype=self.dtype, name="norm1")(x))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        if temb is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
            h = h + shift[:, None, None]
        h = nn.silu(GroupNorm(self.num_groups, self.eps, dtype=self.dtype, name="norm2")(h))
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if edit is not None and edit.features is not None:
            h = edit.features(h, layer="/".join(self.path))
        if x.shape[-1] != self.features:
            x = PointwiseConv(self.features, dtype=self.dtype, name="conv_shortcut")(x)
        out = x + h
        return out if self.output_scale_factor == 1 else out / self.output_scale_factor


class Downsample2D(nn.Module):
    """A stride-2 convolution. padding=1: symmetric (UNet); padding=0: one row below and one column right (VAE)."""

    features: int
    padding: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sides = (1, 1) if self.padding == 1 else (0, 1)
        return Conv(self.features, stride=2, padding=(sides, sides), dtype=self.dtype, name="conv")(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling, cropped to `size` (h, w) where a skip of odd size asks for it, and a convolution."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return Conv(self.features, dtype=self.dtype, name="conv")(x)


def transformer(block: DownBlock2D | MidBlock2D | UpBlock2D, depth: int, i: int) -> Transformer2DModel:
    """The i-th transformer of a block, a submodule of it."""
    return Transformer2DModel(
        block.heads, depth, block.num_groups, block.use_linear_projection, dtype=block.dtype, name=f"attentions_{i}"
    )


class DownBlock2D(nn.Module):
    """One encoder level: per layer a residual block and, where `depths` has transformers, a transformer; then halving.

    depths: transformer blocks per layer (CrossAttnDownBlock2D), or None for no attention (DownBlock2D).
    Returns the level's output and one skip feature per layer, plus the downsampled one. `inner` is added where
    T2I-Adapters are trained to be: before the halving with attention, after it without.
    """

    features: int
    num_layers: int
    heads: int
    depths: tuple[int, ...] | None
    num_groups: int
    eps: float
    add_downsample: bool
    downsample_padding: int = 1
    use_linear_projection: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        temb: jax.Array,
        context: jax.Array,
        edit: AttentionEdit | None = None,
        inner: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        skips: tuple[jax.Array, ...] = ()
        for i in range(self.num_layers):
            resnet = ResnetBlock2D(self.features, self.num_groups, self.eps, dtype=self.dtype, name=f"resnets_{i}")
            x = call_layer(self.remat, resnet, x, temb, edit=edit)
            if self.depths is not None:
                x = call_layer(self.remat, transformer(self, self.depths[i], i), x, context, edit=edit)
                if inner is not None and i == self.num_layers - 1:
                    x = add_inside(x, inner)
            skips += (x,)
        if self.add_downsample:
            x = Downsample2D(self.features, self.downsample_padding, dtype=self.dtype, name="downsamplers_0")(x)
            skips += (x,)
        if inner is not None and self.depths is None:
            x = add_inside(x, inner)
            skips = (*skips[:-1], x)
        return x, skips


def add_inside(x: jax.Array, inner: jax.Array) -> jax.Array:
    """x + inner in x's dtype; ValueError for different shapes."""
    if x.shape != inner.shape:
        raise ValueError(f"an adapter's feature has shape {inner.shape}; this level of the UNet has {x.shape}")
    return (x + inner).astype(x.dtype)


class MidBlock2D(nn.Module):
    """The bottleneck: a residual block, then (UNetMidBlock2DCrossAttn) a transformer and a second residual block.

    depth: transformer blocks, or None for the single residual block of UNetMidBlock2D.
    """

    features: int
    heads: int
    depth: int | None
    num_groups: int
    eps: float
    output_scale_factor: float = 1.0
    use_linear_projection: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array, context: jax.Array, edit: AttentionEdit | None = None
    ) -> jax.Array:
        def resnet(i: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                self.features,
                self.num_groups,
                self.eps,
                self.output_scale_factor,
                dtype=self.dtype,
                name=f"resnets_{i}",
            )

        x = call_layer(self.remat, resnet(0), x, temb, edit=edit)
        if self.depth is None:
            return x
        x = call_layer(self.remat, transformer(self, self.depth, 0), x, context, edit=edit)
        return call_layer(self.remat, resnet(1), x, temb, edit=edit)


class UpBlock2D(nn.Module):
    """One decoder level: per layer the next skip is concatenated, then as in `DownBlock2D`; then doubling.

    skips: as many as layers, consumed from the last. size: the (h, w) that the upsampled output must have.
    """

    features: int
    num_layers: int
    heads: int
    depths: tuple[int, ...] | None
    num_groups: int
    eps: float
    add_upsample: bool
    use_linear_projection: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        skips: tuple[jax.Array, ...],
        temb: jax.Array,
        context: jax.Array,
        size: tuple[int, int] | None = None,
        edit: AttentionEdit | None = None,
    ) -> jax.Array:
        for i, skip in enumerate(reversed(skips)):
            resnet = ResnetBlock2D(self.features, self.num_groups, self.eps, dtype=self.dtype, name=f"resnets_{i}")
            x = call_layer(self.remat, resnet, jnp.concatenate([x, skip], -1), temb, edit=edit)
            if self.depths is not None:
                x = call_layer(self.remat, transformer(self, self.depths[i], i), x, context, edit=edit)
        if self.add_upsample:
            x = Upsample2D(self.features, dtype=self.dtype, name="upsamplers_0")(x, size)
        return x
