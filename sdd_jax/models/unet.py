"""The conditional UNet of Stable Diffusion 1.x, 2.x and SDXL, built from diffusers' `config.json`.

    temb = MLP(features(t) [+ W timestep_cond]) [+ MLP([text_embeds, features(time_ids)])]        SDXL's bracket last
    h_0 = conv_in(z);  (h, skips) through the levels of the encoder;  mid;  levels of the decoder eat the skips
    prediction = conv_out(silu(norm(h)))

Shapes: z `[b,h,w,c]` latents of any size (an odd one upsamples to its skip's size), t `[b]`, context `[b,n,d]`. The
prediction is float32 `[b,h,w,c']` in whatever space the weights were trained (eps, v or x0).

An adapter's `Residuals` enter where ControlNet's do, at the skips and the middle's output, added (`h + r`) or mixed
(`(1 - mu) h + mu r`, CCD eq. 10, whose second encoder is `encode` under its own copy of the parameters). `inner` ones
enter inside the encoder, one a level, and flow on from there (T2I-Adapter).

Sources: Rombach et al. 2022; Podell et al. 2023 (SDXL); Luo et al. 2023 (timestep_cond); Mei et al. 2024 (CCD).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sdd_jax.models.attention import AttentionEdit, EditProbs, as_edit
from sdd_jax.models.blocks import REMAT_POLICIES, DownBlock2D, MidBlock2D, UpBlock2D
from sdd_jax.models.embeddings import TimestepEmbedding, sinusoidal_features
from sdd_jax.models.layers import Conv, GroupNorm
from sdd_jax.models.unet_config import UNetConfig, parse_config
from sdd_jax.types import Params, Residuals


class UNetEncoder(nn.Module):
    """What UNet and ControlNet share: time embedding, input convolution, encoder levels and the middle block."""

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        c = self.config
        shared: dict[str, Any] = dict(
            num_groups=c.norm_num_groups,
            eps=c.norm_eps,
            use_linear_projection=c.use_linear_projection,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.conv_in = Conv(c.channels[0], dtype=self.dtype)
        self.time_embedding = TimestepEmbedding(c.time_embedding_dim, c.time_cond_proj_dim, dtype=self.dtype)
        if c.text_time:
            self.add_embedding = TimestepEmbedding(c.time_embedding_dim, dtype=self.dtype)
        last = len(c.channels) - 1
        self.down_blocks = [
            DownBlock2D(
                features=c.channels[i],
                num_layers=c.layers[i],
                heads=c.heads[i],
                depths=c.depths[i] if c.attention[i] else None,
                add_downsample=i < last,
                downsample_padding=c.downsample_padding,
                **shared,
            )
            for i in range(len(c.channels))
        ]
        if c.has_mid:
            self.mid_block = MidBlock2D(
                features=c.channels[-1],
                heads=c.heads[-1],
                depth=c.mid_depth if c.mid_attention else None,
                output_scale_factor=c.mid_block_scale_factor,
                **shared,
            )

    def embed_time(
        self, t: jax.Array, timestep_cond: jax.Array | None, added_cond: Mapping[str, jax.Array] | None
    ) -> jax.Array:
        """The time embedding `[b, e]` of t `[b]`, with SDXL's `added_cond` text_embeds `[b, p]`, time_ids `[b, 6]`."""
        c = self.config

        def features(scalars: jax.Array, dim: int) -> jax.Array:
            return sinusoidal_features(scalars, dim, flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift)

        temb = self.time_embedding(features(t, c.channels[0]), timestep_cond)
        if not c.text_time:
            return temb
        if added_cond is None or not {"text_embeds", "time_ids"} <= set(added_cond):
            raise ValueError("this model (addition_embed_type 'text_time') needs added_cond: text_embeds and time_ids")
        pooled, time_ids = added_cond["text_embeds"], added_cond["time_ids"]
        assert c.addition_time_embed_dim is not None
        id_features = features(time_ids.reshape(-1), c.addition_time_embed_dim).reshape(pooled.shape[0], -1)
        added = jnp.concatenate([pooled.astype(jnp.float32), id_features], -1)
        if added.shape[-1] != c.projection_input_dim:
            raise ValueError(
                f"added_cond gives {added.shape[-1]} features (text_embeds {pooled.shape}, time_ids {time_ids.shape}); "
                f"the config's projection_class_embeddings_input_dim is {c.projection_input_dim}"
            )
        return temb + self.add_embedding(added)

    def encode_features(
        self,
        z: jax.Array,
        temb: jax.Array,
        context: jax.Array,
        edit: AttentionEdit,
        hint: jax.Array | None = None,
        inner: tuple[jax.Array, ...] = (),
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Skips and middle output; `hint` `[b,h,w,channels[0]]` is added after the input convolution.

        inner: as in `Residuals`. Raises ValueError for channels, widths or numbers that do not fit the config.
        """
        c = self.config
        if z.shape[-1] != c.in_channels:
            raise ValueError(f"latents have {z.shape[-1]} channels; the config's in_channels is {c.in_channels}")
        if context.shape[-1] not in c.cross_attention_dim:
            raise ValueError(
                f"context has width {context.shape[-1]}; the config's cross_attention_dim is {c.cross_attention_dim[0]}"
            )
        if inner and len(inner) != len(self.down_blocks):
            raise ValueError(f"the adapter has {len(inner)} inner features, the UNet {len(self.down_blocks)} levels")
        context = context.astype(self.dtype)
        x = self.conv_in(2 * z - 1 if c.center_input_sample else z)
        if hint is not None:
            x = x + hint
        skips: tuple[jax.Array, ...] = (x,)
        for block, feature in zip(self.down_blocks, inner or (None,) * len(self.down_blocks), strict=True):
            x, made = block(x, temb, context, edit, feature)
            skips += made
        if c.has_mid:
            x = self.mid_block(x, temb, context, edit)
        return skips, x


class UNet2DConditionModel(UNetEncoder):
    """The whole network. Build it with `make_unet`; the parameters are diffusers' state dict by the generic rule."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        last = len(c.channels) - 1
        self.up_blocks = [
            UpBlock2D(
                features=c.channels[last - i],
                num_layers=c.layers[last - i] + 1,
                heads=c.heads[last - i],
                depths=c.up_depths[i] if c.up_attention[i] else None,
                num_groups=c.norm_num_groups,
                eps=c.norm_eps,
                add_upsample=i < last,
                use_linear_projection=c.use_linear_projection,
                remat=self.remat,
                dtype=self.dtype,
            )
            for i in range(last + 1)
        ]
        self.conv_norm_out = GroupNorm(c.norm_num_groups, c.norm_eps, dtype=self.dtype)
        self.conv_out = Conv(c.out_channels, dtype=self.dtype)

    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        timestep_cond: jax.Array | None = None,
        added_cond: Mapping[str, jax.Array] | None = None,
        residuals: Residuals | None = None,
        attention_edit: AttentionEdit | EditProbs | None = None,
    ) -> jax.Array:
        """Predicts from latents z `[b,h,w,c]` at timesteps t `[b]` under context `[b,n,d]` -> float32 `[b,h,w,c']`.

        timestep_cond: `[b, time_cond_proj_dim]`; added_cond: SDXL's `text_embeds` `[b, p]` and `time_ids` `[b, 6]`;
        residuals: what an adapter adds or mixes in; attention_edit: see `attention.AttentionEdit`.
        """
        edit = as_edit(attention_edit)
        temb = self.embed_time(t, timestep_cond, added_cond)
        inner = () if residuals is None else residuals.inner
        skips, x = self.encode_features(z, temb, context, edit, inner=inner)
        if residuals is not None:
            skips, x = apply_residuals(skips, x, residuals)
        context = context.astype(self.dtype)
        for block in self.up_blocks:
            used, skips = skips[-block.num_layers :], skips[: -block.num_layers]
            size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
            x = block(x, used, temb, context, size, edit)
        return self.conv_out(nn.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def encode(
        self,
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        timestep_cond: jax.Array | None = None,
        added_cond: Mapping[str, jax.Array] | None = None,
        attention_edit: AttentionEdit | EditProbs | None = None,
    ) -> Residuals:
        """The encoder alone (`apply(..., method="encode")`): skips and middle output. Arguments as for the model.

        It reads `conv_in`, `time_embedding`, `add_embedding`, `down_blocks_*` and `mid_block` only.
        """
        temb = self.embed_time(t, timestep_cond, added_cond)
        return Residuals(*self.encode_features(z, temb, context, as_edit(attention_edit)))


def apply_residuals(
    skips: tuple[jax.Array, ...], mid: jax.Array, residuals: Residuals
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Adds or mixes an adapter's `residuals` into the encoder's skips and middle output, keeping their dtype.

    Raises ValueError where the numbers of skips differ (no residual at all is allowed).
    """
    if residuals.down and len(residuals.down) != len(skips):
        raise ValueError(f"the adapter has {len(residuals.down)} skip residuals, the UNet {len(skips)} skips")

    def combine(h: jax.Array, r: jax.Array) -> jax.Array:
        mixed = h + r if residuals.mix is None else (1 - residuals.mix) * h + residuals.mix * r
        return mixed.astype(h.dtype)

    if residuals.down:
        skips = tuple(combine(h, r) for h, r in zip(skips, residuals.down, strict=True))
    return skips, mid if residuals.mid is None else combine(mid, residuals.mid)


def check_remat(remat: str) -> str:
    """Returns `remat`, or raises ValueError for a name that is not a policy."""
    if remat != "none" and remat not in REMAT_POLICIES:
        raise ValueError(f"remat={remat!r} is unknown; use one of 'none', {', '.join(map(repr, REMAT_POLICIES))}")
    return remat


def make_unet(
    config: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32, remat: str = "none"
) -> UNet2DConditionModel:
    """Builds the UNet of a diffusers `config.json`.

    dtype: compute dtype; remat: 'none', 'dots' or 'block'. Raises ValueError naming any field not supported.
    """
    return UNet2DConditionModel(parse_config(config), dtype=dtype, remat=check_remat(remat))


def example_inputs(config: UNetConfig) -> dict[str, Any]:
    """Zeros of the smallest batch that a network of `config` takes, by argument name."""
    size = 2 ** (len(config.channels) - 1)
    inputs: dict[str, Any] = {
        "z": jnp.zeros((1, size, size, config.in_channels)),
        "t": jnp.zeros((1,), jnp.int32),
        "context": jnp.zeros((1, 1, config.cross_attention_dim[0])),
    }
    if config.text_time:
        assert config.projection_input_dim is not None and config.addition_time_embed_dim is not None
        pooled = config.projection_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond"] = {"text_embeds": jnp.zeros((1, pooled)), "time_ids": jnp.zeros((1, 6))}
    return inputs


def init_unet(unet: UNet2DConditionModel, rng: jax.Array) -> Params:
    """Fresh float32 parameters (jit it, or `jax.eval_shape` it for the shapes alone)."""
    return unet.init({"params": rng}, **example_inputs(unet.config))["params"]
