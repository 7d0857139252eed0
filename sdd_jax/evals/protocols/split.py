"""A protocol's work over the processes of one job: whole batches, dealt out in turn.

Process p of P takes batches p, p + P, ...: every batch has the same samples as in a run of one process, so every
picture and every figure is the same too, whatever P. The processes share one file system, on which the results are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")


def own(batches: Sequence[T]) -> Sequence[T]:
    """The batches that are this process's to do."""
    return batches[jax.process_index() :: jax.process_count()]


def is_first() -> bool:
    """Whether this process does what is done once."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns when every process is here; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
