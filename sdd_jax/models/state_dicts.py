"""Single weights files of the metric networks: safetensors, or PyTorch checkpoints read without running any code.

| suffix | read by |
| --- | --- |
| `.safetensors` | safetensors |
| `.pt .pth .bin .ckpt` | `torch.load(weights_only=True)`, which refuses everything but tensors and plain containers |

Half-precision tensors become float32 and integer tensors (batch counters, position ids) are dropped: a metric network
is float32 throughout and holds no integers. Renames turn the lists that the generic rule of `convert` does not know
into ones that it does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def read_state_dict(path: str | os.PathLike[str], *, page: str = "docs/metrics.md") -> StateDict:
    """Returns the floating-point tensors of a weights file, float32, under the file's names.

    page: of the documentation, which says where the file comes from; for the message.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another suffix, a PyTorch checkpoint where torch is not installed, a damaged file, one that holds more
        than tensors, or no flat dict of tensors.
    """
    tensors = _tensors(Path(path), page, nested=False)
    return {name: _float32(value) for name, value in tensors.items() if value.dtype.kind not in "iub"}


def read_nested_state_dict(path: str | os.PathLike[str], *, page: str) -> StateDict:
    """As `read_state_dict`, of a checkpoint of dicts in dicts: {"g_ema": {"input.input": x}} gives "g_ema.input.input".

    Plain values that stand beside the tensors (options, step counts) are left out.
    """
    tensors = _tensors(Path(path), page, nested=True)
    return {name: _float32(value) for name, value in tensors.items() if value.dtype.kind not in "iub"}


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


def _tensors(path: Path, page: str, *, nested: bool) -> StateDict:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; {page} lists where each one comes from")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}); download it again") from None
    if path.suffix not in PICKLES:
        raise ValueError(f"{path}: weights are read from .safetensors or {' '.join(PICKLES)}, not {path.suffix!r}")
    return _read_checkpoint(path, nested)


def _read_checkpoint(path: Path, nested: bool) -> StateDict:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is a PyTorch checkpoint: install the torch extra, or convert it to .safetensors where torch is"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors of many kinds here
        reason = type(error).__name__
        raise ValueError(
            f"{path} is damaged or holds more than tensors, which may run code and is refused ({reason})"
        ) from None
    if nested:
        loaded = {name: value for name, value in _leaves(loaded) if isinstance(value, torch.Tensor)}
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no flat dict of tensors; save the network's state_dict()")
    return {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in loaded.items()}


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of dicts in dicts under dotted names."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
