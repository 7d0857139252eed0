"""CLIP whole (Radford et al. 2021, arXiv:2103.00020): the vision transformer here, the text encoder of `models.text`.

An image is cut into patches; with a class token in front and position embeddings x_0 = LN([class, patches] + p), every
layer is pre-norm as in the text encoder, without a causal mask. The last states' class token, normed, is projected:

    image embedding = W_v LN(x_L[class]),    text embedding = W_t x_text[end of text],    score = cosine of the two

`ViT-B/32` has 12 layers of width 768, `ViT-L/14` 24 of 1024; both come from a config.json of transformers' `CLIPModel`,
which also names the weights: `vision_model`, `text_model`, `visual_projection`, `text_projection` (the temperature
`logit_scale` plays no part in a cosine and is not read). Shapes: b images, n = 1 + patches, d width, e projection.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models import hub
from sdd_jax.models.state_dicts import read_state_dict, rename, to_params
from sdd_jax.models.text import ACTIVATIONS, CLIPTextEncoder, TextConfig
from sdd_jax.types import Params

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


class VisionConfig(NamedTuple):
    """The fields of a CLIP vision config.json that shape the network; the defaults are ViT-B/32's."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    @classmethod
    def from_json(cls, config: Mapping[str, Any], source: str = "config.json") -> VisionConfig:
        """Reads the `vision_config` of a CLIP config.json; ValueError naming a field that is not supported."""
        if config.get("num_channels", 3) != 3:
            raise ValueError(f"{source}: num_channels = {config['num_channels']} is not supported; images have 3")
        out = cls(**{name: config[name] for name in cls._fields if name in config})
        if out.hidden_act not in ACTIVATIONS:
            raise ValueError(f"{source}: hidden_act = {out.hidden_act!r} is not supported; use one of {[*ACTIVATIONS]}")
        if out.hidden_size % out.num_attention_heads or out.image_size % out.patch_size:
            raise ValueError(f"{source}: heads must divide hidden_size and patch_size image_size; got {out}")
        return out


class VisionStates(NamedTuple):
    """last f[b,n,d], before the final norm; pooled f[b,d], the normed class token; projected f[b,e]."""

    last: jax.Array
    pooled: jax.Array
    projected: jax.Array


class CLIP(NamedTuple):
    """A whole CLIP: both configs and the parameters `{"vision": ..., "text": ...}`."""

    vision: VisionConfig
    text: TextConfig
    params: Params


def load_clip(directory: str | Path) -> CLIP:
    """Loads a directory of transformers' CLIP: `config.json` and `model.safetensors` or `pytorch_model.bin`.

    Raises:
      FileNotFoundError, ValueError: in one line, naming the file, or the field that is not supported.
    """
    root = Path(directory)
    config = hub.read_json(root / "config.json")
    vision, text = clip_configs(config, str(root / "config.json"))
    path = next((root / name for name in WEIGHT_NAMES if (root / name).is_file()), root / WEIGHT_NAMES[0])
    tensors = rename(read_state_dict(path), (), drop=r"logit_scale|.*\.position_ids$")
    seen = {key: value for key, value in tensors.items() if key.startswith(("vision_model.", "visual_projection."))}
    read = {key: value for key, value in tensors.items() if key not in seen}
    image, ids = jnp.zeros((1, vision.image_size, vision.image_size, 3)), jnp.zeros((1, 1), jnp.int32)
    params = {
        "vision": to_params(seen, CLIPVision(vision), image, source=str(path)),
        "text": to_params(read, CLIPTextEncoder(text), ids, source=str(path)),
    }
    return CLIP(vision, text, params)


def clip_configs(config: Mapping[str, Any], source: str = "config.json") -> tuple[VisionConfig, TextConfig]:
    """The configs of both towers from a `CLIPModel`'s config.json; ValueError for another model."""
    if config.get("model_type") != "clip":
        raise ValueError(f"{source}: model_type = {config.get('model_type')!r} is not supported; give a CLIPModel's")
    projection = {"projection_dim": config.get("projection_dim", 512)}
    vision = VisionConfig.from_json({**config.get("vision_config", {}), **projection}, source)
    fields = {**config.get("text_config", {}), **projection, "architectures": ["CLIPTextModelWithProjection"]}
    return vision, TextConfig.from_json(fields, source)


@functools.partial(jax.jit, static_argnums=0)
def embed_image(config: VisionConfig, params: Params, pixels: jax.Array) -> jax.Array:
    """Projected embeddings f32[b,e], of any length, of preprocessed images f32[b,s,s,3] (`evals.preprocess.CLIP`)."""
    with jax.default_matmul_precision("highest"):
        states: Any = CLIPVision(config).apply({"params": params}, pixels)
    return states.projected


@functools.partial(jax.jit, static_argnums=0)
def embed_text(config: TextConfig, params: Params, ids: jax.Array) -> jax.Array:
    """Projected embeddings f32[b,e], of any length, of token ids i32[b,n]."""
    with jax.default_matmul_precision("highest"):
        states: Any = CLIPTextEncoder(config).apply({"params": params}, ids)
    return states.projected


class CLIPVision(nn.Module):
    """pixels f32[b,s,s,3] -> VisionStates."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> VisionStates:
        last, pooled = VisionTransformer(self.config, name="vision_model")(pixels)
        projected = nn.Dense(self.config.projection_dim, use_bias=False, name="visual_projection")(pooled)
        return VisionStates(last, pooled, projected)


class VisionTransformer(nn.Module):
    """pixels f32[b,s,s,3] -> (last states f32[b,n,d], normed class token f32[b,d])."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        hidden = PatchEmbeddings(cfg, name="embeddings")(pixels)
        hidden = norm(cfg.layer_norm_eps, "pre_layrnorm")(hidden)
        hidden = VisionEncoder(cfg, name="encoder")(hidden)
        return hidden, norm(cfg.layer_norm_eps, "post_layernorm")(hidden[:, 0])


class PatchEmbeddings(nn.Module):
    """pixels f32[b,s,s,3] -> class token and patches with their positions, f32[b,n,d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        cfg = self.config
        if pixels.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            raise ValueError(f"this CLIP takes {cfg.image_size}x{cfg.image_size} RGB images; got {pixels.shape[1:]}")
        window = (cfg.patch_size, cfg.patch_size)
        patches = nn.Conv(
            cfg.hidden_size, window, strides=window, padding="VALID", use_bias=False, name="patch_embedding"
        )(pixels)
        patches = patches.reshape(len(pixels), -1, cfg.hidden_size)
        token = self.param("class_embedding", nn.initializers.normal(0.02), (cfg.hidden_size,))
        tokens = jnp.broadcast_to(token[None, None], (len(pixels), 1, cfg.hidden_size))
        count = 1 + patches.shape[1]
        positions = nn.Embed(count, cfg.hidden_size, name="position_embedding")(jnp.arange(count)[None])
        return jnp.concatenate([tokens, patches], 1) + positions


class VisionEncoder(nn.Module):
    """The stack of layers, f32[b,n,d] -> f32[b,n,d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        for i in range(self.config.num_hidden_layers):
            hidden = VisionLayer(self.config, name=f"layers_{i}")(hidden)
        return hidden


class VisionLayer(nn.Module):
    """One pre-norm layer, f32[b,n,d] -> f32[b,n,d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        cfg = self.config
        attention = SelfAttention(cfg.num_attention_heads, name="self_attn")
        hidden = hidden + attention(norm(cfg.layer_norm_eps, "layer_norm1")(hidden))
        mlp = MLP(cfg.intermediate_size, cfg.hidden_act, name="mlp")
        return hidden + mlp(norm(cfg.layer_norm_eps, "layer_norm2")(hidden))


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate projections, f32[b,n,d] -> f32[b,n,d]."""

    heads: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        width = hidden.shape[-1]
        query, key, value = (nn.Dense(width, name=name)(hidden) for name in ("q_proj", "k_proj", "v_proj"))
        return nn.Dense(width, name="out_proj")(attend(query, key, value, self.heads))


class MLP(nn.Module):
    """The feed-forward half of a layer, f32[b,n,d] -> f32[b,n,d]."""

    features: int
    activation: str = "gelu"

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        inner = ACTIVATIONS[self.activation](nn.Dense(self.features, name="fc1")(hidden))
        return nn.Dense(hidden.shape[-1], name="fc2")(inner)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d / heads)) v per head: query f32[b,q,d], key and value f32[b,k,d] -> f32[b,q,d].

    mask: bool [b,k], the keys that may be read; all of them if None.
    """
    b, n, width = query.shape

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(b, x.shape[1], heads, width // heads)

    scores = jnp.einsum("bqhd,bkhd->bhqk", split(query), split(key)) / math.sqrt(width // heads)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), split(value)).reshape(b, n, width)


def norm(eps: float, name: str) -> nn.LayerNorm:
    """Layer normalisation with exact float32 statistics."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, name=name)
