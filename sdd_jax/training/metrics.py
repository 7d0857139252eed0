"""Metrics on their way out: fetched late, averaged, then to JSONL, TensorBoard and one progress line.

The host never waits for the step it has just dispatched: `Late` holds the device scalars of the last few steps and
hands back those that are old enough to be there, which also bounds how far the host runs ahead. Lines of
`metrics.jsonl` carry the mean since the line before (or the resume); `step` n is the state after n steps, so a run
resumed at n drops lines past n.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

Scalars = dict[str, float]


class Late:
    """A queue of device metrics, `depth` steps long."""

    def __init__(self, depth: int = 3) -> None:
        self._depth = depth
        self._queue: deque[tuple[int, Mapping[str, jax.Array]]] = deque()

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> Iterator[tuple[int, Scalars]]:
        """Adds the metrics of `step` and yields those of steps that are `depth` behind, as floats."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._queue.append((step, metrics))
        yield from self._pop(self._depth)

    def drain(self) -> Iterator[tuple[int, Scalars]]:
        """Yields everything still queued, waiting for the device."""
        yield from self._pop(0)

    def _pop(self, remaining: int) -> Iterator[tuple[int, Scalars]]:
        while len(self._queue) > remaining:
            step, metrics = self._queue.popleft()
            yield step, {key: float(np.asarray(value)) for key, value in metrics.items()}


class Mean:
    """Running means of scalars, over the finite values if there are any; counters keep their last value."""

    _COUNTERS = ("skipped", "streak", "lr")

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, scalars: Scalars) -> None:
        """Adds one step's scalars."""
        for key, value in scalars.items():
            self._values.setdefault(key, []).append(value)

    def take(self) -> Scalars:
        """Returns the means since the last call, and forgets them."""
        means = {}
        for key, values in self._values.items():
            finite = [value for value in values if math.isfinite(value)]
            means[key] = values[-1] if key in self._COUNTERS or not finite else math.fsum(finite) / len(finite)
        self._values = {}
        return means


class Progress:
    """Speed and time left. Pauses (checkpoints, sample grids) and the first, compiling step do not count.

    `waited` tells the seconds that the loop has stood waiting for data so far; `data_wait` is their share of the time
    between the last two measurements.
    """

    def __init__(self, total_steps: int, batch_size: int, waited: Callable[[], float] = lambda: 0.0) -> None:
        self._total, self._batch, self._waited = total_steps, batch_size, waited
        self.data_wait = 0.0
        self._waits = 0.0
        self._step: int | None = None
        self._since = 0.0

    def start(self, step: int) -> None:
        """Starts timing when `step` has come back; later calls change nothing."""
        if self._step is None:
            self._step, self._since, self._waits = step, time.monotonic(), self._waited()

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` out of the running measurement."""
        self._since += seconds

    def measure(self, step: int) -> tuple[float | None, str]:
        """Returns samples/s since the last measurement and the ETA as h:mm:ss; `None` and `?` before two steps."""
        if self._step is None or step <= self._step:
            return None, "?"
        now = time.monotonic()
        elapsed, waits = max(now - self._since, 1e-9), self._waited()
        per_step = elapsed / (step - self._step)
        self.data_wait = min(1.0, (waits - self._waits) / elapsed)
        self._step, self._since, self._waits = step, now, waits
        left = round(per_step * (self._total - step))
        return self._batch / per_step, f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"


class Writer:
    """Appends scalars to `metrics.jsonl` and to TensorBoard events, from `start_step` on; silent if not `active`."""

    def __init__(self, workdir: Path, start_step: int, active: bool = True) -> None:
        self._active = active
        if not active:
            return
        path = workdir / "metrics.jsonl"
        _drop_after(path, start_step)
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, scalars: Scalars) -> None:
        """Writes one line and one event per scalar; non-finite values are null in the JSON."""
        if not self._active:
            return
        line = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        for key, value in scalars.items():
            self._events.add_scalar(key, value, step)

    def flush(self) -> None:
        """Puts the events on disk."""
        if self._active:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if self._active:
            self._file.close()
            self._events.close()


def _drop_after(path: Path, step: int) -> None:
    """Rewrites `path` without the lines of steps past `step`, and without a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".jsonl.partial")
    partial.write_text("".join(kept))
    partial.rename(path)
