"""Runs of conditional networks to sample with: one, several adapters on one teacher, or adapters on another model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.jobs.ccd.conditional import default_solver
from sdd_jax.jobs.frozen import weights_of
from sdd_jax.models.adapters import Composition
from sdd_jax.models.load import load
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.runs import open_run
from sdd_jax.train import Job
from sdd_jax.types import Frozen, ModelBundle, Params

_log = logging.getLogger("sdd_jax")


def open_runs(workdirs: Sequence[Path], weights: Sequence[float]) -> tuple[ConditionalNetwork, Params, Frozen]:
    """The network, parameters and frozen weights of a run, or of several adapters on one frozen teacher.

    weights: of the adapters, none: 1 each. With several runs or a weight the adapter is a `Composition`, whose
    conditions are a sequence; all else of the network is the first run's.

    Raises:
        ValueError: a run of another kind, or several that do not share one frozen teacher and one kind of sampling.
    """
    opened: list[tuple[Job, ConditionalNetwork, Params]] = []
    for workdir in workdirs:
        job, params, step = open_run(workdir)
        if not isinstance(job.objective, ConditionalNetwork):
            raise ValueError(
                f"--workdir={workdir} is a {job.config.task!r} run: sample takes runs of ccd, finetune, cm and gd"
            )
        _log.info("%s, step %d", job.name, step)
        if len(workdirs) > 1 and "unet" in params:
            raise ValueError(
                f"--workdir={workdir} trained its UNet too: only adapters on a frozen teacher are composed"
            )
        if opened:
            solver, own = default_solver(opened[0][1]), default_solver(job.objective)
            if own != solver:
                raise ValueError(
                    f"--workdir={workdir} is sampled by {own}, --workdir={workdirs[0]} by {solver}: runs of one solver "
                    "are composed"
                )
            if job.fingerprint != opened[0][0].fingerprint:
                raise ValueError(f"--workdir={workdir} and --workdir={workdirs[0]} were trained on different teachers")
        # the first run's frozen weights serve all
        opened.append((dataclasses.replace(job, frozen={}) if opened else job, job.objective, params))
    first, network, params = opened[0]
    if len(opened) == 1 and not weights:
        return network, params, first.frozen
    adapters = tuple(one.adapter for _, one, _ in opened)
    composition = Composition(adapters=adapters, weights=tuple(weights) or (1.0,) * len(adapters))
    composed = {**params, "adapter": {str(i): own["adapter"] for i, (_, _, own) in enumerate(opened)}}
    untrained: dict[str, Any] = {"hint_weight": 0.0} if hasattr(network, "hint_weight") else {}
    return dataclasses.replace(network, adapter=composition, **untrained), composed, first.frozen


def on_another_model(name: str, teacher: ModelBundle, params: Params, frozen: Frozen) -> Frozen:
    """`frozen` with the weights of the model `name` in place of the teacher's, for adapters trained alone.

    Raises:
        ValueError: the run trained its UNet too, or the model is of another architecture.
    """
    if "unet" in params:
        raise ValueError(f"--model={name}: the run trained its UNet too; only adapters work on other models")
    dtype = jax.tree.leaves(frozen["teacher"]["unet"])[0].dtype
    bundle, weights = load(name, dtype=dtype)
    found = weights_of(bundle, weights)

    def shapes(tree: Frozen) -> Frozen:
        return jax.tree.map(np.shape, tree)

    expected = {**frozen, "teacher": {"unet": frozen["teacher"]["unet"]}}
    is_same = bundle.prediction == teacher.prediction and np.array_equal(bundle.alphas_cumprod, teacher.alphas_cumprod)
    if not is_same or any(shapes(expected[part]) != shapes(value) for part, value in found.items()):
        raise ValueError(f"--model={name} is of another architecture than {teacher.source}, the run's teacher")
    return {**frozen, **found}
