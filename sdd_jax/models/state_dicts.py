"""Single weights files, of metric and style networks: safetensors, or PyTorch checkpoints read without running code.

| suffix | read by |
| --- | --- |
| `.safetensors` | safetensors |
| `.pt .pth .bin .ckpt` | `torch.load(weights_only=True)`, which refuses everything but tensors and plain containers |

Half-precision tensors become float32 and integer tensors (batch counters, position ids) are dropped: these networks
are float32 throughout and hold no integers. Renames turn the lists that the generic rule of `convert` does not know
into ones that it does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sdd_jax.models.convert import match, torch_to_flax
from sdd_jax.types import Params

PICKLES = (".pt", ".pth", ".bin", ".ckpt")

StateDict = dict[str, np.ndarray]


class Checkpoint(NamedTuple):
    """tensors: the floating-point ones, float32. plain: what stands beside them, options and step counts."""

    tensors: StateDict
    plain: dict[str, Any]


def read_state_dict(path: str | os.PathLike[str], *, page: str = "docs/metrics.md") -> StateDict:
    """Returns the floating-point tensors of a weights file, float32, under the file's names.

    page: of the documentation, which says where the file comes from; for the message.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another suffix, a PyTorch checkpoint where torch is not installed, a damaged file, one that holds more
        than tensors, or no flat dict of tensors.
    """
    return _read(Path(path), page, nested=False).tensors


def read_nested_state_dict(path: str | os.PathLike[str], *, page: str) -> StateDict:
    """The tensors of `read_checkpoint`."""
    return read_checkpoint(path, page=page).tensors


def read_checkpoint(path: str | os.PathLike[str], *, page: str) -> Checkpoint:
    """As `read_state_dict`, of a checkpoint of dicts in dicts: {"g_ema": {"input.input": x}} gives "g_ema.input.input",
    {"opts": {"lr": 1e-4}} the plain value "opts.lr"."""
    return _read(Path(path), page, nested=True)


def to_params(state_dict: Mapping[str, np.ndarray], module: nn.Module, *inputs: Any, source: str) -> Params:
    """Converts a state dict, renamed to `module`'s names, to its parameters and checks that they are all there.

    Args:
      inputs: arguments of `module.init`, used for shapes only.
      source: the file, for the message.

    Raises:
      ValueError: tensors missing, unexpected or of the wrong shape, in one line.
    """
    expected = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(jnp.asarray, match(torch_to_flax(state_dict), expected, source))


def rename(state_dict: Mapping[str, np.ndarray], rules: Sequence[tuple[str, str]], drop: str = "") -> StateDict:
    """Applies `re.sub` rules, in order, to every key; keys that match the pattern `drop` from their start are left out.

    Raises:
      ValueError: two keys that become one.
    """
    renamed: StateDict = {}
    for key, value in state_dict.items():
        if drop and re.match(drop, key):
            continue
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"two tensors would be named {name!r}, one of them {key!r}")
        renamed[name] = value
    return renamed


def _float32(value: np.ndarray) -> np.ndarray:
    return value if value.dtype == np.float32 else value.astype(np.float32)


def _read(path: Path, page: str, *, nested: bool) -> Checkpoint:
    tensors, plain = _contents(path, page, nested)
    return Checkpoint({k: _float32(v) for k, v in tensors.items() if v.dtype.kind not in "iub"}, plain)


def _contents(path: Path, page: str, nested: bool) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; {page} lists where each one comes from")
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path), {})
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}); download it again") from None
    if path.suffix not in PICKLES:
        raise ValueError(f"{path}: weights are read from .safetensors or {' '.join(PICKLES)}, not {path.suffix!r}")
    return _unpickled(path, nested)


def _unpickled(path: Path, nested: bool) -> Checkpoint:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is a PyTorch checkpoint: install the torch extra, or convert it to .safetensors where torch is"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors of many kinds here
        if "GLOBAL argparse.Namespace " in str(error):
            raise ValueError(f"{path} holds an argparse.Namespace, a class, and is refused; {_remedy(path)}") from None
        reason = type(error).__name__
        raise ValueError(
            f"{path} is damaged or holds more than tensors, which may run code and is refused ({reason})"
        ) from None
    if nested:
        loaded = dict(_leaves(loaded))
    elif not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no flat dict of tensors; save the network's state_dict()")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in loaded.items() if name not in tensors}
    arrays = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in tensors.items()}
    return Checkpoint(arrays, plain)


def _remedy(path: Path) -> str:
    """What to type to save a checkpoint's `argparse.Namespace` as a dict; every other class stays refused."""
    given, made = str(path), str(path.with_stem(path.stem + "_plain"))
    return (
        f'give {made}, which has a dict instead, made by: python -c "import argparse as a, torch; '
        "torch.serialization.add_safe_globals([a.Namespace]); "
        f"c = torch.load({given!r}, 'cpu', weights_only=True); "
        f'torch.save({{k: vars(v) if isinstance(v, a.Namespace) else v for k, v in c.items()}}, {made!r})"'
    )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of dicts in dicts under dotted names."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
