"""A run of CCD or a baseline and the held-out portraits that it is measured on and drawn of."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.conditions import Edit, draw_edit
from sdd_jax.jobs.ccd.data import ConditionConfig, heldout_rng, heldout_rows, read_data
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.runs import open_run, read_config
from sdd_jax.train import Job
from sdd_jax.types import Params

NAMES = {"ccd": "CCD", "finetune": "fine-tuned", "cm": "CM", "gd": "GD"}
"""What the samples of a task's runs are called."""
_log = logging.getLogger("sdd_jax")

Rows = dict[str, np.ndarray]


class Heldout(NamedTuple):
    """A run, and the portraits that it is measured on: `rows` of the data, their attributes `labels` i32[n,a]."""

    job: Job
    params: Params
    step: int
    condition: ConditionConfig
    rows: Rows
    labels: np.ndarray

    @property
    def objective(self) -> ConditionalNetwork:
        """The run's network."""
        assert isinstance(self.job.objective, ConditionalNetwork)
        return self.job.objective

    @property
    def edits(self) -> list[Edit]:
        """What each row of instructed editing asks for."""
        return [draw_edit(int(index), heldout_rng(i)) for i, index in enumerate(self.rows["index"])]


def open_heldout(workdir: Path, samples: int) -> Heldout:
    """Reads a run and makes the first `samples` held-out portraits with its condition.

    Raises:
        ValueError: a number of samples that there is not, or a run on other data.
    """
    available = len(portraits.split_indices("heldout"))
    if not 2 <= samples <= available:
        raise ValueError(f"--samples={samples}: evaluate takes 2 to {available} held-out portraits")
    config = read_config(workdir)
    data, condition = read_data({"data": config.data, "condition": condition_of(workdir)})
    if data.source != "portraits":
        raise ValueError(f"--workdir={workdir} is a run on {data.path}: evaluate measures runs on portraits")
    job, params, step = open_run(workdir)
    assert isinstance(job.objective, ConditionalNetwork)
    if condition.task == "none":
        data = dataclasses.replace(data, captions="full")
    rows = heldout_rows(data, job.objective.model, samples, condition)
    labels = np.stack([portraits.labels(portraits.portrait(i).attributes) for i in rows["index"]])
    _log.info("%s, step %d, on %d held-out portraits", job.name, step, samples)
    return Heldout(job, params, step, condition, rows, labels)


def condition_of(workdir: Path) -> dict:
    """The condition's config of a run: its own, for CM that of the fine-tuned run, for GD none."""
    config = read_config(workdir)
    if config.task == "cm":
        return condition_of(Path(config.teacher.workdir))
    return {"task": "none"} if config.task == "gd" else dict(config.get("condition", {}))
