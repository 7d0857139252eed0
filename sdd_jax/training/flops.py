"""Floating-point operations of a traced function: two per multiply-add of its matrix products and convolutions.

    dot_general             2 prod(out) prod(contracted)
    conv_general_dilated    2 prod(out) (inputs per group) prod(window) / prod(input dilation)
    scan                    length x body;   cond: its dearest branch;   shard_map: devices x body
    cuDNN attention         forward 4 b h n m d; backward 8 b h n m d (its second look at the scores is not work)

Counted is the jaxpr after dead code is gone, gradients included: what nobody reads (the weight gradient of a frozen
kernel, the first layer's input gradient) is not there and costs nothing. The zeros that a strided convolution's
gradient inserts into its input (input dilation) are not work either. Recomputation under `jax.checkpoint` is counted,
for it is executed: trace a model with remat "none" for the useful work. Nothing is computed or allocated: arguments
may be `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr


class Flops(NamedTuple):
    """Operations by kind: matrix products, convolutions, and fused attention that is neither."""

    dot: int = 0
    conv: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """The sum over kinds."""
        return self.dot + self.conv + self.attention


def count_flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
    """Traces `function` on arrays or shapes and counts what computing all of its outputs takes.

    Raises:
        ValueError: a loop whose trip count is known only at run time holds products or convolutions.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def count_jaxpr(jaxpr: Jaxpr) -> Flops:
    """Counts a traced function (`jax.jit(f).trace(...).jaxpr.jaxpr`); otherwise as `count_flops`."""
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(live)


def _count(jaxpr: Jaxpr) -> Flops:
    return _sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> Flops:
    name, params = equation.primitive.name, equation.params
    shapes: list[tuple[int, ...]] = [getattr(var.aval, "shape", ()) for var in equation.invars]
    outputs: list[tuple[int, ...]] = [getattr(var.aval, "shape", ()) for var in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return Flops(dot=2 * math.prod(outputs[0]) * math.prod(shapes[0][axis] for axis in contracted))
    if name == "conv_general_dilated":
        _, *summed = params["dimension_numbers"].rhs_spec
        taps = math.prod(shapes[1][axis] for axis in summed)
        return Flops(conv=2 * math.prod(outputs[0]) * taps // math.prod(params["lhs_dilation"]))
    if name.startswith("dot_product_attention"):
        backward = "bwd" in name
        return Flops(attention=(8 if backward else 4) * _scores(shapes[0], shapes[1], params) * shapes[0][-1])
    inner = [_count(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner, key=lambda flops: flops.total)
    body = _sum(inner)
    if name == "while" and body.total:
        raise ValueError(
            "the function has a while loop of unknown length around matrix products: count its body alone, or write "
            "it as lax.scan or as lax.fori_loop with constant bounds"
        )
    times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
    return Flops(times * body.dot, times * body.conv, times * body.attention)


def _scores(q: tuple[int, ...], k: tuple[int, ...], params: Mapping[str, Any]) -> int:
    """The number of attention scores, b h n m, of `[b,n,h,d]` (layout 0) or `[b,h,n,d]` (layout 1) queries and keys."""
    tokens, heads = (1, 2) if params["layout"] == 0 else (2, 1)
    return q[0] * q[heads] * q[tokens] * k[tokens]


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _sum(parts: Iterable[Flops]) -> Flops:
    every = list(parts)
    return Flops(sum(p.dot for p in every), sum(p.conv for p in every), sum(p.attention for p in every))
