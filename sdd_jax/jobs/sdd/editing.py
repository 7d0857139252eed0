"""Editing with a run of SDD or of CLIP guidance: one pass of its manipulator, of latents or of a generator's codes.

The pass makes the edit that it was trained for: prompts are not read. (An exported translator of latents is a model
that `translate` edits with.)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sdd_jax.jobs.editing.methods import EditRequest, EditResult
from sdd_jax.jobs.editing.options import OnePass, takes
from sdd_jax.jobs.sdd.pictures import make_editor
from sdd_jax.objectives.clip_guidance import CLIPGuidance
from sdd_jax.objectives.manipulators import LatentManipulator, Manipulator, StyleManipulator
from sdd_jax.objectives.sdd import SDD
from sdd_jax.train import Job
from sdd_jax.types import Frozen, ModelBundle, Params


@takes(OnePass)
def manipulate(request: EditRequest, options: OnePass) -> EditResult:
    """One pass of the run's manipulator.

    Raises:
        ValueError: a model that is no such run, or a generator without an encoder of images.
    """
    if "manipulator" not in request.frozen:
        raise ValueError("manipulate edits with a run of sdd or clip_guidance: name it as --workdir")
    described = request.model.configs["manipulator"]
    if described["side"] and request.image.shape[1] != request.image.shape[2]:
        raise ValueError("manipulate: a generator's pictures are square; give --size one side")
    image = described["edit"](request.frozen["manipulator"], request.frozen, request.image, options.strength)
    return EditResult(np.asarray(image), described["evaluations"])


def editing_model(job: Job, params: Params) -> tuple[ModelBundle, Frozen]:
    """A run as `jobs.editing.methods` takes it."""
    assert isinstance(job.objective, SDD | CLIPGuidance)
    manipulator = job.objective.manipulator
    assert isinstance(manipulator, LatentManipulator | StyleManipulator)
    return manipulating_model(manipulator, job.frozen, params)


def manipulating_model(
    manipulator: LatentManipulator | StyleManipulator, frozen: Frozen, params: Params
) -> tuple[ModelBundle, Frozen]:
    """A manipulator as `edit` takes it: the teacher, with the parameters under `frozen['manipulator']`."""
    side = manipulator.generator.config.size if isinstance(manipulator, StyleManipulator) else 0
    described = {"edit": make_editor(manipulator), "evaluations": evaluations_of(manipulator), "side": side}
    configs = {**manipulator.model.configs, "manipulator": described}
    return dataclasses.replace(manipulator.model, configs=configs), {**frozen, "manipulator": params}


def evaluations_of(manipulator: Manipulator) -> float:
    """F of an edit: a mapper of a generator's codes has no UNet in it."""
    return float(isinstance(manipulator, LatentManipulator))
