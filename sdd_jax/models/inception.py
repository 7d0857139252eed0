"""InceptionV3 as FID uses it: the 2015 TensorFlow graph, features before the classifier (2048 of them).

The network is Szegedy et al. 2015 (arXiv:1512.00567) with the differences that pytorch-fid found in the graph of
`inception-2015-12-05.tgz`, on whose features published FIDs (Heusel et al. 2017, arXiv:1706.08500) stand:

| block | pooling branch |
| --- | --- |
| Mixed_5*, 6b-6e, 7b | 3x3 average that divides by the pixels inside the image, not by 9 |
| Mixed_7c | 3x3 maximum (an error in the graph, kept since everyone's numbers have it) |

Every convolution is followed by batch normalisation with stored statistics and eps .001, then relu:

    y = relu((W * x - running_mean) / sqrt(running_var + .001) * scale + bias)

Input is 299x299 in [-1, 1]: `evals.preprocess.INCEPTION` resizes as pytorch-fid does. Other sizes from 75x75 run too.
Parameters are named as in pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`; its classifier `fc` is not read.
Convolutions are float32 at the highest precision, since accelerators' default would move FID.
"""

from __future__ import annotations

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdd_jax.models.state_dicts import read_state_dict, rename, to_params
from sdd_jax.types import Params

FEATURES = 2048
BATCH_NORM_EPS = 1e-3


def load_inception(path: str | os.PathLike[str]) -> Params:
    """Reads pytorch-fid's weights file, or the same tensors as safetensors; errors as `read_state_dict`."""
    tensors = rename(read_state_dict(path), (), drop=r"fc\.|AuxLogits\.")
    return to_params(tensors, InceptionV3(), jnp.zeros((1, 75, 75, 3)), source=str(path))


def inception_features(params: Params, image: jax.Array) -> jax.Array:
    """The pool3 features f32[b,2048] of `image` f32[b,H,W,3] in [-1, 1]; FID is defined for 299x299."""
    return InceptionV3().apply({"params": params}, image)  # type: ignore[return-value]


def max_pool(x: jax.Array, stride: int, padding: int = 0) -> jax.Array:
    """3x3 maximum over f32[b,h,w,c]."""
    return nn.max_pool(x, (3, 3), (stride, stride), ((padding, padding), (padding, padding)))


def average_pool(x: jax.Array) -> jax.Array:
    """3x3 average over the pixels that lie inside the image, f32[b,h,w,c] -> the same shape."""
    return nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


class BatchNorm(nn.Module):
    """Batch normalisation with stored statistics, f32[b,h,w,c] -> f32[b,h,w,c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, (x.shape[-1],)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("running_mean", zeros, shape), self.param("running_var", ones, shape)
        gain = scale * jax.lax.rsqrt(var + BATCH_NORM_EPS)
        return x * gain[None, None, None] + (bias - mean * gain)[None, None, None]


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, relu: f32[b,h,w,i] -> f32[b,h',w',features]; padding in pixels on each side."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = [(side, side) for side in self.padding]
        conv = functools.partial(nn.Conv, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="conv")
        x = conv(self.features, self.kernel, strides=self.stride, padding=padding)(x)
        return nn.relu(BatchNorm(name="bn")(x))


def _conv1x1(features: int, name: str) -> ConvNorm:
    return ConvNorm(features, name=name)


def _conv3x3(features: int, name: str) -> ConvNorm:
    return ConvNorm(features, (3, 3), padding=(1, 1), name=name)


def _conv3x3_down(features: int, name: str) -> ConvNorm:
    return ConvNorm(features, (3, 3), stride=2, name=name)


def _row(features: int, name: str, size: int = 7) -> ConvNorm:
    return ConvNorm(features, (1, size), padding=(0, size // 2), name=name)


def _column(features: int, name: str, size: int = 7) -> ConvNorm:
    return ConvNorm(features, (size, 1), padding=(size // 2, 0), name=name)


class BlockA(nn.Module):
    """Mixed_5b-5d: f32[b,h,w,c] -> f32[b,h,w,224 + pooled]."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _conv1x1(64, "branch1x1")(x)
        wide = ConvNorm(64, (5, 5), padding=(2, 2), name="branch5x5_2")(_conv1x1(48, "branch5x5_1")(x))
        double = _conv3x3(96, "branch3x3dbl_2")(_conv1x1(64, "branch3x3dbl_1")(x))
        double = _conv3x3(96, "branch3x3dbl_3")(double)
        pooled = _conv1x1(self.pooled, "branch_pool")(average_pool(x))
        return jnp.concatenate([single, wide, double, pooled], -1)


class BlockB(nn.Module):
    """Mixed_6a: f32[b,h,w,c] -> f32[b,h/2,w/2,480 + c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = _conv3x3(96, "branch3x3dbl_2")(_conv1x1(64, "branch3x3dbl_1")(x))
        double = _conv3x3_down(96, "branch3x3dbl_3")(double)
        return jnp.concatenate([_conv3x3_down(384, "branch3x3")(x), double, max_pool(x, 2)], -1)


class BlockC(nn.Module):
    """Mixed_6b-6e: f32[b,h,w,c] -> f32[b,h,w,768], 7x7 kernels factored into rows and columns of `width` channels."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.width
        factored = _row(width, "branch7x7_2")(_conv1x1(width, "branch7x7_1")(x))
        factored = _column(192, "branch7x7_3")(factored)
        double = _column(width, "branch7x7dbl_2")(_conv1x1(width, "branch7x7dbl_1")(x))
        double = _column(width, "branch7x7dbl_4")(_row(width, "branch7x7dbl_3")(double))
        double = _row(192, "branch7x7dbl_5")(double)
        pooled = _conv1x1(192, "branch_pool")(average_pool(x))
        return jnp.concatenate([_conv1x1(192, "branch1x1")(x), factored, double, pooled], -1)


class BlockD(nn.Module):
    """Mixed_7a: f32[b,h,w,c] -> f32[b,h/2,w/2,512 + c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _conv3x3_down(320, "branch3x3_2")(_conv1x1(192, "branch3x3_1")(x))
        factored = _row(192, "branch7x7x3_2")(_conv1x1(192, "branch7x7x3_1")(x))
        factored = _conv3x3_down(192, "branch7x7x3_4")(_column(192, "branch7x7x3_3")(factored))
        return jnp.concatenate([single, factored, max_pool(x, 2)], -1)


class BlockE(nn.Module):
    """Mixed_7b, 7c: f32[b,h,w,c] -> f32[b,h,w,2048]; `max_pooled` is the last block's quirk."""

    max_pooled: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _conv1x1(384, "branch3x3_1")(x)
        singles = [_row(384, "branch3x3_2a", 3)(single), _column(384, "branch3x3_2b", 3)(single)]
        double = _conv3x3(384, "branch3x3dbl_2")(_conv1x1(448, "branch3x3dbl_1")(x))
        doubles = [_row(384, "branch3x3dbl_3a", 3)(double), _column(384, "branch3x3dbl_3b", 3)(double)]
        pooled = max_pool(x, 1, padding=1) if self.max_pooled else average_pool(x)
        pooled = _conv1x1(192, "branch_pool")(pooled)
        return jnp.concatenate([_conv1x1(320, "branch1x1")(x), *singles, *doubles, pooled], -1)


class InceptionV3(nn.Module):
    """image f32[b,H,W,3] in [-1, 1], sides of at least 75 px -> pool3 features f32[b,2048]."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        if min(image.shape[1:3]) < 75:
            raise ValueError(f"InceptionV3 takes images of at least 75x75 px; got {image.shape[1]}x{image.shape[2]}")
        x = _conv3x3_down(32, "Conv2d_1a_3x3")(image.astype(jnp.float32))
        x = ConvNorm(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = max_pool(_conv3x3(64, "Conv2d_2b_3x3")(x), 2)
        x = _conv1x1(80, "Conv2d_3b_1x1")(x)
        x = max_pool(ConvNorm(192, (3, 3), name="Conv2d_4a_3x3")(x), 2)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pooled, name=name)(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = BlockC(width, name=name)(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(False, name="Mixed_7b")(x)
        return BlockE(True, name="Mixed_7c")(x).mean((1, 2))
