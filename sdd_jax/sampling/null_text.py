"""Null-text inversion (Mokady et al. 2023): per step, the unconditional prompt that makes guidance reconstruct.

Let z*_T, ..., z*_0 be DDIM inversion's stops, unguided. From zbar = z*_T on, for step i = 0, 1, ... from t to s, the
null context n_i (started at n_{i-1}) minimises, by Adam,

    |move(f_null(n_i) + w (f_cond - f_null(n_i)), zbar, t, s) - z*_s|^2        f(.) = f(zbar, t, .)            (1)

in at most 10 steps of size 1e-2 (1 - i/100), until the mean square falls below 1e-5 + 2e-5 i; then zbar moves on. The
edit decodes pairs with n_i in both branches, both guided.

Batched: Adam acts elementwise and (1) sums over samples, so each sample's n_i is what it would be alone; one that has
reached its bound stands still while others go on.

Cost: n steps of 2F and at most 10 x 2F (forward and gradient of the null pass; the conditional pass is made once), 22 n
F at most, and n F for the inversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax.diffusion.distances import l2
from sdd_jax.diffusion.guidance import guide, guided, repeat_batch
from sdd_jax.diffusion.schedule import Level, Schedule
from sdd_jax.diffusion.transport import move
from sdd_jax.models.attention import AttentionEdit
from sdd_jax.sampling.editing import Guidance, PairDenoise
from sdd_jax.sampling.generate import at_all, steps_down


class NullTexts(NamedTuple):
    """The null context of each step, f32[n,b,l,d], and the Adam rounds that it took the batch, int32[n]."""

    contexts: jax.Array
    rounds: jax.Array


def optimise_null_text(
    denoise: Callable[..., jax.Array],
    path: jax.Array,
    context: jax.Array,
    null_context: jax.Array,
    w: jax.Array | float,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    inner_steps: int = 10,
) -> NullTexts:
    """The null contexts n_i of n steps.

    denoise(z [b,h,w,c], t int[b], context [b,l,d]) -> prediction. path: `invert.invert_path` of the image, unguided,
    f32[n+1,b,h,w,c]. context: the source prompt's, [b,l,d]; null_context: the empty prompt's, [1,l,d]. w: the scale of
    the edit to come. times: int32[n], strictly decreasing.
    """
    adam = optax.scale_by_adam()

    def step(
        carry: tuple[jax.Array, jax.Array], now: tuple[tuple[jax.Array, Level, Level], jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], NullTexts]:
        z, null = carry
        (t, at_t, at_s), target, index = now
        t = at_all(t, z)
        cond = denoise(z, t, context)
        rate = 1e-2 * jnp.maximum(1.0 - index / 100.0, 0.0)
        bound = 1e-5 + 2e-5 * index

        def arrive(null: jax.Array) -> jax.Array:
            return move(guide(cond, denoise(z, t, null), w), z, at_t, at_s, kind)

        def errors(null: jax.Array) -> tuple[jax.Array, jax.Array]:
            each = l2(arrive(null), target)
            return jnp.sum(each), each

        def refine(loop: tuple[jax.Array, jax.Array, Any, jax.Array]) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
            count, null, state, done = loop
            gradient, each = jax.grad(errors, has_aux=True)(null)
            update, state = adam.update(gradient, state)
            moved = null - rate * update
            return count + 1, jnp.where(done[:, None, None], null, moved), state, done | (each < bound)

        def goes_on(loop: tuple[jax.Array, jax.Array, Any, jax.Array]) -> jax.Array:
            return (loop[0] < inner_steps) & ~jnp.all(loop[3])

        start = (jnp.zeros((), jnp.int32), null, adam.init(null), jnp.zeros(z.shape[:1], bool))
        rounds, null, _, _ = jax.lax.while_loop(goes_on, refine, start)
        return (arrive(null), null), NullTexts(null, rounds)

    null = jnp.broadcast_to(null_context, context.shape).astype(jnp.float32)
    targets = path[::-1][1:]
    inputs = (steps_down(times, schedule), targets, jnp.arange(targets.shape[0], dtype=jnp.float32))
    return jax.lax.scan(step, (path[-1], null), inputs)[1]


def null_text_pairs(
    denoise: Callable[..., jax.Array], nulls: jax.Array, contexts: jax.Array, guidance: Guidance, **conditions: Any
) -> PairDenoise:
    """A two-pass network on pairs with the null context of each step, both branches guided: for `decode_pairs`.

    nulls: f32[n,b,l,d]. contexts: [2b,l,d], sources first. guidance: constant at the w that the nulls were made for.
    """

    def pairs(z: jax.Array, t: jax.Array, step: jax.Array, attention_edit: AttentionEdit | None) -> jax.Array:
        null = repeat_batch(nulls[step])
        return guided(denoise, null)(z, t, contexts, guidance(t), attention_edit=attention_edit, **conditions)

    return pairs
