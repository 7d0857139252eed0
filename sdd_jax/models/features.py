"""Reading what layers inside a network said, by their paths: the features that losses and measures compare.

    recorded, tape = with_outputs(bundle.denoise, r"up_blocks_.*/attn1")
    prediction = recorded(params, z, t, context)          tape: the outputs of those layers in that call, in order

Functional from outside: the tape holds arrays of the trace that the call belongs to, and is read in the same trace. A
model built with remat traces its layers apart, and needs remat "none".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


def with_outputs(apply: Callable[..., jax.Array], layers: str) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """`apply` of a Linen module, and the tape that every call of it fills anew.

    layers: a regular expression that matches the whole path of each layer to read,
    `up_blocks_1/attentions_0/transformer_blocks_0/attn1`.
    """
    tape: list[jax.Array] = []

    def recorded(*args: Any, **kwargs: Any) -> jax.Array:
        tape.clear()

        def keep(call: Callable[..., Any], inputs: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            out = call(*inputs, **options)
            if context.method_name == "__call__" and re.fullmatch(layers, "/".join(context.module.path)):
                tape.append(out)
            return out

        with nn.intercept_methods(keep):
            return apply(*args, **kwargs)

    return recorded, tape
