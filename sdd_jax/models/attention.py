"""Attention: the dispatcher, the hooks that editing methods use, and the transformer of a Stable Diffusion UNet.

    probs = softmax(q k^T / sqrt(d)),   out = probs v        q [b,n,h,d], k and v [b,m,h,d], probs [b,h,n,m]

`attend` picks an implementation by shape: cuDNN's fused kernel on CUDA for half precision with d % 8 == 0 and d <= 128,
XLA elsewhere, with float32 scores and softmax whatever the inputs. From `LARGE` scores per head on, XLA works on chunks
of queries whose scores the backward pass recomputes, so neither direction holds more than one chunk of them.

An editing method reaches inside through `AttentionEdit`, three optional pure functions that see every layer by its path
(`up_blocks_1/attentions_0/transformer_blocks_0/attn1`; attn1 is self-, attn2 cross-attention):

| method | what it sets |
| --- | --- |
| prompt-to-prompt (Hertz et al. 2022) | `probs`: the source item's maps in place of the target's, words reweighted |
| MasaCtrl (Cao et al. 2023) | `qkv`: the source item's k and v for the target's self-attention |
| plug-and-play (Tumanyan et al. 2023) | `qkv`: the source's q and k; `features`: the source's residual-block output |
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sdd_jax.models.layers import Dense, GroupNorm, LayerNorm, PointwiseConv

LARGE = 4096 * 4096
QUERY_CHUNK = 1024

_fused_allowed = True


def use_attention(implementation: str) -> None:
    """Sets for this process whether programs traced from now on may use fused kernels: "auto" (yes) or "xla" (no)."""
    global _fused_allowed
    if implementation not in ("auto", "xla"):
        raise ValueError(f"attention {implementation!r} is not known; use auto or xla")
    _fused_allowed = implementation == "auto"


class EditProbs(Protocol):
    """Maps attention probabilities float32 `[b, heads, n, m]` to what multiplies the values, the same shape."""

    def __call__(self, probs: jax.Array, *, layer: str, is_cross: bool) -> jax.Array: ...


class EditQKV(Protocol):
    """Maps queries `[b, n, heads, d]`, keys and values `[b, m, heads, d]` to those that attention uses."""

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, *, layer: str, is_cross: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]: ...


class EditFeatures(Protocol):
    """Maps a residual block's branch `[b, h, w, c]`, before the shortcut is added, to its replacement."""

    def __call__(self, features: jax.Array, *, layer: str) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class AttentionEdit:
    """What an editing method changes inside a UNet; a field left at None changes nothing and costs nothing.

    `probs` makes every layer compute its map explicitly; `qkv` and `features` keep the fused kernels. The functions are
    traced with the model, so they may close over traced arrays (a step's schedule, masks).
    """

    probs: EditProbs | None = None
    qkv: EditQKV | None = None
    features: EditFeatures | None = None


def as_edit(edit: AttentionEdit | EditProbs | None) -> AttentionEdit:
    """Wraps a bare function, which edits probabilities; None becomes the neutral edit."""
    if edit is None:
        return AttentionEdit()
    return edit if isinstance(edit, AttentionEdit) else AttentionEdit(probs=edit)


def attention_scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """q k^T / sqrt(d) in float32: q `[b,n,h,d]`, k `[b,m,h,d]` -> `[b,h,n,m]`."""
    scale = q.shape[-1] ** -0.5
    rows, columns = jnp.moveaxis(q, 2, 1), jnp.transpose(k, (0, 2, 3, 1))
    if q.dtype == jnp.float32:  # on queries the factor costs less; half precision would round them once more
        return jnp.matmul(rows * scale, columns)
    return jnp.matmul(rows, columns, preferred_element_type=jnp.float32) * scale


def weighted_values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """weights v, accumulated and returned in float32: `[b,h,n,m]`, `[b,m,h,d]` -> `[b,h,n,d]`."""
    return jnp.matmul(weights.astype(v.dtype), jnp.moveaxis(v, 2, 1), preferred_element_type=jnp.float32)


def explicit_attention(q: jax.Array, k: jax.Array, v: jax.Array, edit: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Attention with its map passed through `edit`; shapes as for `attend`."""
    probs = edit(jax.nn.softmax(attention_scores(q, k), axis=-1))
    return jnp.moveaxis(weighted_values(probs, v), 1, 2).astype(v.dtype)


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention in plain XLA; shapes as for `attend`. Dividing after the product spares a pass over the scores."""
    scores = attention_scores(q, k)
    exps = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = weighted_values(exps, v) / exps.sum(-1, keepdims=True)
    return jnp.moveaxis(out, 1, 2).astype(v.dtype)


def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`softmax_attention`, in chunks of queries where n * m is large; shapes as for `attend`."""
    n, m = q.shape[1], k.shape[1]
    if n * m < LARGE:
        return softmax_attention(q, k, v)
    chunks = -(-n // QUERY_CHUNK)
    padded = jnp.pad(q, ((0, 0), (0, chunks * QUERY_CHUNK - n), (0, 0), (0, 0)))
    stacked = jnp.moveaxis(padded.reshape(q.shape[0], chunks, QUERY_CHUNK, *q.shape[2:]), 1, 0)
    out = jax.lax.map(jax.checkpoint(lambda chunk: softmax_attention(chunk, k, v)), stacked)
    return jnp.moveaxis(out, 0, 1).reshape(padded.shape)[:, :n]


@functools.cache
def cudnn_supports(n: int, m: int, heads: int, head_dim: int, dtype: str) -> bool:
    """Whether cuDNN's fused attention compiles, both ways, for this shape; one log line where it does not."""
    q = jax.ShapeDtypeStruct((1, n, heads, head_dim), dtype)
    k = jax.ShapeDtypeStruct((1, m, heads, head_dim), dtype)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).compile()
    except Exception as error:  # cuDNN reports what it cannot do as any of several exception types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        shape = f"n={n} m={m} heads={heads} head_dim={head_dim} {dtype}"
        logging.getLogger(__name__).warning("attention %s runs in XLA, not cuDNN: %s", shape, reason)
        return False
    return True


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v by the fastest implementation for the shape, dtype and backend.

    q `[b,n,h,d]`, k and v `[b,m,h,d]` -> `[b,n,h,d]` in v's dtype.
    """
    head_dim = q.shape[-1]
    half_precision = q.dtype in (jnp.bfloat16, jnp.float16)
    if _fused_allowed and half_precision and head_dim % 8 == 0 and head_dim <= 128 and jax.default_backend() == "gpu":
        if cudnn_supports(q.shape[1], k.shape[1], q.shape[2], head_dim, q.dtype.name):
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return xla_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head attention of tokens `[b, n, c]` to `context` `[b, m, d]`, to themselves where it is None."""

    heads: int
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None, edit: AttentionEdit | None = None) -> jax.Array:
        width = x.shape[-1]
        source = x if context is None else context

        def project(inputs: jax.Array, name: str) -> jax.Array:
            out = Dense(width, use_bias=self.use_bias, dtype=self.dtype, name=name)(inputs)
            return out.reshape(*inputs.shape[:2], self.heads, width // self.heads)

        q, k, v = project(x, "to_q"), project(source, "to_k"), project(source, "to_v")
        out = self.mix(q, k, v, edit or AttentionEdit(), context is not None)
        return Dense(width, dtype=self.dtype, name="to_out_0")(out.reshape(x.shape))

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, edit: AttentionEdit, is_cross: bool) -> jax.Array:
        """Attention under `edit`; shapes as for `attend`."""
        layer = "/".join(self.path)
        if edit.qkv is not None:
            q, k, v = edit.qkv(q, k, v, layer=layer, is_cross=is_cross)
        if edit.probs is None:
            return attend(q, k, v)
        return explicit_attention(q, k, v, functools.partial(edit.probs, layer=layer, is_cross=is_cross))


class GEGLU(nn.Module):
    """`[..., c] -> [..., features]`: one half of a projection times the exact GELU, g (1 + erf(g / sqrt 2)) / 2."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * (0.5 * gate * (1 + jax.lax.erf(gate * 0.5**0.5)))


class FeedForward(nn.Module):
    """GEGLU to four times the width and back, `[b, n, c] -> [b, n, c]`."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = GEGLU(4 * x.shape[-1], dtype=self.dtype, name="net_0")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="net_2")(hidden)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward on tokens `[b, n, c]`, each after a LayerNorm and added."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, edit: AttentionEdit | None = None) -> jax.Array:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(dtype=self.dtype, name=name)

        x = x + Attention(self.heads, dtype=self.dtype, name="attn1")(norm("norm1")(x), None, edit)
        x = x + Attention(self.heads, dtype=self.dtype, name="attn2")(norm("norm2")(x), context, edit)
        return x + FeedForward(dtype=self.dtype, name="ff")(norm("norm3")(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of `[b, h, w, c]`, between two projections and inside a shortcut.

    use_linear_projection: dense projections (SD 2.x, SDXL) instead of 1x1 convolutions (SD 1.x): the same maths, other
    ranks of the stored kernels.
    """

    heads: int
    depth: int
    num_groups: int
    use_linear_projection: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, edit: AttentionEdit | None = None) -> jax.Array:
        b, h, w, c = x.shape
        projection: Callable[..., nn.Module] = Dense if self.use_linear_projection else PointwiseConv
        tokens = GroupNorm(self.num_groups, 1e-6, dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        tokens = projection(c, dtype=self.dtype, name="proj_in")(tokens)
        for i in range(self.depth):
            tokens = BasicTransformerBlock(self.heads, dtype=self.dtype, name=f"transformer_blocks_{i}")(
                tokens, context, edit
            )
        tokens = projection(c, dtype=self.dtype, name="proj_out")(tokens)
        return x + tokens.reshape(b, h, w, c)
