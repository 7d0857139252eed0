"""When training a manipulator pays: the cost model of SDD (eqs. 13-15), on measured times.

Editing m images takes, with tau_diff the time of an iterative editor for one image, tau_sdd that of one pass of the
manipulator, and tau_train that of training it,

    C_diff(m) = m tau_diff                     (13)
    C_sdd(m)  = tau_train + m tau_sdd          (14)
    m*        = tau_train / (tau_diff - tau_sdd)     C_sdd < C_diff for m > m*; never where the pass is no faster   (15)

`measure_seconds` takes times the same way for both: compiled, warm, one image, the median of several runs.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditCost:
    """Seconds: of training, of one pass of the manipulator, of one run of an editor."""

    train: float
    manipulator: float
    editor: float

    def manipulated(self, m: float) -> float:
        """C_sdd(m), seconds (14)."""
        return self.train + m * self.manipulator

    def edited(self, m: float) -> float:
        """C_diff(m), seconds (13)."""
        return m * self.editor

    @property
    def break_even(self) -> float:
        """m*, images (15); inf where the manipulator is no faster."""
        gain = self.editor - self.manipulator
        return self.train / gain if gain > 0 else math.inf


def measure_seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The median time of `run`, s, after one call that compiles; what it returns is waited for."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)
