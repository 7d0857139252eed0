"""Stopping cleanly: SIGTERM or Ctrl-C asks the loop to save after the step in flight; a second one kills as usual.

With several processes all must stop at the same step, so the cluster's coordination service decides: it broadcasts the
first notice and agrees on a step that no process has passed.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context in which `reached(step)` says whether to save and stop after `step`."""

    def __init__(self) -> None:
        self._asked = False
        self._handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        if self._handles:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def reached(self, step: int) -> bool:
        """True from the first step after a stop was asked for."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
