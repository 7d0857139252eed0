"""Layers every network here is made of: convolution, dense, group and layer normalisation.

Arrays are NHWC (`[b, h, w, c]`) or tokens (`[b, n, d]`). Parameters are named as the generic weight conversion names
them: `kernel` (HWIO, or `[in, out]`) and `bias` for convolutions and dense layers, `scale` and `bias` for norms.
`dtype` is the compute dtype; parameters are stored in whatever dtype they arrive in. Statistics of norms are float32:

    GroupNorm  y = (x - mean_g) / sqrt(var_g + eps) * scale_c + bias_c     over h, w and the channels of group g,
               var = E[x^2] - E[x]^2, both in one pass, applied as one gain and offset per channel
    LayerNorm  y = (x - mean) / sqrt(var + eps) * scale_c + bias_c         over channels

`matmul` is a product with its own backward pass, which needs no transposed copy. Kernels of products and convolutions
go through `gathered`, where a program whose parameters are split over devices says how they come together.

Kernels start uniform in +-1/sqrt(fan_in) (PyTorch's default for both kinds), biases at zero.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


PRODUCT = "product"

Gather = Callable[[jax.Array], jax.Array]
_gather: contextvars.ContextVar[Gather] = contextvars.ContextVar("gather", default=lambda kernel: kernel)


@contextlib.contextmanager
def gathering(gather: Gather) -> Iterator[None]:
    """Within it, programs are traced whose products and convolutions read gather(kernel), in their compute dtype."""
    token = _gather.set(gather)
    try:
        yield
    finally:
        _gather.reset(token)


def gathered(kernel: jax.Array) -> jax.Array:
    """The kernel as the program that is being traced brings it together; outside of `gathering` as it is."""
    return _gather.get()(kernel)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., i] @ kernel [i, o] -> [..., o], named PRODUCT for remat policies; reverse mode only.

    JAX's own gradient of the kernel is a transposed product, for which XLA's CPU compiler first transposes what comes
    from above; written as x^T g over flattened rows it reads both as they lie.
    """
    return checkpoint_name(_matmul(x, gathered(kernel)), PRODUCT)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _matmul_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matmul(x, kernel), (x, kernel)


def _matmul_backward(saved: tuple[jax.Array, jax.Array], above: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dx = jax.lax.dot_general(above, kernel, (((above.ndim - 1,), (1,)), ((), ())))
    rows = x.reshape(-1, x.shape[-1]), above.reshape(-1, above.shape[-1])
    return dx, jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())))


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _dot_general(x: jax.Array, kernel: jax.Array, dimensions: object, precision: object = None) -> jax.Array:
    return matmul(x, kernel)  # what flax's Dense asks for is always this product


Dense = functools.partial(nn.Dense, kernel_init=kernel_init, dot_general=_dot_general)


class Conv(nn.Module):
    """A square convolution `[b, h, w, i] -> [b, h', w', features]`, kernel `[k, k, i, features]`.

    padding is symmetric, `k // 2` by default; `((top, bottom), (left, right))` overrides it.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    kernel_init: nn.initializers.Initializer = kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.kernel_size, self.kernel_size)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        half = self.kernel_size // 2
        out = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            gathered(kernel),
            window_strides=(self.stride, self.stride),
            padding=self.padding or ((half, half), (half, half)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out + bias[None, None, None]


class PointwiseConv(nn.Module):
    """A 1x1 convolution applied as a matrix product, to images or to tokens; the kernel keeps its `[1, 1, i, o]`."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kernel_init, (1, 1, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return matmul(x.astype(self.dtype), kernel[0, 0]) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class GroupNorm(nn.Module):
    """Group normalisation of `[b, ..., c]` over every axis but the batch and within `num_groups` channel groups."""

    num_groups: int
    eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, c = x.shape[0], x.shape[-1]
        if c % self.num_groups:
            raise ValueError(f"norm_num_groups={self.num_groups} does not divide {c} channels")
        scale = self.param("scale", nn.initializers.ones, (c,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(jnp.float32)
        pixels = x.astype(jnp.float32).reshape(b, -1, c)

        def group_mean(values: jax.Array) -> jax.Array:
            """Means `[b, groups, 1]` over pixels, then over the channels of each group."""
            return values.mean(1).reshape(b, self.num_groups, -1).mean(-1, keepdims=True)

        mean = group_mean(pixels)
        var = jnp.maximum(group_mean(jnp.square(pixels)) - jnp.square(mean), 0)
        gain = jax.lax.rsqrt(var + self.eps) * scale.reshape(1, self.num_groups, -1)
        offset = bias.reshape(1, self.num_groups, -1) - mean * gain
        return (pixels * gain.reshape(b, 1, c) + offset.reshape(b, 1, c)).reshape(x.shape).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation of `[..., c]` over its last axis."""

    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1,) * (x.ndim - 1) + (-1,)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32).reshape(shape)
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        var = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(var + self.eps) * scale + bias).astype(self.dtype)
