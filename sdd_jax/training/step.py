"""The one training step, the same function for every method.

    g_i      = mean over microbatches m of grad_theta L_i(theta; frozen, batch_m, rng_m, step)      for phase i
    theta   <- optimizer_i(g_i)                                                    one update per phase, in order
    ema     <- decay ema + (1 - decay) theta                                                  once, after the last

With `ema_warmup` the decay of update n is min(decay, (1 + n) / (10 + n)): an average that starts at random weights then
forgets them.

Randomness is a function of (seed, step) alone, so a resumed run repeats the stream whatever the device count:

    step_rng = fold_in(fold_in(rng, state.step), i)          the phase's key: `frozen['step_rng'] = fold_in(step_rng,
    0)` rng_m    = fold_in(step_rng, 1 + m)                                            the key that `loss` receives

A loss draws per-sample noise from its `rng`, which differs between microbatches. What the whole global batch shares
(one t a step, CCD section 4) is drawn from `frozen['step_rng']`, which is the same for every microbatch; beside it
the step puts `frozen['target'] = state.ema` where the method keeps an EMA. A loss is the mean over its samples, so
accumulation over m equal microbatches is the mean over the whole batch.

The guard: a step in which any phase's loss or gradient norm is not finite leaves params, ema and opt_state untouched;
`step` still advances, `skipped` and `streak` count it. Cost beside the losses: one pass over the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdd_jax.training.state import TrainState, merge, select
from sdd_jax.types import Batch, Frozen, Metrics, Objective, Params, Phase

TrainStep = Callable[[TrainState, Frozen, Batch, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    ema_decay: float | None,
    ema_warmup: bool = False,
    accumulate: int = 1,
) -> TrainStep:
    """Returns the pure `train_step(state, frozen, batch, rng) -> (state, metrics)`; `rng` is the run's seed key.

    Args:
        objective: gives the phases. The optimiser updates each phase's own leaves with its own state.
        schedule: the learning rate by number of updates, for the metrics.
        ema_decay: None where the method keeps no EMA; ema_warmup: as above.
        accumulate: microbatches per update; divides the batch.

    Metrics, float32 scalars: `loss` and `grad_norm` before clipping (over all phases together: the sum, and the norm of
    all gradients), `param_norm`, `lr`, `skipped`, `streak`, and the objective's. With several phases each metric of
    phase i is also there as `phase{i}/name`.
    """
    phases = objective.phases

    def train_step(state: TrainState, frozen: Frozen, batch: Batch, rng: jax.Array) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(rng, state.step)
        readable = frozen if state.ema is None else {**frozen, "target": state.ema}
        params, opt_states, losses, norms = state.params, [], [], []
        metrics: Metrics = {}
        for index, (phase, opt_state) in enumerate(zip(phases, state.opt_state, strict=True)):
            loss, extra, grads = _phase_gradients(
                phase, params, readable, batch, jax.random.fold_in(rng, index), state.step, accumulate
            )
            trained = select(params, phase.mask)
            updates, opt_state = optimizer.update(grads, opt_state, trained)
            params = merge(params, optax.apply_updates(trained, updates))
            norm = optax.tree.norm(grads)
            opt_states.append(opt_state)
            losses.append(loss)
            norms.append(norm)
            if len(phases) > 1:
                extra = {f"phase{index}/{key}": value for key, value in {**extra, "loss": loss}.items()}
            metrics.update(extra)
        ema = state.ema
        if ema_decay is not None and ema is not None:
            done = state.step - state.skipped
            decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done)) if ema_warmup else ema_decay
            ema = optax.incremental_update(params, ema, 1.0 - decay)
        loss, norm = jnp.sum(jnp.stack(losses)), jnp.linalg.norm(jnp.stack(norms))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, ema, tuple(opt_states)),
            (state.params, state.ema, state.opt_state),
        )
        updates_done = state.step - state.skipped
        state = TrainState(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            skipped=state.skipped + jnp.where(finite, 0, 1),
            streak=jnp.where(finite, 0, state.streak + 1),
        )
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(params),
            "lr": jnp.asarray(schedule(updates_done), jnp.float32),
            "skipped": state.skipped,
            "streak": state.streak,
        }
        return state, metrics

    return train_step


def _phase_gradients(
    phase: Phase, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array, accumulate: int
) -> tuple[jax.Array, Metrics, Params]:
    """Returns a phase's mean loss, metrics and gradient, with None for the leaves it does not train."""
    frozen = {**frozen, "step_rng": jax.random.fold_in(rng, 0)}

    def loss_fn(trained: Params, microbatch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return phase.loss(merge(params, trained), frozen, microbatch, key, step)

    def one(trained: Params, microbatch: Batch, index: Any) -> tuple[jax.Array, Metrics, Params]:
        key = jax.random.fold_in(rng, 1 + index)
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained, microbatch, key)
        return loss, metrics, grads

    trained = select(params, phase.mask)
    if accumulate == 1:
        return one(trained, batch, 0)
    microbatches = jax.tree.map(lambda array: _microbatches(array, accumulate), batch)
    shapes = jax.eval_shape(one, trained, jax.tree.map(lambda array: array[0], microbatches), 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(total: Any, item: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, microbatch = item
        return jax.tree.map(jnp.add, total, one(trained, microbatch, index)), None

    total, _ = jax.lax.scan(body, zeros, (jnp.arange(accumulate), microbatches))
    return jax.tree.map(lambda leaf: leaf / accumulate, total)


def _microbatches(array: jax.Array, count: int) -> jax.Array:
    """[b, ...] -> [count, b / count, ...], every microbatch taking samples of every device so that none is moved."""
    return array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
