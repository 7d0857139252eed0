"""Optimisers and schedules by name.

    lr(n) = peak * min(1, n / warmup) * { 1                                                             constant
                                        { f + (1 - f) (1 + cos(pi (n - warmup) / (decay - warmup))) / 2     cosine }

with n the updates done so far and f = `final_scale`. Gradients are clipped by their global norm first. Weight decay is
decoupled (AdamW) and leaves vectors and scalars alone: biases, norms. Muon (Jordan 2024) orthogonalises the momentum of
hidden kernels, read as matrices [everything that is summed over, outputs]: [i, o] for dense, [h w i, o] for
convolutions; the first and last convolution, embeddings (the projection of a guidance scale among them, whose inputs
are as few as the scales) and all vectors go to Adam. Its step is scaled to Adam's RMS (0.2, Moonlight, arXiv
2502.16982), so one learning rate serves both. Of each kernel [m, n], m the shorter side, an update costs
5 (4 m^2 n + 2 m^3) operations, five Newton-Schulz iterations, whatever the batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from sdd_jax.types import Params

_OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
_SCHEDULES = ("constant", "cosine")
_NOT_HIDDEN = ("conv_in", "conv_out", "cond_proj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser's config section.

    Fields:
        name: adamw, adam, sgd or muon.
        learning_rate: the peak.
        schedule: constant or cosine; both start with `warmup_steps` of linear warmup.
        decay_steps: where the cosine ends, counted from step 0; None: the run's last step.
        final_scale: the cosine's last value, as a share of the peak.
        b1, b2, eps: Adam's (of adamw, adam, and muon's Adam part).
        momentum: of sgd and muon.
        weight_decay: decoupled, times the learning rate; adamw and muon.
        clip_norm: the largest global gradient norm; None: no clipping.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in _OPTIMIZERS:
            raise ValueError(f"name={self.name!r} is not an optimizer; one of {', '.join(_OPTIMIZERS)}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is not a schedule; one of {', '.join(_SCHEDULES)}")
        if self.name in ("adam", "sgd") and self.weight_decay:
            raise ValueError(f"weight_decay={self.weight_decay} has no effect with {self.name}; use adamw or 0")


def make_optimizer(config: OptimizerConfig, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser and its learning rate as a function of the number of updates done."""
    schedule = make_schedule(config, total_steps)
    adam = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    match config.name:
        case "adamw":
            optimizer = optax.adamw(schedule, **adam, weight_decay=config.weight_decay, mask=decay_mask)
        case "adam":
            optimizer = optax.adam(schedule, **adam)
        case "sgd":
            optimizer = optax.sgd(schedule, momentum=config.momentum)
        case "muon":
            optimizer = muon(
                schedule,
                beta=config.momentum,
                weight_decay=config.weight_decay,
                weight_decay_mask=decay_mask,
                eps=config.eps,
                adam_b1=config.b1,
                adam_b2=config.b2,
                muon_weight_dimension_numbers=muon_dimensions,
                consistent_rms=0.2,
            )
        case name:
            raise ValueError(f"config.optimizer.name={name!r} is not an optimizer")
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer, schedule


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate by number of updates done."""
    if config.schedule == "cosine":
        decay_steps = total_steps if config.decay_steps is None else config.decay_steps
        after = optax.cosine_decay_schedule(
            config.learning_rate, max(1, decay_steps - config.warmup_steps), config.final_scale
        )
    else:
        after = optax.constant_schedule(config.learning_rate)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def decay_mask(params: Params) -> Any:
    """True for matrices and kernels, False for vectors and scalars."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def muon_dimensions(params: Params) -> Any:
    """Returns each leaf's reduction and output axes where Muon trains it, None where Adam does."""

    def rule(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        if leaf.ndim < 2 or names[-1] != "kernel" or any(name in _NOT_HIDDEN for name in names):
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(rule, params)
