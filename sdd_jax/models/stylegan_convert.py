"""StyleGAN2 weights: published state dicts to the generator's parameters, and back. Code in a file is never run.

| file | holds |
| --- | --- |
| rosinality `.pt` | {'g_ema': state dict, 'latent_avg': [d]}, or a bare state dict |
| e4e, pSp `.pt` | {'state_dict': {'decoder.*', ...}, 'latent_avg': [n,d]} |
| NVIDIA ADA, an exported state dict `.pt` | `mapping.fc0.weight`, `synthesis.b4.const`, `mapping.w_avg`, ... |
| `.safetensors` of either | rosinality's names with `latent_avg` among them, or ADA's |
| a directory of `save_generator` | config.json, model.safetensors with rosinality's names and `latent_avg` |
| NVIDIA `.pkl` | pickled Python classes: refused |

A generator has 171, 153 and 135 tensors at 1024, 512 and 256 px under rosinality's names: 16 of the mapping, the input,
5 and 4 of the two layers at 4 px, 16 for every doubling, a noise for every convolution. Its resampling kernels are
buffers and hold 4 times the normalised filter (up^2); ADA's hold the filter itself. Otherwise the two differ in names
and in dimensions of size one:

    mapping.fc{i}                      -> style.{i+1}
    synthesis.b4.conv1, torgb          -> conv1, to_rgb1
    synthesis.b{r}.conv0, conv1, torgb -> convs.{2j}, convs.{2j+1}, to_rgbs.{j},   j = log2(r) - 3

Layouts: convolution kernels [1,o,i,k,k] are [k,k,i,o] here, linear weights [o,i] are [i,o], images are NHWC.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from sdd_jax.config import validate
from sdd_jax.models.hub import read_json
from sdd_jax.models.state_dicts import StateDict, read_nested_state_dict
from sdd_jax.models.stylegan2 import StyleGAN2Config, generator_config_of, init_generator
from sdd_jax.models.stylegan2_layers import blur_kernel
from sdd_jax.types import Params

PREFIXES = ("g_ema.", "G_ema.", "state_dict.decoder.", "decoder.", "state_dict.")


class LoadedGenerator(NamedTuple):
    """A generator as a file gives it. latent_avg: the mean code f32[d] or f32[n,d]; None where the file has none."""

    config: StyleGAN2Config
    params: Params
    latent_avg: jax.Array | None


def load_generator(path: str | os.PathLike[str]) -> LoadedGenerator:
    """Reads a generator from anything in the table above; size and widths come from the tensors' shapes.

    Raises:
      FileNotFoundError: as `read_state_dict`.
      ValueError: a .pkl, a file that holds more than tensors or no generator, one that lacks tensors or has others.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        raise ValueError(
            f"{path} holds pickled classes, whose loading runs code: where its own code is, save G_ema.state_dict() "
            "with torch.save to a .pt file and give that"
        )
    config: StyleGAN2Config | None = None
    if path.is_dir():
        config, path = validate(read_json(path / "config.json"), StyleGAN2Config, str(path)), path / "model.safetensors"
    tensors = read_nested_state_dict(path, page="docs/stylegan.md")
    latent_avg = tensors.pop("latent_avg", None)
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in tensors)), "")
    state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    if any(key.startswith("synthesis.") for key in state):
        latent_avg = state.pop("mapping.w_avg", latent_avg)
        state = rename_ada(state, str(path))
    if config is None:
        config = generator_config_of(state, str(path))
    mean = None if latent_avg is None else jnp.asarray(latent_avg)
    return LoadedGenerator(config, params_of(state, config, str(path)), mean)


def params_of(state_dict: Mapping[str, np.ndarray], config: StyleGAN2Config, source: str) -> Params:
    """Converts a state dict with rosinality's names, resampling kernels included, to float32 parameters.

    Raises:
      ValueError: in one line, tensors that are missing, unexpected or of the wrong shape, or another filter.
    """
    entries, filters = list(_entries(config)), set(_filters(config))
    known = {entry.key for entry in entries} | filters
    missing, unexpected = sorted(known - set(state_dict)), sorted(set(state_dict) - known)
    if missing or unexpected:
        listing = [f"{len(missing)} missing: {', '.join(missing[:3])}"] * bool(missing)
        listing += [f"{len(unexpected)} unexpected: {', '.join(unexpected[:3])}"] * bool(unexpected)
        raise ValueError(f"{source} is not a {config.size}-px StyleGAN2 generator; tensors {'; '.join(listing)}")
    want = blur_kernel(config.blur, up=2)
    for key in filters:
        if state_dict[key].shape != want.shape or not np.allclose(state_dict[key], want, atol=1e-3):
            raise ValueError(f"{source}: {key} is not the resampling filter {config.blur} times 4")
    shapes = traverse_util.flatten_dict(_shapes(config))
    flat = {}
    for entry in entries:
        value, shape = state_dict[entry.key], shapes[entry.path].shape
        if value.shape != np.shape(entry.layout.to_torch(np.empty(shape, np.int8))):
            raise ValueError(f"{source}: {entry.key} is {value.shape}; {config} has it {shape} (Flax layout)")
        flat[entry.path] = jnp.asarray(entry.layout.to_flax(value), jnp.float32)
    return traverse_util.unflatten_dict(flat)


def state_dict_of(params: Params, config: StyleGAN2Config) -> StateDict:
    """The inverse of `params_of`: what PyTorch programs load, with the resampling kernels."""
    flat = traverse_util.flatten_dict(params)
    state = {e.key: np.ascontiguousarray(e.layout.to_torch(np.asarray(flat[e.path]))) for e in _entries(config)}
    return state | {key: blur_kernel(config.blur, up=2) for key in _filters(config)}


def save_generator(generator: LoadedGenerator, directory: Path) -> None:
    """Writes config.json and half-precision model.safetensors, which `load_generator` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dataclasses.asdict(generator.config), indent=2) + "\n")
    state = state_dict_of(generator.params, generator.config)
    if generator.latent_avg is not None:
        state["latent_avg"] = np.asarray(generator.latent_avg)
    save_file({key: value.astype(np.float16) for key, value in state.items()}, directory / "model.safetensors")


def rename_ada(state_dict: Mapping[str, np.ndarray], source: str) -> StateDict:
    """Gives the state dict of an ADA generator rosinality's names and shapes; `mapping.w_avg` is the caller's.

    Raises:
      ValueError: a class-conditional generator, another architecture, or a tensor that is none of the two's.
    """
    renamed: StateDict = {}
    for key, value in state_dict.items():
        if key.startswith("mapping.embed."):
            raise ValueError(f"{source} is a class-conditional generator ({key}), which is not supported")
        mapped = re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", key)
        block = re.fullmatch(r"synthesis\.b(\d+)\.(.+)", key)
        if mapped:
            renamed[f"style.{int(mapped[1]) + 1}.{mapped[2]}"] = value
        elif block and int(block[1]).bit_count() == 1:
            renamed |= _ada_block(int(block[1]).bit_length() - 1, block[2], value, f"{source}: {key}")
        else:
            raise ValueError(f"{source}: {key!r} is not a tensor of a StyleGAN2-ADA generator with skip connections")
    return renamed


_ADA_LAYER = {
    "weight": ("conv.weight", lambda x: x[None]),
    "affine.weight": ("conv.modulation.weight", lambda x: x),
    "affine.bias": ("conv.modulation.bias", lambda x: x),
    "noise_strength": ("noise.weight", lambda x: x.reshape(1)),
    "bias": ("activate.bias", lambda x: x),
    "resample_filter": ("conv.blur.kernel", lambda x: 4 * x),
}


def _ada_block(level: int, name: str, value: np.ndarray, where: str) -> StateDict:
    """One tensor of the block of 2^level px: its new name and value, or nothing for a filter that goes unused."""
    j = level - 3
    if name == "const":
        return {"input.input": value[None]}
    if name == "resample_filter":
        return {f"to_rgbs.{j}.upsample.kernel": 4 * value} if j >= 0 else {}
    layer, _, leaf = name.partition(".")
    if layer not in ("conv0", "conv1", "torgb") or (leaf not in _ADA_LAYER and leaf != "noise_const"):
        raise ValueError(f"{where} is not a tensor of a StyleGAN2-ADA generator with skip connections")
    if leaf == "noise_const":
        return {f"noises.noise_{2 * level - 5 + (layer == 'conv1')}": value[None, None]}
    if layer == "conv1" and leaf == "resample_filter":
        return {}
    new, change = _ADA_LAYER[leaf]
    if layer == "torgb":
        prefix = "to_rgb1" if j < 0 else f"to_rgbs.{j}"
        return {f"{prefix}.bias": value.reshape(1, -1, 1, 1)} if leaf == "bias" else {f"{prefix}.{new}": change(value)}
    prefix = "conv1" if j < 0 else f"convs.{2 * j + (layer == 'conv1')}"
    return {f"{prefix}.{new}": change(value)}


class _Layout(NamedTuple):
    """How one kind of tensor changes between PyTorch's shape and Flax's."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


_SAME = _Layout(lambda x: x, lambda x: x)
_LINEAR = _Layout(np.transpose, np.transpose)
_CONV = _Layout(lambda x: x[0].transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)[None])
_INPUT = _Layout(lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])
_STRENGTH = _Layout(lambda x: x.reshape(()), lambda x: x.reshape(1))
_RGB_BIAS = _Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))
_NOISE = _Layout(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))


class _Entry(NamedTuple):
    path: tuple[str, ...]
    key: str
    layout: _Layout


def _entries(config: StyleGAN2Config) -> Iterator[_Entry]:
    """Every parameter of the generator under both names."""
    for i in range(config.mapping_layers):
        yield _Entry((f"style_{i}", "kernel"), f"style.{i + 1}.weight", _LINEAR)
        yield _Entry((f"style_{i}", "bias"), f"style.{i + 1}.bias", _SAME)
    yield _Entry(("input", "input"), "input.input", _INPUT)
    doublings = range(len(config.resolutions) - 1)
    for key in ("conv1", *(f"convs.{k}" for j in doublings for k in (2 * j, 2 * j + 1))):
        name = key.replace(".", "_")
        yield from _convolution(name, key)
        yield _Entry((name, "noise_strength"), f"{key}.noise.weight", _STRENGTH)
        yield _Entry((name, "bias"), f"{key}.activate.bias", _SAME)
    for key in ("to_rgb1", *(f"to_rgbs.{j}" for j in doublings)):
        name = key.replace(".", "_")
        yield from _convolution(name, key)
        yield _Entry((name, "bias"), f"{key}.bias", _RGB_BIAS)
    for i in range(len(config.noise_sizes)):
        yield _Entry(("noises", f"noise_{i}"), f"noises.noise_{i}", _NOISE)


def _convolution(name: str, key: str) -> Iterator[_Entry]:
    yield _Entry((name, "conv", "kernel"), f"{key}.conv.weight", _CONV)
    yield _Entry((name, "conv", "modulation", "kernel"), f"{key}.conv.modulation.weight", _LINEAR)
    yield _Entry((name, "conv", "modulation", "bias"), f"{key}.conv.modulation.bias", _SAME)


def _filters(config: StyleGAN2Config) -> Iterator[str]:
    """The keys of the resampling kernels."""
    for j in range(len(config.resolutions) - 1):
        yield f"convs.{2 * j}.conv.blur.kernel"
        yield f"to_rgbs.{j}.upsample.kernel"


@functools.lru_cache(maxsize=4)
def _shapes(config: StyleGAN2Config) -> Params:
    shapes: Params = jax.eval_shape(lambda key: init_generator(key, config), jax.random.key(0))
    return shapes
