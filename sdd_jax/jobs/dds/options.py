"""What editing by scores can be told: the options of `jobs.dds.editing`'s methods."""

from __future__ import annotations

import dataclasses

import numpy as np

from sdd_jax.jobs.editing.options import OnePass
from sdd_jax.jobs.sdd.timesteps import read_timesteps
from sdd_jax.sampling.score_editing import FIRST, ITERATIONS, LAST, OPTIMIZERS, STEP, timesteps
from sdd_jax.types import ModelBundle

CUTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent:
    """What editing by scores can be told.

    iterations, step, optimizer: of the descent; optimizer sgd or adam. guidance: w, 1 is off; None is the usual one.
    t_min, t_max: the range of t; timesteps: a JSON file with a list `selected` instead (`python -m sdd_jax.search`).
    alpha_power, sigma_power: the gradient's weight alpha_t^a sigma_t^b; SDD's is sigma_t^2. clip: the largest root mean
    square of a gradient. mask: a picture that is white where the edit may act. frames: pictures of the way (at most;
    their number divides `iterations`), the last one the result, each a decoding; 0 for none.
    """

    iterations: int = ITERATIONS
    step: float = STEP
    optimizer: str = "sgd"
    guidance: float | None = None
    t_min: int = FIRST
    t_max: int = LAST
    timesteps: str = ""
    alpha_power: float = 0.0
    sigma_power: float = 0.0
    clip: float | None = None
    mask: str = ""
    frames: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.frames < 0 or self.step <= 0:
            raise ValueError(
                f"iterations={self.iterations}, step={self.step}, frames={self.frames}: give at least one iteration, "
                "a step above 0 and 0 frames or more"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is not known; use {', '.join(OPTIMIZERS)}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip={self.clip} would stop every gradient: give a size above 0, or none")

    def times(self, model: ModelBundle) -> np.ndarray:
        """What t is drawn from, int32[k]."""
        T = len(model.alphas_cumprod)
        chosen = read_timesteps(self.timesteps, T) if self.timesteps else ()
        return timesteps(self.t_min, self.t_max, chosen, T)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta(Descent):
    """symmetric: the source's latents move too, the other way."""

    symmetric: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Descent):
    """contrast: the weight of the contrastive loss, 0 leaves it out. patches: compared in a layer."""

    contrast: float = 3.0
    patches: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patches < 1:
            raise ValueError(f"patches={self.patches}: compare at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posterior(Descent):
    """stride: from t to the neighbour t - stride; 1 has no pull to the source.

    The step is larger than DDS's, because PDS's weight of its score is about a tenth (no image editor was released).
    """

    step: float = 10 * STEP
    t_min: int = 20
    t_max: int = 979
    stride: int = 2

    def times(self, model: ModelBundle) -> np.ndarray:
        """As `Descent.times`; ValueError for a t without a neighbour."""
        times = super().times(model)
        if not 1 <= self.stride <= times[0]:
            raise ValueError(f"stride={self.stride} leaves the lowest timestep {times[0]} no neighbour: give 1 or more")
        return times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(OnePass):
    """task: a translator's, for all images; "" reads each image's target as one, unless the translator has only one."""

    task: str = ""


def shared(options: Descent) -> Descent:
    """The options without what enters a program as an array or not at all: sweeping those compiles nothing."""
    return dataclasses.replace(options, guidance=None, step=STEP, iterations=ITERATIONS, t_min=FIRST, t_max=LAST,
                               timesteps="", mask="", frames=0)  # fmt: skip
