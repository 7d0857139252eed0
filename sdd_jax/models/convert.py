"""One generic rule between PyTorch state dicts and Flax parameter trees, both ways and without a table of names.

Names. A state-dict key is split at its dots; a numeric part joins the part before it with an underscore, the rest nest:

    down_blocks.0.resnets.0.conv1.weight  <->  down_blocks_0 / resnets_0 / conv1 / kernel
    attn1.to_out.0.bias                   <->  attn1 / to_out_0 / bias
    time_embedding.linear_1.weight        <->  time_embedding / linear_1 / kernel

The way back splits `name_<digits>` only where `name` is in `CONTAINERS`, the module lists and sequences that diffusers'
UNet, VAE, ControlNet and T2I-Adapter and transformers' CLIP are made of; so `linear_1`, `conv1`, `k_proj` survive.

Leaves, by the tensor's rank (O out, I in, H W space):

| PyTorch `weight` | Flax | layout |
| --- | --- | --- |
| 4-D convolution | `kernel` | O I H W -> H W I O |
| 2-D linear | `kernel` | O I -> I O |
| 2-D under `token_embedding`, `position_embedding` | `embedding` | as it is |
| 1-D norm | `scale` | as it is |

Every other leaf (`bias`, `logit_scale`, a bare parameter) keeps its name and layout. These are the package's only
transposes. Values are views, never cast: dtype in is dtype out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

CONTAINERS = frozenset(
    "attentions blocks body controlnet_down_blocks down_blocks downsamplers layers net resnets to_out"
    " transformer_blocks up_blocks upsamplers".split()
)
EMBEDDINGS = frozenset({"token_embedding", "position_embedding"})

_LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_PATTERN = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_INDEXED = re.compile(r"(.+?)((?:_\d+)+)")


def flax_path(key: str, ndim: int) -> tuple[str, ...]:
    """Returns the Flax path of state-dict `key`, whose tensor has `ndim` dimensions."""
    *modules, leaf = key.split(".")
    path: list[str] = []
    for part in modules:
        if part.isdigit() and path:
            path[-1] += f"_{part}"
        else:
            path.append(part)
    if leaf == "weight":
        if ndim == 1:
            leaf = "scale"
        elif ndim == 2 and path and path[-1] in EMBEDDINGS:
            leaf = "embedding"
        else:
            leaf = "kernel"
    return (*path, leaf)


def torch_key(path: tuple[str, ...]) -> str:
    """Returns the state-dict key of a Flax `path`: the inverse of `flax_path`."""
    *modules, leaf = path
    parts: list[str] = []
    for name in modules:
        match = _INDEXED.fullmatch(name)
        if match and match[1] in CONTAINERS:
            parts += [match[1], *match[2][1:].split("_")]
        else:
            parts.append(name)
    return ".".join([*parts, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def torch_to_flax(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts a flat state dict to a nested parameter tree of the same dtypes.

    Raises:
      ValueError: a key that the way back would not restore (a numbered module list missing from `CONTAINERS`).
    """
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for key, value in state_dict.items():
        path = flax_path(key, value.ndim)
        if torch_key(path) != key:
            raise ValueError(f"tensor name {key!r} has no reversible Flax name; add its list to convert.CONTAINERS")
        if path[-1] == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        flat[path] = value
    return traverse_util.unflatten_dict(flat)


def flax_to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts a parameter tree (NumPy or JAX leaves) to a flat state dict of contiguous arrays; exact inverse."""
    state_dict: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        value = np.asarray(leaf)
        if path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        # ascontiguousarray would turn a scalar (CLIP's logit_scale) into a vector
        state_dict[torch_key(path)] = np.ascontiguousarray(value).reshape(value.shape)
    return state_dict


def rename_legacy(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the state dict under today's names: the short list of what published files carry.

    VAE attention `query / key / value / proj_attn` becomes `to_q / to_k / to_v / to_out.0`; `position_ids` buffers are
    dropped. (Attention weights stored as 1x1 convolutions are a matter of shape: see `match`.)
    """
    renamed: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        if key.endswith("position_ids"):
            continue
        legacy = _LEGACY_PATTERN.fullmatch(key)
        renamed[f"{legacy[1]}.{_LEGACY_ATTENTION[legacy[2]]}.{legacy[3]}" if legacy else key] = value
    return renamed


def match(params: Mapping[str, Any], expected_shapes: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns `params` if they have exactly the tensors and shapes that a model expects.

    A linear layer stored as a 1x1 convolution, or the reverse, is reshaped to what is expected.

    Args:
      params: a parameter tree.
      expected_shapes: the same tree of anything with `.shape` (`jax.eval_shape` of the model's init).
      source: the file that `params` came from, for the message.

    Raises:
      ValueError: in one line, how many tensors are missing, unexpected or of the wrong shape, and the first few names.
    """
    found = traverse_util.flatten_dict(params)
    expected = traverse_util.flatten_dict(expected_shapes)
    out, wrong = {}, []
    for path in found.keys() & expected.keys():
        value, shape = found[path], tuple(expected[path].shape)
        if value.shape != shape and _without_window(value.shape) == _without_window(shape):
            value = value.reshape(shape)
        if value.shape != shape:
            wrong.append(f"{torch_key(path)} is {value.shape}, not {shape} (Flax layout)")
        out[path] = value
    problems = {
        "missing": [torch_key(path) for path in expected.keys() - found.keys()],
        "unexpected": [torch_key(path) for path in found.keys() - expected.keys()],
        "of the wrong shape": wrong,
    }
    if any(problems.values()):
        listing = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{source} does not fit its config.json: {listing}")
    return traverse_util.unflatten_dict({path: out[path] for path in expected})


def _without_window(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drops the window of a 1x1 convolution's kernel shape."""
    return shape[2:] if len(shape) == 4 and shape[:2] == (1, 1) else shape


def _first(names: list[str], count: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
