"""Mappers of style codes: what StyleCLIP and SDD train, a change of a generator's code for one edit.

Patashnik et al. 2021 (arXiv:2103.17249), sec. 5; SDD uses the same. One mapper is pixel norm and four EqualLinear
layers of the code's own width, lr_mul 0.01, each followed by sqrt(2) leaky_relu(., 0.2):

    M(x) = (A o E_4 o ... o A o E_1)(x / sqrt(mean(x^2, axis 1) + 1e-8))

| kind | code | mappers |
| --- | --- | --- |
| `levels` | W+, f32[b,n,d] | one each for codes 0-3 (coarse), 4-7 (medium), 8.. (fine); a level that is off gives 0 |
| `single` | W+ | one for all codes |
| `styles` | StyleSpace, a list of f32[b,c_l] | one a layer, of its own width |
| `styles_without_rgb` | StyleSpace | the same without the ToRGB layers (1, 4, 7, ...), which get 0 |

**Axis 1** of W+ codes counts codes: the norm is over the codes of a level, not over the channels of a code, as in all
published mappers (a slip of their PixelNorm, made for [b,d], and kept since weights were trained with it). Of a style
it counts channels.

Files: SDD's `mapper_*.pt` {mapper: state dict, optimizer}, StyleCLIP's {state_dict: {mapper.*, decoder.*}, opts}; level
mappers are spelt `course_mapping`, `medium_mapping`, `fine_mapping` there, 8 tensors each; StyleSpace ones
`mapper_{l}`. `save_mapper` writes SDD's names as safetensors. Cost at 1024 px, three levels: 38 MFLOP a sample, next to
nothing beside a generator.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sdd_jax.models.convert import flax_to_torch
from sdd_jax.models.e4e import part_of
from sdd_jax.models.state_dicts import StateDict, read_nested_state_dict, rename, to_params
from sdd_jax.models.stylegan2_layers import EqualLinear, pixel_norm
from sdd_jax.types import Params

LAYERS = 4
LR_MUL = 0.01
LEVELS = {"coarse": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, None)}
KINDS = ("levels", "single", "styles", "styles_without_rgb")
_FILE_LEVELS = {"coarse": "course_mapping", "medium": "medium_mapping", "fine": "fine_mapping"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapperConfig:
    """A mapper's choices: `kind` of the table above; `levels`, of the kind levels, those that are on."""

    kind: str = "levels"
    levels: tuple[str, ...] = ("coarse", "medium", "fine")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not a mapper; use {', '.join(KINDS)}")
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels={self.levels}: name some of {', '.join(LEVELS)}, each once")
        if self.kind != "levels" and len(self.levels) < len(LEVELS):
            raise ValueError(f"levels={self.levels} has no effect with kind={self.kind!r}; leave all of them on")

    @property
    def reads_styles(self) -> bool:
        """True where the code is StyleSpace's."""
        return self.kind.startswith("styles")


class Mapper(nn.Module):
    """M(x), of a code f32[b,n,d] or f32[b,c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pixel_norm(x, axis=1)
        for i in range(LAYERS):
            x = EqualLinear(x.shape[-1], LR_MUL, activate=True, name=f"mapping_{i + 1}")(x)
        return x


class StyleMapper(nn.Module):
    """The change of a code, as shaped as the code."""

    config: MapperConfig = MapperConfig()

    @nn.compact
    def __call__(self, code: Any) -> Any:
        if not self.config.reads_styles:
            return self._of_codes(code)
        without_rgb = self.config.kind == "styles_without_rgb"
        skipped = range(1, len(code), 3) if without_rgb else ()
        return [
            jnp.zeros_like(style) if i in skipped else Mapper(name=f"mapper_{i}")(style) for i, style in enumerate(code)
        ]

    def _of_codes(self, code: jax.Array) -> jax.Array:
        if self.config.kind == "single":
            return Mapper(name="mapper")(code)
        parts = []
        for name, span in LEVELS.items():
            part = code[:, span]
            mapped = name in self.config.levels and part.shape[1]
            parts.append(Mapper(name=name)(part) if mapped else jnp.zeros_like(part))
        return jnp.concatenate(parts, 1)


def init_mapper(rng: jax.Array, config: MapperConfig, code: Any, *, zero: bool = False) -> Params:
    """Returns fresh float32 parameters for codes of the shapes of `code` (arrays, or `jax.ShapeDtypeStruct`s).

    zero: the last layers are 0, so that M(code) is 0 until a gradient, which reaches them, has moved them.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:])), code)
    params: Params = StyleMapper(config).init(rng, zeros)["params"]
    if not zero:
        return params
    last = f"mapping_{LAYERS}"
    return {name: {**mapper, last: jax.tree.map(jnp.zeros_like, mapper[last])} for name, mapper in params.items()}


def apply_mapper(config: MapperConfig, params: Params, code: Any) -> Any:
    """M(code), as shaped as `code`; 0 for what has no mapper."""
    return StyleMapper(config).apply({"params": params}, code)


def load_mapper(path: str | os.PathLike[str], config: MapperConfig, code: Any) -> Params:
    """Reads the mapper of an SDD or StyleCLIP checkpoint, or what `save_mapper` wrote.

    code: shapes of the codes that it is for, as `init_mapper` takes them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, code in a pickle, no mapper in it, or the tensors of another kind, level or width.
    """
    tensors = read_nested_state_dict(path, page="docs/sdd.md")
    found = part_of(tensors, ("state_dict.mapper.", "mapper.", ""))
    if not any(re.search(r"mapping\.\d+\.weight$", key) for key in found):
        raise ValueError(f"{path} holds no mapper: it has no tensors '*.mapping.1.weight'")
    return mapper_params(found, config, code, source=str(path))


def mapper_params(tensors: Mapping[str, np.ndarray], config: MapperConfig, code: Any, *, source: str) -> Params:
    """Converts a mapper's state dict under the published names to the parameters of `StyleMapper(config)`.

    Raises:
        ValueError: tensors missing, unexpected or of the wrong shape, in one line that names `source`.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:])), code)
    return to_params(rename(tensors, _names(config)), StyleMapper(config), zeros, source=source)


def mapper_state_dict(config: MapperConfig, params: Params) -> StateDict:
    """The state dict f32 under the published names, `course_mapping` included: what `mapper_params` reads."""
    flat = flax_to_torch(params)
    if config.kind == "single":
        return rename(flat, ((r"^mapper\.mapping_", "mapping.mapping."),))
    levels = [(rf"^{name}\.mapping_", f"{spelt}.mapping.") for name, spelt in _FILE_LEVELS.items()]
    return rename(flat, (*levels, (r"^(mapper_\d+)\.mapping_", r"\1.mapping.")))


def save_mapper(config: MapperConfig, params: Params, path: Path) -> None:
    """Writes a mapper as safetensors under the published names."""
    save_file({name: np.array(value, np.float32) for name, value in mapper_state_dict(config, params).items()}, path)


def _names(config: MapperConfig) -> Sequence[tuple[str, str]]:
    if config.kind == "single":
        return ((r"^mapping\.mapping\.(\d+)\.", r"mapper.mapping_\1."),)
    levels = [(rf"^{spelt}\.mapping\.(\d+)\.", rf"{name}.mapping_\1.") for name, spelt in _FILE_LEVELS.items()]
    return (*levels, (r"^(mapper_\d+)\.mapping\.(\d+)\.", r"\1.mapping_\2."))
