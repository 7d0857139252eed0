"""Small convolutional towers of the portraits world: attribute classifier, nuisance regressor and CLIP image encoder.

One network serves all three. A tower is a stack of 3x3 convolutions (each GroupNorm and SiLU after it, strides as
configured), its last feature map flattened, one linear layer on top. Flattening rather than pooling keeps positions,
which pose and layout are made of.

| use | outputs |
| --- | --- |
| classifier | one logit for every value of every attribute, attributes in the vocabulary's order |
| regressor | the continuous nuisance values, standardised |
| CLIP image encoder | the joint embedding; the text side is a projection of the text encoder's end-of-text state |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sdd_jax.models.convert import flax_to_torch, match, torch_to_flax
from sdd_jax.models.hub import read_json
from sdd_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What makes a tower: one width and one stride per convolution, the number of outputs, groups of the norms."""

    widths: tuple[int, ...] = (32, 64, 128, 128, 192)
    strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    outputs: int = 128
    groups: int = 8
    image_size: int = 64

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"a tower needs a stride per width: {len(self.widths)} widths, {len(self.strides)} strides"
            )


class ConvTower(nn.Module):
    """image f32[b,H,W,3] in [-1, 1] -> (outputs f32[b,k], feature maps of every convolution, first to last)."""

    config: TowerConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        hidden, maps = image, []
        for i, (width, stride) in enumerate(zip(self.config.widths, self.config.strides, strict=True)):
            hidden = nn.Conv(width, (3, 3), strides=stride, padding=1, name=f"convs_{i}")(hidden)
            hidden = nn.GroupNorm(self.config.groups, epsilon=1e-5, name=f"norms_{i}")(hidden)
            hidden = nn.silu(hidden)
            maps.append(hidden)
        outputs = nn.Dense(self.config.outputs, name="head")(hidden.reshape(hidden.shape[0], -1))
        return outputs, tuple(maps)


def init_tower(rng: jax.Array, config: TowerConfig) -> Params:
    """Returns fresh float32 parameters of a tower."""
    image = jnp.zeros((1, config.image_size, config.image_size, 3))
    return ConvTower(config).init(rng, image)["params"]


def apply_tower(config: TowerConfig, params: Params, image: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Applies a tower to `image` f32[b,H,W,3] in [-1, 1]; returns (outputs f32[b,k], feature maps)."""
    out: Any = ConvTower(config).apply({"params": params}, image)
    return out


def split_logits(logits: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts classifier outputs f32[b, sum(sizes)] into one array of logits per attribute."""
    return jnp.split(logits, np.cumsum(np.asarray(sizes))[:-1].tolist(), axis=-1)


def embed_image(config: TowerConfig, params: Params, image: jax.Array) -> jax.Array:
    """CLIP image embeddings of unit length f32[b,e], of `image` f32[b,H,W,3] in [-1, 1]; params of a CLIP."""
    return unit(apply_tower(config, params["image"], image)[0])


def embed_caption(params: Params, pooled: jax.Array) -> jax.Array:
    """CLIP text embeddings of unit length f32[b,e], of the text encoder's pooled states f32[b,d]; params of a CLIP."""
    return unit(pooled @ params["text_projection"]["kernel"])


def unit(x: jax.Array) -> jax.Array:
    """Scales the last axis to length one, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)


def save_tower(directory: Path, config: TowerConfig, params: Params, extra: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json` (with `extra` facts) and half-precision `model.safetensors` into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = {**dataclasses.asdict(config), **(extra or {})}
    (directory / "config.json").write_text(json.dumps(facts, indent=2) + "\n")
    _write(directory, params)


def _write(directory: Path, params: Params) -> None:
    halves = {k: np.asarray(v, np.float16) for k, v in flax_to_torch(params).items()}
    save_file(halves, directory / "model.safetensors")


def load_tower(directory: Path) -> tuple[TowerConfig, Params, dict[str, Any]]:
    """Reads what `save_tower` wrote: (config, float32 params, the extra facts of config.json).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated, or the weights are not those of the config.
    """
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name} is missing: the portraits world needs it; restore or train it again"
            )
    facts = read_json(directory / "config.json")
    names = {f.name for f in dataclasses.fields(TowerConfig)}
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items() if k in names}
    try:
        state = load_file(directory / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{directory / 'model.safetensors'} is damaged ({error}): restore it or train it again"
        ) from None
    params = torch_to_flax({k: v.astype(np.float32) for k, v in state.items()})
    config = TowerConfig(**fields)
    tower, source = params.get("image", params), str(directory / "model.safetensors")
    match(tower, jax.eval_shape(lambda key: init_tower(key, config), jax.random.key(0)), source)
    return config, params, {k: v for k, v in facts.items() if k not in names}
