"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) as a functional transform of a parameter tree.

For a dense layer with kernel W [i, o], or a k x k convolution, whose A is a k x k convolution to `rank` channels and B
a 1 x 1 one:

    W' = W + (alpha / rank) A B                                   A [i, r] or [k, k, i, r],  B [r, o] or [1, 1, r, o]

A starts uniform in +-1/sqrt(fan_in), B at zero, so that the adapted model starts as the original. The adapter is a tree
of its own, `{module path: {"a": A, "b": B}}` with paths like `down_blocks_0/resnets_0/conv1`; frozen weights stay in
theirs. Two ways to apply it, equal in value:

| way | forward | backward to A, B | for |
| --- | --- | --- | --- |
| `merge` | 1F, a new kernel per adapted layer | 2F: the kernels' gradients are made on the way | sampling |
| `adapt` | 1F + about r (i + o) / (i o) of it | 1F + as little: no frozen kernel's gradient exists | training |
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from sdd_jax.models.convert import torch_key

Lora = dict[str, dict[str, jax.Array]]

ICD_TARGETS = (
    r"to_q", r"to_k", r"to_v", r"to_out\.0", r"proj_in", r"proj_out", r"ff\.net\.0\.proj", r"ff\.net\.2", r"conv1",
    r"conv2", r"conv_shortcut", r"downsamplers\.0\.conv", r"upsamplers\.0\.conv", r"time_emb_proj",
)  # fmt: skip
ATTENTION_TARGETS = ICD_TARGETS[:4]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """What an adapter adapts, and how strongly. iCD's: rank 64, alpha 8, ICD_TARGETS.

    rank: columns of A. alpha: the adapter's strength is alpha / rank. targets: regular expressions, each of which must
    match the end of a module's dotted name (`to_q`, `conv1`, `down_blocks\\.0\\..*to_k`), from a dot on.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ICD_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ValueError(f"a LoRA needs rank >= 1 and targets, got rank {self.rank}, targets {self.targets}")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def matches(self, path: str) -> bool:
        """Whether the module at `path` (`down_blocks_0/.../to_q`) is adapted."""
        name = module_name(path)
        return any(re.fullmatch(rf"(.*\.)?(?:{target})", name) for target in self.targets)


def module_name(path: str) -> str:
    """Returns the dotted PyTorch name of the module at a Flax path."""
    return torch_key((*path.split("/"), "bias")).removesuffix(".bias")


def kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the kernel of every dense and convolution layer, by module path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path.removesuffix("/kernel"): leaf for path, leaf in flat.items() if path.endswith("/kernel")}


def init(rng: jax.Array, params: Mapping[str, Any], spec: LoraSpec) -> Lora:
    """Returns a fresh float32 adapter for the layers of `params` that `spec` matches.

    Raises:
      ValueError: a target that matches no layer.
    """
    adapted = {path: tuple(kernel.shape) for path, kernel in kernels(params).items() if spec.matches(path)}
    for target in spec.targets:
        only = dataclasses.replace(spec, targets=(target,))
        if not any(only.matches(path) for path in adapted):
            raise ValueError(f"LoRA target {target!r} matches no dense or convolution layer of this model")
    return _draw(rng, tuple(sorted(adapted.items())), spec.rank)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(rng: jax.Array, layers: tuple[tuple[str, tuple[int, ...]], ...], rank: int) -> Lora:
    """A ~ U(+-1/sqrt(fan_in)), B = 0; one draw for all layers, because each draw costs seconds to compile on a CPU."""
    sizes = [math.prod(shape[:-1]) * rank for _, shape in layers]
    values, start, lora = jax.random.uniform(rng, (sum(sizes),), minval=-1.0, maxval=1.0), 0, {}
    for (path, shape), size in zip(layers, sizes, strict=True):
        a = values[start : start + size].reshape(*shape[:-1], rank) / math.sqrt(math.prod(shape[:-1]))
        lora[path] = {"a": a, "b": jnp.zeros((*(1 for _ in shape[2:]), rank, shape[-1]))}
        start += size
    return lora


def merge(params: Mapping[str, Any], lora: Lora, spec: LoraSpec, scale: float | jax.Array = 1.0) -> dict[str, Any]:
    """Returns `params` with the adapter added to its kernels, times `scale`; differentiable in `params` and `lora`.

    Raises:
      ValueError: the adapter names a layer that `params` lacks.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, pair in lora.items():
        if f"{path}/kernel" not in flat:
            raise ValueError(f"the LoRA adapts {module_name(path)!r}, which this model does not have")
        kernel = flat[f"{path}/kernel"]
        rank, features = pair["b"].shape[-2:]
        delta = pair["a"] @ pair["b"].reshape(rank, features)
        flat[f"{path}/kernel"] = (kernel + (spec.scale * scale) * delta).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def adapt(apply: Callable[..., Any], spec: LoraSpec) -> Callable[..., Any]:
    """Returns `adapted(params, lora, *args, lora_scale=1.0, **kwargs)`, equal to `apply(merge(params, lora), ...)`.

    `apply(params, *args, **kwargs)` is any function that applies a Linen module to `params` (a bundle's `denoise`). The
    low-rank term is added to each layer's output, so that gradients by `lora` never touch a frozen kernel.
    """

    def adapted(params: Any, lora: Lora, *args: Any, lora_scale: float | jax.Array = 1.0, **kwargs: Any) -> Any:
        def add(call: Callable[..., Any], inputs: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            out = call(*inputs, **options)
            pair = lora.get("/".join(context.module.path))
            if pair is None or context.method_name != "__call__":
                return out
            return out + (spec.scale * lora_scale) * _low_rank(context.module, inputs[0], pair).astype(out.dtype)

        with nn.intercept_methods(add):
            return apply(params, *args, **kwargs)

    return adapted


def _low_rank(module: Any, x: jax.Array, pair: Mapping[str, jax.Array]) -> jax.Array:
    """x A B for the layer `module`, which says stride and padding where it is a convolution."""
    a, b = (pair[name].astype(module.dtype) for name in ("a", "b"))
    b = b.reshape(b.shape[-2:])
    x = x.astype(module.dtype)
    if a.ndim == 2 or a.shape[:2] == (1, 1):
        return (x @ a.reshape(a.shape[-2:])) @ b
    half = a.shape[0] // 2
    padding = module.padding or ((half, half), (half, half))
    strides = (module.stride, module.stride)
    return jax.lax.conv_general_dilated(x, a, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")) @ b
