"""LPIPS, the learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924), version 0.1, over VGG16 or AlexNet.

With f_l the backbone's activations at layer l, scaled to unit length over channels, and w_l >= 0 learnt weights,

    d(a, b) = sum_l  mean_hw  sum_c  w_lc (f_l(a)_hwc - f_l(b)_hwc)^2                               (eq. 1)

Images in [-1, 1] are first shifted and scaled to the statistics that the backbones were trained with. Layers: the relu
before each pooling of VGG16 (five), every relu of AlexNet (five). The package's `v0.1` fixed the normalisation and
learnt w anew; its numbers are the ones papers report. LPIPS differentiates, so it serves as a loss too: equal images
have zero distance and zero gradient (a bare square root would give nan where a pixel's activations are all zero).

Weights: the backbone is torchvision's file (`vgg16-397923af.pth`, `alexnet-owt-7be5be79.pth`: `features.N.weight`), w
the package's `v0.1/vgg.pth` or `alex.pth` (`linN.model.1.weight`). Parameters here: `features/layers_N`, `linN`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.models.state_dicts import read_state_dict, rename, to_params
from sdd_jax.types import Params

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
LENGTH_EPS = 1e-10


class ConvSpec(NamedTuple):
    """One convolution of a backbone: its number in torchvision's `features`, and whether a pooling precedes it and a
    tap follows its relu."""

    number: int
    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pooled: bool = False
    tapped: bool = True


class Backbone(NamedTuple):
    """Convolutions, each followed by relu, and the window of the max poolings (stride 2)."""

    convolutions: tuple[ConvSpec, ...]
    window: int


def _vgg16() -> Backbone:
    convolutions, index = [], 0
    for block, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for i in range(count):
            convolutions.append(ConvSpec(index, width, pooled=block > 0 and i == 0, tapped=i == count - 1))
            index += 2
        index += 1
    return Backbone(tuple(convolutions), window=2)


BACKBONES = {
    "vgg": _vgg16(),
    "alex": Backbone(
        (
            ConvSpec(0, 64, kernel=11, stride=4, padding=2),
            ConvSpec(3, 192, kernel=5, padding=2, pooled=True),
            ConvSpec(6, 384, pooled=True),
            ConvSpec(8, 256),
            ConvSpec(10, 256),
        ),
        window=3,
    ),
}


def load_lpips(name: str, backbone: str | os.PathLike[str], linear: str | os.PathLike[str]) -> Params:
    """Reads the parameters of `LPIPS(name)`, name "vgg" or "alex".

    Args:
      backbone: torchvision's ImageNet weights of VGG16 or AlexNet.
      linear: the lpips package's v0.1 weights of the same network.

    Raises:
      FileNotFoundError, ValueError: as `read_state_dict`; files that do not fit the network.
    """
    module = LPIPS(name)
    tensors = rename(read_state_dict(backbone), [(r"^features\.", "features.layers.")], drop=r"classifier\.")
    tensors |= rename(read_state_dict(linear), [(r"^(lin\d)\.model\.1\.", r"\1.")])
    image = jnp.zeros((1, 64, 64, 3))
    return to_params(tensors, module, image, image, source=f"{backbone} with {linear}")


def lpips(params: Params, a: jax.Array, b: jax.Array, name: str = "alex") -> jax.Array:
    """The distance f32[n] between images f32[n,H,W,3] in [-1, 1] of one size; ValueError for different shapes."""
    return LPIPS(name).apply({"params": params}, a, b)  # type: ignore[return-value]


class Features(nn.Module):
    """f32[n,H,W,3] -> the activations at the tapped relus, f32[n,h_l,w_l,c_l] each."""

    backbone: Backbone

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        taps = []
        window = (self.backbone.window, self.backbone.window)
        for spec in self.backbone.convolutions:
            if spec.pooled:
                if min(x.shape[1:3]) < window[0]:
                    raise ValueError("LPIPS got images too small for its backbone; give it at least 32x32 px")
                x = nn.max_pool(x, window, (2, 2))
            x = nn.relu(
                nn.Conv(
                    spec.features,
                    (spec.kernel, spec.kernel),
                    strides=spec.stride,
                    padding=spec.padding,
                    precision=jax.lax.Precision.HIGHEST,
                    name=f"layers_{spec.number}",
                )(x)
            )
            if spec.tapped:
                taps.append(x)
        return taps


def _standardized(image: jax.Array) -> jax.Array:
    return (image.astype(jnp.float32) - SHIFT[None, None, None]) / SCALE[None, None, None]


def _unit(tap: jax.Array) -> jax.Array:
    """Activations at unit length over channels."""
    length = jnp.sqrt(jnp.maximum(jnp.square(tap).sum(-1, keepdims=True), LENGTH_EPS**2))
    return tap / (length + LENGTH_EPS)


class LPIPS(nn.Module):
    """a, b f32[n,H,W,3] in [-1, 1] -> distance f32[n] >= 0; name is "vgg" or "alex"."""

    name_of_backbone: str = "alex"

    def __post_init__(self) -> None:
        if self.name_of_backbone not in BACKBONES:
            raise ValueError(f"LPIPS over {self.name_of_backbone!r} does not exist; use one of {[*BACKBONES]}")
        super().__post_init__()

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
            raise ValueError(f"lpips compares two [n, H, W, 3] batches of one shape; got {a.shape} and {b.shape}")
        features = Features(BACKBONES[self.name_of_backbone], name="features")
        # one after the other: of a loss against a fixed image no gradient runs through that image's half
        taps = zip(*(features(_standardized(image)) for image in (a, b)), strict=True)
        distance = jnp.zeros(len(a))
        for i, (unit_a, unit_b) in enumerate((_unit(tap_a), _unit(tap_b)) for tap_a, tap_b in taps):
            weigh = nn.Conv(1, (1, 1), use_bias=False, precision=jax.lax.Precision.HIGHEST, name=f"lin{i}")
            distance += weigh(jnp.square(unit_a - unit_b)).mean((1, 2, 3))
        return distance
