"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020), as Stable Diffusion uses it.

With x the sum of token and position embeddings, every layer is pre-norm,

    x <- x + Attention(LN1(x))    causal: token i attends to tokens 0..i
    x <- x + W2 act(W1 LN2(x))    act = quick_gelu, u sigmoid(1.702 u), or the exact gelu

and the last states pass a final LayerNorm. What each model conditions on:

| model | context | pooled |
| --- | --- | --- |
| SD 1.x, 2.x | last states after the final norm | none |
| SDXL | both encoders' states before the last layer, not normed, concatenated | the second's projection |

Pooling reads the final-norm state at the end-of-text token: the first id equal to `eos_token_id`; where a published
config says 2 (a historical mistake), the largest id. Parameters are named as in published files,
`text_model/encoder/layers_0/self_attn/q_proj/kernel`. Shapes: b texts, n tokens, d width, e projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.layers import Dense

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}


class TextStates(NamedTuple):
    """last f[b,n,d] after the final norm; penultimate f[b,n,d], the last layer's input; pooled f[b,d], the end-of-text
    state; projected f[b,e], its projection, or None for an encoder without one."""

    last: jax.Array
    penultimate: jax.Array
    pooled: jax.Array
    projected: jax.Array | None


class TextConfig(NamedTuple):
    """The fields of a CLIP text config.json that shape the network."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int | None = None

    @classmethod
    def from_json(cls, config: Mapping[str, Any], source: str = "text_encoder/config.json") -> TextConfig:
        """Reads a config.json; `projection_dim` counts only for the architecture CLIPTextModelWithProjection.

        Raises:
          ValueError: another architecture or an activation that is not supported, naming the field.
        """
        (architecture,) = config.get("architectures") or ["CLIPTextModel"]
        if architecture not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            raise ValueError(f"{source}: architectures = {architecture!r} is not supported, only CLIPTextModel*")
        if config.get("model_type", "clip_text_model") != "clip_text_model":
            raise ValueError(f"{source}: model_type = {config['model_type']!r} is not supported; use 'clip_text_model'")
        fields = {name: config[name] for name in cls._fields if name in config}
        if not architecture.endswith("WithProjection"):
            fields["projection_dim"] = None
        elif "projection_dim" not in config:
            fields["projection_dim"] = 512
        out = cls(**fields)
        if out.hidden_act not in ACTIVATIONS:
            raise ValueError(f"{source}: hidden_act = {out.hidden_act!r} is not supported; use one of {[*ACTIVATIONS]}")
        if out.hidden_size % out.num_attention_heads:
            raise ValueError(
                f"{source}: hidden_size = {out.hidden_size} does not divide into {out.num_attention_heads} heads"
            )
        return out


class CLIPTextEncoder(nn.Module):
    """ids i32[b,n] -> TextStates in `dtype`; norms and softmax in float32 inside. Both of CLIP's text architectures."""

    config: TextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> TextStates:
        cfg = self.config
        last, penultimate = TextTransformer(cfg, self.dtype, name="text_model")(ids)
        at_end = ids if cfg.eos_token_id == 2 else (ids == cfg.eos_token_id).astype(jnp.int32)
        pooled = jnp.take_along_axis(last, at_end.argmax(-1)[:, None, None], axis=1)[:, 0]
        projected = None
        if cfg.projection_dim is not None:
            std = cfg.hidden_size**-0.5
            projected = _dense(cfg.projection_dim, std, "text_projection", self.dtype, bias=False)(pooled)
        return TextStates(last, penultimate, pooled, projected)


class TextTransformer(nn.Module):
    """ids i32[b,n] -> (states after the final norm, input states of the last layer), both f[b,n,d]."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = Embeddings(self.config, self.dtype, name="embeddings")(ids)
        hidden, penultimate = Encoder(self.config, self.dtype, name="encoder")(hidden)
        return _norm(self.config, self.dtype, "final_layer_norm")(hidden), penultimate


class Embeddings(nn.Module):
    """ids i32[b,n] -> token plus position embeddings f[b,n,d]."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        cfg = self.config
        if ids.shape[1] > cfg.max_position_embeddings:
            raise ValueError(
                f"{ids.shape[1]} ids per text; the text encoder has {cfg.max_position_embeddings} positions"
            )

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(0.02)
            return nn.Embed(rows, cfg.hidden_size, dtype=self.dtype, embedding_init=init, name=name)

        positions = table(cfg.max_position_embeddings, "position_embedding")(jnp.arange(ids.shape[1])[None])
        return table(cfg.vocab_size, "token_embedding")(ids) + positions


class Encoder(nn.Module):
    """The stack of layers: hidden f[b,n,d] -> (last layer's output, last layer's input)."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        penultimate = hidden
        for i in range(self.config.num_hidden_layers):
            penultimate = hidden
            hidden = Layer(self.config, self.dtype, name=f"layers_{i}")(hidden)
        return hidden, penultimate


class Layer(nn.Module):
    """One pre-norm transformer layer, f[b,n,d] -> f[b,n,d]."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        attention = CausalAttention(self.config, self.dtype, name="self_attn")
        hidden = hidden + attention(_norm(self.config, self.dtype, "layer_norm1")(hidden))
        return hidden + MLP(self.config, self.dtype, name="mlp")(_norm(self.config, self.dtype, "layer_norm2")(hidden))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and earlier tokens, f[b,n,d] -> f[b,n,d]."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        cfg = self.config
        width, heads = cfg.hidden_size, cfg.num_attention_heads
        b, n, _ = hidden.shape

        def project(name: str) -> jax.Array:
            std = width**-0.5 * (2 * cfg.num_hidden_layers) ** -0.5
            return _dense(width, std, name, self.dtype)(hidden).reshape(b, n, heads, width // heads)

        query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(width // heads)
        causal = jnp.tril(jnp.ones((1, 1, n, n), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(jnp.float32).min)).astype(self.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(b, n, width)
        return _dense(width, width**-0.5, "out_proj", self.dtype)(out)


class MLP(nn.Module):
    """The feed-forward half of a layer, f[b,n,d] -> f[b,n,d]."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = _dense(cfg.intermediate_size, (2 * cfg.hidden_size) ** -0.5, "fc1", self.dtype)(hidden)
        std = cfg.hidden_size**-0.5 * (2 * cfg.num_hidden_layers) ** -0.5
        return _dense(cfg.hidden_size, std, "fc2", self.dtype)(ACTIVATIONS[cfg.hidden_act](hidden))


def _dense(features: int, std: float, name: str, dtype: Any, bias: bool = True) -> nn.Dense:
    init = nn.initializers.normal(std)
    return Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


def _norm(config: TextConfig, dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)
