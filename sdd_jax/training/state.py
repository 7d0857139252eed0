"""The training state: arrays only, so that one tree is sharded, donated, saved and restored as a whole.

`select` and `merge` are how a phase trains a part of the parameters: a masked-out leaf becomes None, which JAX reads as
an empty subtree. Gradients, moments and decay of frozen leaves then do not exist, rather than being computed and
zeroed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sdd_jax.types import Frozen, Objective, Params


@flax.struct.dataclass
class TrainState:
    """What a step reads and returns.

    step: i32[], updates attempted so far; `step = n` is the state after n steps, and the data stream's next index.
    params: the trained tree, float32.
    ema: its exponential moving average, same tree; None where the method has none.
    opt_state: one optax state per phase of the objective.
    skipped: i32[], steps that were not finite and changed nothing else.
    streak: i32[], how many of those came last in a row.
    """

    step: jax.Array
    params: Params
    ema: Params | None
    opt_state: tuple[Any, ...]
    skipped: jax.Array
    streak: jax.Array


def select(params: Params, mask: Callable[[Params], Any] | None) -> Params:
    """Returns `params` with None for each leaf whose mask is False; the mask may be a prefix tree of bools."""
    if mask is None:
        return params
    return jax.tree.map(
        lambda keep, subtree: subtree if keep else jax.tree.map(lambda _: None, subtree), mask(params), params
    )


def merge(params: Params, trained: Params) -> Params:
    """Returns `params` with the leaves of `trained` that are not None; the inverse of `select`."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, trained, params, is_leaf=lambda leaf: leaf is None
    )


def create_state(
    rng: jax.Array, objective: Objective, optimizer: optax.GradientTransformation, frozen: Frozen, with_ema: bool
) -> TrainState:
    """Returns the state before the first step; trace it under `jax.eval_shape` for its shapes.

    Every leaf is a copy: `init` may return weights of `frozen` as they are, and the state is donated to the step.
    """
    params = jax.tree.map(jnp.copy, objective.init(rng, frozen))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        opt_state=tuple(optimizer.init(select(params, phase.mask)) for phase in objective.phases),
        skipped=jnp.zeros((), jnp.int32),
        streak=jnp.zeros((), jnp.int32),
    )
