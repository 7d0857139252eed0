"""The operations of one UNet forward on one sample (F), by formula from its `config.json`: two per multiply-add.

With n = h w pixels of a level, c its width, m context tokens of width d, e the time embedding's width:

    3x3 convolution i -> o     18 n i o                          n of the output
    1x1 shortcut i -> o        2 n i o                           where i != o; the decoder's i includes the skip
    transformer block          linear: (8 + 4 + 24) n c^2 + 4 m d c;  self-attention 4 n^2 c;  cross-attention 4 n m c
    its two projections        4 n c^2
    time                       2 (c_0 e + e^2), and 2 e o in every residual block (once a sample, not a pixel)

Norms, activations and softmax are left out, as everybody leaves them out. `training.flops.count_flops` of the network
gives the same numbers to the digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sdd_jax.models.unet_config import parse_config


class UNetFlops(NamedTuple):
    """Operations by kind. The transformers' projections in and out count as linear, whichever way they are stored."""

    conv: int
    linear: int
    self_attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        """F: the sum over kinds."""
        return sum(self)


def unet_flops(config: Mapping[str, Any], height: int, width: int, tokens: int = 77) -> UNetFlops:
    """Counts one sample's forward at latents of `height` x `width` under `tokens` context tokens.

    Raises:
        ValueError: naming a config field that is not supported.
    """
    c = parse_config(config)
    embedding, context_dim = c.time_embedding_dim, c.cross_attention_dim[0]
    conv = linear = self_attention = cross_attention = 0
    last = len(c.channels) - 1
    sizes = [(height, width)]
    for _ in range(last):
        sizes.append(_halved(*sizes[-1], c.downsample_padding))
    pixels = [h * w for h, w in sizes]

    def resnet(n: int, inputs: int, outputs: int) -> None:
        nonlocal conv, linear
        conv += 18 * n * (inputs + outputs) * outputs + 2 * n * inputs * outputs * (inputs != outputs)
        linear += 2 * embedding * outputs

    def transformer(n: int, width: int, depth: int) -> None:
        nonlocal linear, self_attention, cross_attention
        linear += 4 * n * width**2 + depth * (36 * n * width**2 + 4 * tokens * context_dim * width)
        self_attention += depth * 4 * n**2 * width
        cross_attention += depth * 4 * n * tokens * width

    linear += 2 * (c.channels[0] * embedding + embedding**2 + (c.time_cond_proj_dim or 0) * c.channels[0])
    if c.text_time:
        linear += 2 * ((c.projection_input_dim or 0) * embedding + embedding**2)
    conv += 18 * pixels[0] * (c.in_channels * c.channels[0] + c.channels[0] * c.out_channels)

    skips, features = [c.channels[0]], c.channels[0]
    for level, outputs in enumerate(c.channels):
        for layer in range(c.layers[level]):
            resnet(pixels[level], features, outputs)
            if c.attention[level]:
                transformer(pixels[level], outputs, c.depths[level][layer])
            features = outputs
            skips.append(features)
        if level < last:
            conv += 18 * pixels[level + 1] * features**2
            skips.append(features)
    if c.has_mid:
        resnet(pixels[last], features, features)
        if c.mid_attention:
            transformer(pixels[last], features, c.mid_depth)
            resnet(pixels[last], features, features)
    for index, level in enumerate(range(last, -1, -1)):
        outputs = c.channels[level]
        for layer in range(c.layers[level] + 1):
            resnet(pixels[level], features + skips.pop(), outputs)
            if c.up_attention[index]:
                transformer(pixels[level], outputs, c.up_depths[index][layer])
            features = outputs
        if level > 0:
            conv += 18 * pixels[level - 1] * features**2
    return UNetFlops(conv, linear, self_attention, cross_attention)


def _halved(height: int, width: int, padding: int) -> tuple[int, int]:
    """The size after a 3x3 convolution of stride 2: padded on both sides (1) or on the far side only (0)."""
    return ((height + 1) // 2, (width + 1) // 2) if padding == 1 else (height // 2, width // 2)
