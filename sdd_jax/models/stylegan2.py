"""StyleGAN2's generator, configuration F (Karras et al. 2020, arXiv:1912.04958): skip connections, no growing.

    w     = mapping(z)                         pixel norm, then `mapping_layers` EqualLinear with lr_mul 0.01
    ws    = (w_0, ..., w_{n-1})                W+: one code a layer; n = 2 log2(size) - 2, 18 at 1024 px
    s_l   = A_l w_{i(l)}                       StyleSpace (Wu et al. 2021): one modulation vector a layer
    image = synthesis(s)                       RGB in about [-1, 1], not clipped

The synthesis starts from a constant 4x4. `conv1` reads w_0 and `to_rgb1` w_1; each doubling of the size adds `convs_2j`
(doubles), `convs_2j+1` and `to_rgbs_j`, which read w_{2j+1}, w_{2j+2} and w_{2j+3}: a `to_rgb` shares its code with the
convolution after it. Levels as editing uses them: 0-3 coarse, 4-7 medium, 8-17 fine.

Each convolution adds one channel of noise to its output, times a learnt strength. `noise` is None (none), "const" (the
buffers `noises/noise_l` that files carry, which make an image repeatable) or a typed key (fresh for every image).

`channels(r) = min(max_channels, channel_base channel_multiplier / r)`: 512 up to 32 px and, at 1024 px with multiplier
2, 32. Parameters are named after rosinality's files; see `stylegan_convert`. Cost at 1024 px: `docs/stylegan.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdd_jax.models.stylegan2_layers import EqualLinear, StyledConv, ToRGB, pixel_norm
from sdd_jax.types import Params

Noise = Literal["const"] | jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """What makes a generator.

    size: of the image, a power of 2, at least 8. mapping_layers: 0 where codes come from an encoder only. blur: taps of
    the resampling filter, four of them. lr_mul: of the mapping.
    """

    size: int
    style_dim: int = 512
    mapping_layers: int = 8
    channel_multiplier: int = 2
    channel_base: int = 16384
    max_channels: int = 512
    blur: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    lr_mul: float = 0.01

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise ValueError(f"size={self.size}: StyleGAN2 makes images of 8, 16, 32, ... pixels")
        if len(self.blur) != 4:
            raise ValueError(f"blur={self.blur}: the resampling filter has four taps")
        if self.channels(self.size) < 1:
            raise ValueError(f"channel_base={self.channel_base} leaves no channel at {self.size} px")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """4, 8, ..., size."""
        return tuple(2**k for k in range(2, self.size.bit_length()))

    @property
    def num_ws(self) -> int:
        """Codes of an image in W+."""
        return 2 * len(self.resolutions)

    def channels(self, resolution: int) -> int:
        """Channels of the feature maps of `resolution` pixels."""
        return min(self.max_channels, self.channel_base * self.channel_multiplier // resolution)

    @property
    def noise_sizes(self) -> tuple[int, ...]:
        """Pixels of each convolution's noise: 4, 8, 8, 16, 16, ..."""
        return (4, *(r for r in self.resolutions[1:] for _ in range(2)))

    @property
    def code_of_style(self) -> tuple[int, ...]:
        """Which of the codes each layer of StyleSpace reads: conv1, to_rgb1, then convs, convs, to_rgb a size."""
        return (0, 1, *(2 * j + 1 + k for j in range(len(self.resolutions) - 1) for k in range(3)))

    @property
    def style_widths(self) -> tuple[int, ...]:
        """Elements of each layer's style in StyleSpace; 9088 in all at 1024 px."""
        widths = [self.channels(4)] * 2
        for previous, resolution in zip(self.resolutions, self.resolutions[1:], strict=False):
            widths += [self.channels(previous), self.channels(resolution), self.channels(resolution)]
        return tuple(widths)


class Noises(nn.Module):
    """The constant noise images f32[1,r,r,1], drawn once; no gradient reaches them."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self) -> list[jax.Array]:
        init = nn.initializers.normal(1.0)
        made = [self.param(f"noise_{i}", init, (1, r, r, 1)) for i, r in enumerate(self.sizes)]
        return [jax.lax.stop_gradient(noise) for noise in made]


class Constant(nn.Module):
    """The learnt input f32[4,4,channels]."""

    channels: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("input", nn.initializers.normal(1.0), (4, 4, self.channels))


class Generator(nn.Module):
    """Codes to images; see the module's text. dtype: of the feature maps; styles, norms and RGB are float32."""

    config: StyleGAN2Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.style = [EqualLinear(c.style_dim, c.lr_mul, activate=True) for _ in range(c.mapping_layers)]
        self.input = Constant(c.channels(4))
        self.conv1 = StyledConv(c.channels(4), c.channels(4))
        self.to_rgb1 = ToRGB(c.channels(4), c.blur)
        convs, to_rgbs = [], []
        for previous, resolution in zip(c.resolutions, c.resolutions[1:], strict=False):
            width = c.channels(resolution)
            convs += [StyledConv(c.channels(previous), width, up_blur=c.blur), StyledConv(width, width)]
            to_rgbs.append(ToRGB(width, c.blur))
        self.convs, self.to_rgbs = convs, to_rgbs
        self.noises = Noises(c.noise_sizes)

    def mapping(self, z: jax.Array) -> jax.Array:
        """z f32[b,d] -> w f32[b,d]."""
        w = pixel_norm(z)
        for layer in self.style:
            w = layer(w)
        return w

    def styles(self, ws: jax.Array) -> list[jax.Array]:
        """ws f32[b,num_ws,d] -> one modulation vector f32[b,c] a layer, in the order of `config.code_of_style`."""
        c = self.config
        if ws.ndim != 3 or ws.shape[1:] != (c.num_ws, c.style_dim):
            raise ValueError(f"codes of a {c.size}-px generator are [b, {c.num_ws}, {c.style_dim}], not {ws.shape}")
        return [layer.style(ws[:, code]) for layer, code in zip(self._layers(), c.code_of_style, strict=True)]

    def synthesis_from_styles(self, styles: Sequence[jax.Array], noise: Noise = None) -> jax.Array:
        """Styles as `styles` gives them -> image f32[b,H,W,3]."""
        if len(styles) != len(self.config.style_widths):
            raise ValueError(f"{len(styles)} styles for the {len(self.config.style_widths)} layers of the generator")
        batch = styles[0].shape[0]
        noises = self._noise(noise, batch)
        x = jnp.broadcast_to(self.input()[None], (batch, 4, 4, self.config.channels(4))).astype(self.dtype)
        x = self.conv1(x, styles[0], noises[0])
        image = self.to_rgb1(x, styles[1], None)
        for j, to_rgb in enumerate(self.to_rgbs):
            for k in (2 * j, 2 * j + 1):
                x = self.convs[k](x, styles[2 + 3 * j + k % 2], noises[1 + k])
            image = to_rgb(x, styles[4 + 3 * j], image)
        return image

    def synthesis(self, ws: jax.Array, noise: Noise = None) -> jax.Array:
        """ws f32[b,num_ws,d] -> image f32[b,H,W,3], about [-1, 1], not clipped."""
        return self.synthesis_from_styles(self.styles(ws), noise)

    def __call__(self, ws: jax.Array, noise: Noise = None) -> jax.Array:
        """`synthesis`."""
        return self.synthesis(ws, noise)

    def from_noise(self, z: jax.Array, noise: Noise = None) -> jax.Array:
        """z f32[b,d] -> image: every part of the network, so that it initialises all of them."""
        if noise is None and self.is_initializing():
            self.noises()
        return self.synthesis(broadcast_codes(self.mapping(z), self.config.num_ws), noise)

    def _layers(self) -> list[Any]:
        """conv1, to_rgb1, then two convolutions and a to_rgb for every size."""
        layers = [self.conv1, self.to_rgb1]
        for j, to_rgb in enumerate(self.to_rgbs):
            layers += [self.convs[2 * j], self.convs[2 * j + 1], to_rgb]
        return layers

    def _noise(self, noise: Noise, batch: int) -> Sequence[jax.Array | None]:
        sizes = self.config.noise_sizes
        if noise is None:
            return [None] * len(sizes)
        if isinstance(noise, str):
            if noise != "const":
                raise ValueError(f"noise={noise!r} is not known; use None, 'const' or a key")
            return self.noises()
        keys = jax.random.split(noise, len(sizes))
        return [jax.random.normal(key, (batch, r, r, 1)) for key, r in zip(keys, sizes, strict=True)]


class StyleFunctions(NamedTuple):
    """A generator as pure functions of its parameters: the methods of `Generator`, parameters first."""

    config: StyleGAN2Config
    mapping: Callable[[Params, jax.Array], jax.Array]
    synthesis: Callable[..., jax.Array]
    styles: Callable[[Params, jax.Array], list[jax.Array]]
    synthesis_from_styles: Callable[..., jax.Array]


def make_generator(config: StyleGAN2Config, dtype: DTypeLike = jnp.float32) -> StyleFunctions:
    """Returns the generator's pure functions, `synthesis(params, ws, noise=None)` and so on."""
    module = Generator(config, dtype)

    def method(name: str) -> Callable[..., Any]:
        def call(params: Params, *args: Any) -> Any:
            return module.apply({"params": params}, *args, method=name)

        return call

    return StyleFunctions(config, *(method(name) for name in StyleFunctions._fields[1:]))


def init_generator(rng: jax.Array, config: StyleGAN2Config) -> Params:
    """Returns fresh float32 parameters: as the paper starts them, noise strengths and biases at zero."""
    return Generator(config).init(rng, jnp.zeros((1, config.style_dim)), method="from_noise")["params"]


def broadcast_codes(w: jax.Array, num_ws: int) -> jax.Array:
    """W to W+: w f32[b,d] -> f32[b,num_ws,d], the same code for every layer."""
    return jnp.broadcast_to(w[:, None], (w.shape[0], num_ws, w.shape[-1]))


def truncate(w: jax.Array, latent_avg: jax.Array, psi: float) -> jax.Array:
    """The truncation trick: latent_avg + psi (w - latent_avg), of w f32[b,d] or f32[b,n,d]; psi 1 changes nothing."""
    mean = latent_avg.reshape((1,) * (w.ndim - latent_avg.ndim) + latent_avg.shape)
    return mean + psi * (w - mean)


def mean_code(generator: StyleFunctions, params: Params, rng: jax.Array, samples: int = 4096) -> jax.Array:
    """`latent_avg` f32[d] of a generator whose file has none: the mean of mapped noise."""
    return generator.mapping(params, jax.random.normal(rng, (samples, generator.config.style_dim))).mean(0)


def generator_config_of(state_dict: Mapping[str, np.ndarray], source: str = "the state dict") -> StyleGAN2Config:
    """Reads size and widths off the shapes of a state dict with rosinality's names.

    Raises:
      ValueError: tensors that the sizes are read from are missing.
    """
    for key in ("input.input", "conv1.conv.modulation.weight", "to_rgbs.0.conv.weight"):
        if key not in state_dict:
            raise ValueError(f"{source} holds no StyleGAN2 generator: it has no tensor {key!r}")
    doublings = sum(key.startswith("to_rgbs.") and key.endswith(".conv.weight") for key in state_dict)
    size = 4 * 2**doublings
    widest = state_dict["input.input"].shape[1]
    last = state_dict.get(f"to_rgbs.{doublings - 1}.conv.weight")
    if last is None:
        raise ValueError(f"{source} has {doublings} of to_rgbs but no to_rgbs.{doublings - 1}.conv.weight")
    total = last.shape[2] * size
    default = StyleGAN2Config.channel_base
    multiplier = total // default if total % default == 0 else 1
    return StyleGAN2Config(
        size=size,
        style_dim=state_dict["conv1.conv.modulation.weight"].shape[1],
        mapping_layers=sum(key.startswith("style.") and key.endswith(".weight") for key in state_dict),
        channel_multiplier=multiplier,
        channel_base=total // multiplier,
        max_channels=widest,
    )
