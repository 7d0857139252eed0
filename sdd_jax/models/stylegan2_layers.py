"""Layers of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, sec. 2 and app. B), NHWC.

    EqualLinear     y = x (W c) + l b,  c = l / sqrt(fan_in)          W ~ N(0, 1/l^2): every weight learns equally fast
    activation      sqrt(2) leaky_relu(y, 0.2)                        keeps the second moment
    modulation      W'_ijk = s_i W_ijk / sqrt(fan_in)                 s: a style, one gain per input channel   (eq. 1)
    demodulation    W''_ijk = W'_ijk / sqrt(sum_ik W'_ijk^2 + 1e-8)   outputs of unit deviation                (eq. 3)

Instead of one kernel a sample, inputs are scaled by s, convolved with the one shared kernel and outputs scaled by the
demodulation, whose sum is (s^2)_i (sum_k W_ijk^2)_ij: the same map without a grouped convolution.

Doubling the size is a transposed convolution of stride 2 followed by a blur. In one axis the transposed convolution is
out[2p + r] = sum_a W[2a + r] x[p - a], so a 2x2 convolution gives all four parities (r_h, r_w) at once, as channels;
16 multiplications an input pixel where a convolution over zero-stuffed pixels takes 36 (the least possible is 9).

`upfirdn` is the resampling filter: insert zeros, pad, convolve with a separable kernel. Its taps are normalised and
multiplied by `up` in each axis, so that a constant stays one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

EPS = 1e-8


def leaky_relu(x: jax.Array) -> jax.Array:
    """sqrt(2) leaky_relu(x, 0.2)."""
    return nn.leaky_relu(x, 0.2) * math.sqrt(2.0)


def pixel_norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """x / sqrt(mean(x^2, axis) + 1e-8)."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis, keepdims=True) + EPS)


def filter_taps(blur: Sequence[float], up: int = 1) -> tuple[float, ...]:
    """The taps of one axis: `blur` with sum `up`."""
    return tuple(float(tap) * up / sum(blur) for tap in blur)


def upfirdn(x: jax.Array, taps: Sequence[float], up: int = 1, pad: tuple[int, int] = (0, 0)) -> jax.Array:
    """Inserts up - 1 zeros after every pixel, pads and convolves both axes with `taps`.

    x: [b,h,w,c]. pad: zeros before and after, of each axis. Returns [b,h',w',c], h' = h up + sum(pad) - len(taps) + 1.
    """
    border = (pad[0], pad[1] + up - 1, up - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), border, border, (0, 0, 0)))
    for axis in (1, 2):
        size = x.shape[axis] - len(taps) + 1
        # a convolution, unlike lax.conv, reads its kernel backwards
        x = sum(  # type: ignore[assignment]
            tap * jax.lax.slice_in_dim(x, k, k + size, axis=axis) for k, tap in enumerate(reversed(taps))
        )
    return x


def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Correlates x [b,h,w,i] with a kernel [k,k,i,o], `padding` zeros on every side."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def transposed_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of stride 2: x [b,h,w,i], kernel [3,3,i,o] -> [b,2h+2,2w+2,o], zero at the far edges."""
    b, h, w, i = x.shape
    o = kernel.shape[-1]
    parities = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(2, 2, 2, 2, i, o)  # a_h r_h a_w r_w i o
    flipped = parities[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, i, 4 * o)
    # padded beforehand: XLA's CPU backend takes 25 times as long for the kernel's gradient of a padded 2x2 convolution
    out = convolve(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), flipped, 0).reshape(b, h + 1, w + 1, 2, 2, o)
    return out.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h + 2, 2 * w + 2, o)


def modulated_conv(
    x: jax.Array,
    kernel: jax.Array,
    style: jax.Array,
    *,
    demodulate: bool = True,
    up_taps: Sequence[float] | None = None,
) -> jax.Array:
    """Convolves each sample with the kernel that its style makes (eqs. 1 and 3).

    Args:
      x: [b,h,w,i]. kernel: f32[k,k,i,o], k odd (3 to upsample). style: f32[b,i].
      up_taps: of the blur after doubling the size (`filter_taps(blur, up=2)`, four of them); None: keeps the size.

    Returns [b,h,w,o] or [b,2h,2w,o], of x's dtype.
    """
    size, _, i, _ = kernel.shape
    weight = kernel.astype(jnp.float32) / math.sqrt(size * size * i)
    y = x * style.astype(x.dtype)[:, None, None, :]
    if up_taps is None:
        y = convolve(y, weight.astype(x.dtype), size // 2)
    else:
        # the transposed convolution's last row and column are the zeros that (1, 1) would pad
        y = upfirdn(transposed_convolve(y, weight.astype(x.dtype)), up_taps, pad=(1, 0))
    if demodulate:
        norm = jax.lax.rsqrt(jnp.square(style.astype(jnp.float32)) @ jnp.square(weight).sum((0, 1)) + EPS)
        y = y * norm.astype(x.dtype)[:, None, None, :]
    return y


class EqualLinear(nn.Module):
    """x [...,i] -> [...,features]. Parameters: kernel [i,features], bias [features], stored divided by `lr_mul`."""

    features: int
    lr_mul: float = 1.0
    bias_init: float = 0.0
    activate: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0 / self.lr_mul), (fan_in, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.features,))
        y = x.astype(self.dtype) @ (kernel * (self.lr_mul / math.sqrt(fan_in))).astype(self.dtype)
        y = y + (bias * self.lr_mul).astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return leaky_relu(y) if self.activate else y


class ModulatedConv(nn.Module):
    """`modulated_conv` with its kernel [k,k,in_features,features] and the linear map `modulation` from w to a style."""

    in_features: int
    features: int
    kernel_size: int = 3
    demodulate: bool = True
    up_blur: tuple[float, ...] | None = None

    def setup(self) -> None:
        shape = (self.kernel_size, self.kernel_size, self.in_features, self.features)
        self.kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        self.modulation = EqualLinear(self.in_features, bias_init=1.0)

    def style(self, w: jax.Array) -> jax.Array:
        """w f32[b,d] -> style f32[b,in_features]."""
        return self.modulation(w)

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        taps = None if self.up_blur is None else filter_taps(self.up_blur, up=2)
        return modulated_conv(x, self.kernel, style, demodulate=self.demodulate, up_taps=taps)


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, activation. Parameters beside `conv`: noise_strength [], bias [features]."""

    in_features: int
    features: int
    up_blur: tuple[float, ...] | None = None

    def setup(self) -> None:
        self.conv = ModulatedConv(self.in_features, self.features, up_blur=self.up_blur)
        self.noise_strength = self.param("noise_strength", nn.initializers.zeros, ())
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def style(self, w: jax.Array) -> jax.Array:
        """w f32[b,d] -> style f32[b,in_features]."""
        return self.conv.style(w)

    def __call__(self, x: jax.Array, style: jax.Array, noise: jax.Array | None) -> jax.Array:
        """x [b,h,w,i], noise None or [1 or b,h',w',1] -> [b,h',w',features]."""
        y = self.conv(x, style)
        if noise is not None:
            y = y + (self.noise_strength * noise).astype(y.dtype)
        return leaky_relu(y + self.bias.astype(y.dtype)[None, None, None])


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to RGB, not demodulated, added to the doubled image so far. Parameter bias [3]."""

    in_features: int
    blur: tuple[float, ...]

    def setup(self) -> None:
        self.conv = ModulatedConv(self.in_features, 3, kernel_size=1, demodulate=False)
        self.bias = self.param("bias", nn.initializers.zeros, (3,))

    def style(self, w: jax.Array) -> jax.Array:
        """w f32[b,d] -> style f32[b,in_features]."""
        return self.conv.style(w)

    def __call__(self, x: jax.Array, style: jax.Array, image: jax.Array | None) -> jax.Array:
        """x [b,h,w,i], image None or f32[b,h/2,w/2,3] -> f32[b,h,w,3]."""
        rgb = self.conv(x, style).astype(jnp.float32) + self.bias[None, None, None]
        if image is None:
            return rgb
        return rgb + upfirdn(image, filter_taps(self.blur, up=2), up=2, pad=(2, 1))


def blur_kernel(blur: Sequence[float], up: int = 1) -> np.ndarray:
    """The two-dimensional filter f32[k,k] that PyTorch files hold as a buffer; sums to up^2."""
    taps = np.asarray(filter_taps(blur, up), np.float64)
    return np.outer(taps, taps).astype(np.float32)
