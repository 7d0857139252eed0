"""IR-SE50: ArcFace's residual network with squeeze and excitation, which tells faces apart; e4e's encoder has its body.

Deng et al. 2019 (arXiv:1801.07698) on the units of Hu et al. 2018 (arXiv:1709.01507), as InsightFace_Pytorch trains
it. A unit of stride s between c and d channels, with B a batch normalisation by stored statistics (eps 1e-5), is

    y = B(W2 *_s prelu(W1 * B(x)))        unit(x) = sigmoid(F2 relu(F1 mean_hw y)) y + shortcut(x)
    shortcut(x) = x[::s, ::s] where c = d, else B(W *_s x)

A stem (convolution, B, prelu) and four stages of 3, 4, 14 and 3 units, each stage halving the side: 112 -> 7 pixels.
The head is B, a linear layer over all 7 x 7 x 512 values, B, and the result divided by its length.

Layout. PyTorch flattens the head's input channels first. Its linear layer is read as the 7x7 convolution without
padding that it is, by a reshape of [512, 512 x 7 x 7] to OIHW, and then goes by the generic rule to HWIO.

What the loss of pSp, e4e, StyleCLIP and SDD shows it of a generated face, all poolings adaptive averages:

    image --> 256 x 256 --> rows 35..222, columns 32..219 --> 112 x 112

Files: `model_ir_se50.pth`, flat, 343 tensors beside 54 batch counters: `input_layer.N`, `body.N.res_layer.N`,
`body.N.shortcut_layer.N`, `output_layer.N`. One forward at 112 px costs 12.6 GFLOP.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.models.state_dicts import StateDict, read_state_dict, rename, to_params
from sdd_jax.models.towers import unit
from sdd_jax.types import Params

FACE_SIDE, INPUT_SIDE = 256, 112
ROWS, COLUMNS = slice(35, 223), slice(32, 220)
EMBEDDING = 512
BATCH_NORM_EPS = 1e-5

BODY_NAMES = (
    (r"^input_layer\.0\.", "input_layer.conv."),
    (r"^input_layer\.1\.", "input_layer.norm."),
    (r"^input_layer\.2\.", "input_layer.prelu."),
    (r"\.res_layer\.0\.", ".norm1."),
    (r"\.res_layer\.1\.", ".conv1."),
    (r"\.res_layer\.2\.", ".prelu."),
    (r"\.res_layer\.3\.", ".conv2."),
    (r"\.res_layer\.4\.", ".norm2."),
    (r"\.res_layer\.5\.", ".se."),
    (r"\.shortcut_layer\.0\.", ".shortcut.conv."),
    (r"\.shortcut_layer\.1\.", ".shortcut.norm."),
)
"""From the published names of stem and body to this module's."""

_HEAD_NAMES = (
    (r"^output_layer\.0\.", "output_layer.norm1."),
    (r"^output_layer\.3\.", "output_layer.linear."),
    (r"^output_layer\.4\.", "output_layer.norm2."),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IRSEConfig:
    """The body's shape.

    Fields: units and channels of each stage; the stem has the first stage's channels. reduction: of squeeze and
    excitation. groups: 0 for batch normalisation by stored statistics, as the published weights have it; else
    GroupNorm of so many groups, which a body that is trained from scratch wants.
    """

    units: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    reduction: int = 16
    groups: int = 0

    def __post_init__(self) -> None:
        if not self.units or len(self.units) != len(self.widths) or min(self.units) < 1:
            raise ValueError(f"units={self.units} and widths={self.widths}: give both for each stage, a unit at least")
        if min(self.widths) < self.reduction:
            raise ValueError(f"reduction={self.reduction} leaves nothing of {min(self.widths)} channels")
        if self.groups and any(width % self.groups for width in self.widths):
            raise ValueError(f"groups={self.groups} does not divide the channels {self.widths}")


class StoredBatchNorm(nn.Module):
    """Batch normalisation by stored statistics, which are no parameters: no gradient reaches them. f32[b,...,c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, (x.shape[-1],)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("running_mean", zeros, shape), self.param("running_var", ones, shape)
        gain = scale * jax.lax.rsqrt(jax.lax.stop_gradient(var) + BATCH_NORM_EPS)
        shift = bias - jax.lax.stop_gradient(mean) * gain
        broadcast = (1,) * (x.ndim - 1) + shape
        return x * gain.reshape(broadcast) + shift.reshape(broadcast)


class PReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with a slope for each channel, f32[b,h,w,c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("scale", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x >= 0, x, x * slope[None, None, None])


class SqueezeExcite(nn.Module):
    """Scales each channel of f32[b,h,w,c] by a gate that the image's channel means open."""

    reduction: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        squeezed = nn.Dense(channels // self.reduction, use_bias=False, name="fc1")(x.mean((1, 2)))
        gate = nn.sigmoid(nn.Dense(channels, use_bias=False, name="fc2")(nn.relu(squeezed)))
        return x * gate[:, None, None]


class Shortcut(nn.Module):
    """1x1 convolution and norm, f32[b,h,w,c] -> f32[b,h/s,w/s,features]."""

    config: IRSEConfig
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.features, (1, 1), strides=self.stride, padding=0, use_bias=False, name="conv")(x)
        return norm(self.config, "norm")(x)


class Unit(nn.Module):
    """A residual unit, f32[b,h,w,c] -> f32[b,h/s,w/s,features]."""

    config: IRSEConfig
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.stride
        y = norm(self.config, "norm1")(x)
        y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False, name="conv1")(y)
        y = PReLU(name="prelu")(y)
        y = nn.Conv(self.features, (3, 3), strides=s, padding=1, use_bias=False, name="conv2")(y)
        y = SqueezeExcite(self.config.reduction, name="se")(norm(self.config, "norm2")(y))
        if x.shape[-1] == self.features:
            return y + x[:, ::s, ::s]
        return y + Shortcut(self.config, self.features, s, name="shortcut")(x)


class Stem(nn.Module):
    """f32[b,h,w,3] -> f32[b,h,w,widths[0]]."""

    config: IRSEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.config.widths[0], (3, 3), padding=1, use_bias=False, name="conv")(x)
        return PReLU(name="prelu")(norm(self.config, "norm")(x))


class Head(nn.Module):
    """f32[b,h,w,c] -> f32[b,features]."""

    config: IRSEConfig
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = norm(self.config, "norm1")(x)
        x = nn.Conv(self.features, x.shape[1:3], padding="VALID", name="linear")(x)
        return norm(self.config, "norm2")(x[:, 0, 0])


class IRSE(nn.Module):
    """The recogniser: faces f32[b,s,s,3] in [-1, 1], s = 112 with the published weights -> unit f32[b,features]."""

    config: IRSEConfig = IRSEConfig()
    features: int = EMBEDDING

    @nn.compact
    def __call__(self, face: jax.Array) -> jax.Array:
        return unit(Head(self.config, self.features, name="output_layer")(stages(self.config, face)[-1]))


def norm(config: IRSEConfig, name: str) -> nn.Module:
    """The norm that a config asks for."""
    return (
        nn.GroupNorm(config.groups, epsilon=BATCH_NORM_EPS, name=name) if config.groups else StoredBatchNorm(name=name)
    )


def stages(config: IRSEConfig, image: jax.Array) -> list[jax.Array]:
    """The feature maps after each stage, sides halved at every one; called inside a compact module, whose names it
    takes: `input_layer`, `body_0`, `body_1`, ..."""
    x, maps, index = Stem(config, name="input_layer")(image), [], 0
    for count, width in zip(config.units, config.widths, strict=True):
        for position in range(count):
            x = Unit(config, width, 1 if position else 2, name=f"body_{index}")(x)
            index += 1
        maps.append(x)
    return maps


def load_ir_se50(path: str | os.PathLike[str]) -> Params:
    """Reads `model_ir_se50.pth`, or the same tensors as safetensors; errors as `read_state_dict` and `to_params`."""
    return recogniser_params(read_state_dict(path, page="docs/sdd.md"), IRSEConfig(), source=str(path))


def recogniser_params(
    tensors: StateDict, config: IRSEConfig, side: int = INPUT_SIDE, *, source: str, features: int = EMBEDDING
) -> Params:
    """Converts a state dict under the published names to the parameters of `IRSE(config, features)` on faces of `side`.

    Raises:
        ValueError: tensors missing, unexpected or of the wrong shape, in one line that names `source`.
    """
    named = rename(tensors, (*BODY_NAMES, *_HEAD_NAMES))
    key = "output_layer.linear.weight"
    if key in named:
        named[key] = _as_convolution(named[key], config.widths[-1])
    return to_params(named, IRSE(config, features), jnp.zeros((1, side, side, 3)), source=source)


def random_recogniser() -> Params:
    """Random parameters of the published shape, drawn on the host: what compiling and counting take."""
    shapes = jax.eval_shape(IRSE().init, jax.random.key(0), jnp.zeros((1, INPUT_SIDE, INPUT_SIDE, 3)))["params"]
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            deviation = (leaf.size / leaf.shape[-1]) ** -0.5
            return (deviation * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)
        return np.full(leaf.shape, float(name in ("scale", "running_var")), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def recognise(params: Params, image: jax.Array) -> jax.Array:
    """Unit embeddings f32[b,512] of aligned faces f32[b,H,W,3] in [-1, 1], cropped as the module's text says."""
    return IRSE().apply({"params": params}, cropped_face(image))  # type: ignore[return-value]


def cropped_face(image: jax.Array) -> jax.Array:
    """f32[b,H,W,3] -> f32[b,112,112,3], what the recogniser is shown."""
    face = adaptive_average(image, FACE_SIDE)[:, ROWS, COLUMNS]
    return adaptive_average(face, INPUT_SIDE)


def adaptive_average(image: jax.Array, side: int) -> jax.Array:
    """f32[b,H,W,c] -> f32[b,side,side,c]: pixel i is the mean of floor(i H / side) .. ceil((i + 1) H / side) - 1."""
    if image.shape[1:3] == (side, side):
        return image
    rows, columns = (jnp.asarray(_windows(size, side)) for size in image.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)


def _windows(size: int, side: int) -> np.ndarray:
    """The weights f32[side,size] of the means."""
    weights = np.zeros((side, size), np.float32)
    for i in range(side):
        window = slice(i * size // side, -(-(i + 1) * size // side))
        weights[i, window] = 1.0 / (window.stop - window.start)
    return weights


def _as_convolution(weight: np.ndarray, channels: int) -> np.ndarray:
    """[o, channels s s], flattened channels first, as [o, channels, s, s]; as it is where that does not divide."""
    side = math.isqrt(weight.shape[1] // channels)
    return weight.reshape(len(weight), channels, side, side) if side * side * channels == weight.shape[1] else weight
