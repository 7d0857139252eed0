"""e4e, the encoder for editing: an image to its codes w f32[b,n,d] in W+ (Tov et al. 2021, arXiv:2102.02766).

    c1, c2, c3 = maps of IR-SE50 after its 2nd, 3rd and 4th stage          1/4, 1/8 and 1/16 of the side
    p2 = up(c3) + L1 c2,  p1 = up(p2) + L2 c1                              up: bilinear, corners aligned
    w_i = latent_avg + s_0(c3) + [i > 0] s_i(f_i)                          f_i: c3 for i < 3, p2 for i < 7, else p1

s_i halves its map by 3x3 convolutions, each followed by a leaky relu of slope .01, down to one pixel, and ends in an
EqualLinear: all codes are the first one and an offset. latent_avg, the mean of the generator's W, comes with the
weights. Input 256x256 in [-1, 1]; other images are resized (bilinear, antialiased where that shrinks). Widths, depth,
side, and d are a config: the embedded world's encoder is the same network, small, with GroupNorm (`models.irse`).

Aligned corners: output pixel i of n reads position i (m - 1) / (n - 1) of m, where half-pixel centres would read
(i + 1/2) m / n - 1/2.

Files: `e4e_ffhq_encode.pt` = {state_dict: {encoder.*, decoder.*}, latent_avg f32[n,d], opts}; `load_e4e` reads the
encoder, 569 tensors at 1024 px, and latent_avg, and takes the shape from the tensors (n is 18, 16 and 14 for
generators of 1024, 512 and 256 px). A directory that `save_e4e` wrote holds config.json and model.safetensors under
this module's names. Two others have tensors of the same names and shapes, and only opts to tell them by: pSp's
encoder, whose codes are not offsets from the first one, and e4e's of cars, which reads 192x256.

Cost of one forward at 256 px with 18 codes: 145 GFLOP.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sdd_jax.config import validate
from sdd_jax.models.convert import flax_to_torch
from sdd_jax.models.hub import read_json
from sdd_jax.models.irse import BODY_NAMES, IRSEConfig, stages
from sdd_jax.models.state_dicts import StateDict, read_checkpoint, rename, to_params
from sdd_jax.models.stylegan2_layers import EqualLinear
from sdd_jax.types import Params

COARSE, MEDIUM = 3, 7
"""The first style that reads p2, the first that reads p1."""

PUBLISHED = "Encoder4Editing"
"""The encoder's name in a checkpoint's opts."""

_NAMES = (*BODY_NAMES, (r"^styles\.(\d+)\.", r"style_\1."), (r"\.convs\.(\d+)\.", r".convs_\1."))


@dataclasses.dataclass(frozen=True, kw_only=True)
class E4EConfig:
    """The encoder's shape; the defaults are the published one's for 1024 px.

    Fields: `num_ws` n and `style_dim` d of the generator; `side` of the input; the body, of four stages.
    """

    num_ws: int = 18
    style_dim: int = 512
    side: int = 256
    body: IRSEConfig = IRSEConfig()

    def __post_init__(self) -> None:
        if len(self.body.units) != 4:
            raise ValueError(f"body.units={self.body.units}: the encoder reads maps of four stages")
        if self.side < 32 or self.side & (self.side - 1):
            raise ValueError(f"side={self.side}: the encoder reads images of 32, 64, 128, ... pixels")
        if self.num_ws < 1:
            raise ValueError(f"num_ws={self.num_ws}: the encoder gives one code at least")


class StyleBlock(nn.Module):
    """s_i: a square map f32[b,m,m,c], m a power of 2, -> f32[b,features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        index = 0
        while x.shape[1] > 1:
            x = nn.Conv(self.features, (3, 3), strides=2, padding=1, name=f"convs_{index}")(x)
            x = nn.leaky_relu(x, 0.01)
            index += 2  # a file's list counts the activations too
        return EqualLinear(self.features, name="linear")(x[:, 0, 0])


class E4E(nn.Module):
    """image f32[b,side,side,3] in [-1, 1] -> offsets from latent_avg f32[b,num_ws,style_dim]."""

    config: E4EConfig = E4EConfig()

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        config = self.config
        _, c1, c2, c3 = stages(config.body, image)
        width = config.body.widths[-1]
        p2 = upsampled(c3, c2.shape[1]) + nn.Conv(width, (1, 1), name="latlayer1")(c2)
        p1 = upsampled(p2, c1.shape[1]) + nn.Conv(width, (1, 1), name="latlayer2")(c1)
        codes: list[jax.Array] = []
        for i in range(config.num_ws):
            seen = c3 if i < COARSE else p2 if i < MEDIUM else p1
            style = StyleBlock(config.style_dim, name=f"style_{i}")(seen)
            codes.append(codes[0] + style if i else style)
        return jnp.stack(codes, 1)


class Encoder(NamedTuple):
    """An encoder with its weights: params of `E4E(config)`, and latent_avg f32[num_ws,style_dim]."""

    config: E4EConfig
    params: Params
    latent_avg: np.ndarray


def encode(config: E4EConfig, params: Params, latent_avg: jax.Array | np.ndarray, image: jax.Array) -> jax.Array:
    """The codes f32[b,num_ws,style_dim] of images f32[b,H,W,3] in [-1, 1], differentiable in them."""
    if image.shape[1:3] != (config.side, config.side):
        image = jax.image.resize(image, (image.shape[0], config.side, config.side, 3), "bilinear")
    offsets: Any = E4E(config).apply({"params": params}, image)
    return offsets + jnp.asarray(latent_avg, jnp.float32)[None]


def upsampled(x: jax.Array, side: int) -> jax.Array:
    """Resizes f32[b,m,m,c] to f32[b,side,side,c], bilinear with aligned corners."""
    weights = jnp.asarray(_aligned(x.shape[1], side))
    return jnp.einsum("ih,bhwc,jw->bijc", weights, x, weights)


def _aligned(size: int, side: int) -> np.ndarray:
    """The weights f32[side,size] of linear interpolation at side positions from 0 to size - 1."""
    position = np.linspace(0.0, size - 1.0, side)
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(size)[None])).astype(np.float32)


def load_e4e(path: str | os.PathLike[str]) -> Encoder:
    """Reads `e4e_ffhq_encode.pt` and files like it, the same tensors as safetensors, or a directory of `save_e4e`.

    A file without opts is taken for e4e's.

    Raises:
        FileNotFoundError: no such file, or a directory without an encoder.
        ValueError: a damaged file, code in a pickle, no encoder in it, another one by its opts, or other tensors than
            the encoder's.
    """
    path = Path(path)
    config: E4EConfig | None = None
    if path.is_dir():
        config, path = validate(read_json(path / "config.json"), E4EConfig, str(path)), path / "model.safetensors"
    tensors, plain = read_checkpoint(path, page="docs/sdd.md")
    _check_options(plain, path)
    encoder = part_of(tensors, ("state_dict.encoder.", "encoder."))
    if config is None:
        config = encoder_config_of(encoder, str(path))
    if "latent_avg" not in tensors:
        raise ValueError(f"{path} has no 'latent_avg', which codes are relative to: give the whole checkpoint")
    average, shape = tensors["latent_avg"], (config.num_ws, config.style_dim)
    if average.shape not in (shape, shape[1:]):
        raise ValueError(f"{path}: latent_avg is {average.shape}, not {shape}")
    params = encoder_params(encoder, config, source=str(path))
    return Encoder(config, params, np.array(np.broadcast_to(average, shape)))


def _check_options(options: Mapping[str, Any], path: Path) -> None:
    kind, images = options.get("opts.encoder_type", PUBLISHED), str(options.get("opts.dataset_type"))
    if kind != PUBLISHED:
        raise ValueError(
            f"{path}: a {kind} (opts.encoder_type), whose codes are not e4e's: give an {PUBLISHED}, such as "
            "e4e_ffhq_encode.pt"
        )
    if images.startswith("cars"):
        raise ValueError(
            f"{path}: an encoder of cars (opts.dataset_type={images!r}) reads 192x256, and images are square here: "
            "give one of another kind of images"
        )


def encoder_config_of(encoder: StateDict, source: str = "the state dict") -> E4EConfig:
    """Reads the shape of an encoder off its tensors under the published names; its stages differ in their channels.

    Raises:
        ValueError: tensors that the shape is read from are missing, or the stages are not four.
    """
    for key in ("body.0.res_layer.5.fc1.weight", "styles.0.convs.0.weight", "styles.0.linear.weight"):
        if key not in encoder:
            raise ValueError(f"{source} holds no e4e encoder: it has no tensor 'encoder.{key}'")
    units: dict[int, int] = {}
    while (weight := encoder.get(f"body.{sum(units.values())}.res_layer.3.weight")) is not None:
        units[len(weight)] = units.get(len(weight), 0) + 1
    widths = tuple(units)
    if len(widths) != 4:
        raise ValueError(f"{source}: its body has {len(widths)} stages, of {widths} channels; an e4e encoder has four")
    halvings = _count(encoder, r"styles\.0\.convs\.\d+\.weight")
    reduction = widths[0] // len(encoder["body.0.res_layer.5.fc1.weight"])
    return E4EConfig(
        num_ws=_count(encoder, r"styles\.\d+\.linear\.weight"),
        style_dim=len(encoder["styles.0.linear.weight"]),
        side=16 * 2**halvings,
        body=IRSEConfig(units=tuple(units.values()), widths=widths, reduction=reduction),
    )


def _count(tensors: StateDict, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in tensors)


def part_of(tensors: StateDict, prefixes: Sequence[str]) -> StateDict:
    """The tensors under the first of `prefixes` that names any, without it; {} where none does."""
    for prefix in prefixes:
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if found:
            return found
    return {}


def encoder_params(tensors: Mapping[str, np.ndarray], config: E4EConfig, *, source: str) -> Params:
    """Converts the encoder's state dict under the published names to the parameters of `E4E(config)`.

    Raises:
        ValueError: tensors missing, unexpected or of the wrong shape, in one line that names `source`.
    """
    image = jnp.zeros((1, config.side, config.side, 3))
    return to_params(rename(tensors, _NAMES), E4E(config), image, source=source)


def init_e4e(rng: jax.Array, config: E4EConfig) -> Params:
    """Returns fresh float32 parameters."""
    return E4E(config).init(rng, jnp.zeros((1, config.side, config.side, 3)))["params"]


def save_e4e(encoder: Encoder, directory: Path) -> None:
    """Writes config.json and half-precision model.safetensors, which `load_e4e` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dataclasses.asdict(encoder.config), indent=2) + "\n")
    named = flax_to_torch(encoder.params)
    tensors = {f"encoder.{name}": np.asarray(value, np.float16) for name, value in named.items()}
    save_file({**tensors, "latent_avg": np.asarray(encoder.latent_avg, np.float16)}, directory / "model.safetensors")
