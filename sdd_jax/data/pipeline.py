"""The step-indexed data stream: a pure function of (source, seed, step).

    source -> seed -> shuffle -> repeat -> random_map -> shard contiguous blocks by process -> batch -> [start_step:]

Sample k of the stream is `transform(source[pi_e(k mod n)], rng_k)`, with pi_e the permutation of epoch e = k // n and
rng_k a generator seeded by (seed, k). Step i is the samples [i B, (i + 1) B), of which process p of P takes the p-th
block of B / P. So global batches are the same for any number of processes and workers, and resuming at a step costs
no replay.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import grain
import numpy as np
from absl import flags

from sdd_jax.command import log_to_stdout

Record = dict[str, Any]
HostBatch = dict[str, np.ndarray]
T = TypeVar("T")

# grain measures a slice of a repeated dataset with a C ssize_t; this many samples fit in it and outlast any run.
_ENDLESS = 2**50


class Source(Protocol):
    """A random-access source of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def make_stream(
    source: Source,
    transform: Callable[[Record, np.random.Generator], HostBatch],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    shuffle: bool = True,
) -> Iterator[HostBatch]:
    """Returns the endless iterator over this process's part of the global batches, from `start_step` on.

    Args:
        source: n records.
        transform: record and its own generator -> dict of arrays of fixed shapes, stacked to [batch_size / P, ...].
        batch_size: samples of a global batch.
        workers: processes that run `transform`; 0 runs it on threads of this one. `source` and `transform` must then
            pickle.

    Raises:
        ValueError: an empty source, or a batch size that the processes do not divide.
    """
    if len(source) == 0:
        raise ValueError("the data source is empty: 0 records")
    if batch_size % process_count:
        raise ValueError(f"config.batch_size={batch_size} must be a multiple of the {process_count} processes")
    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(_ENDLESS // len(source)).random_map(transform)
    dataset = dataset.batch(batch_size // process_count)[process_index::process_count][start_step:]
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        log = logging.getLogger("sdd_jax")
        start = functools.partial(_log_likewise, log.level) if log.handlers else None
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), start)
    return iter(stream)


def _log_likewise(level: int, worker: int, workers: int) -> None:
    """Gives a worker, which starts with Python's default logging, the lines and level of the command it works for."""
    log_to_stdout(level)


class Prefetch(Generic[T]):
    """Iterates `place(batch)` over a stream, made `depth` ahead of the consumer by a thread; close it when done.

    An exception of the stream or of `place` is raised by the `next` that would have returned its batch. `waited` is how
    many seconds the consumer has stood at an empty queue so far.
    """

    def __init__(self, stream: Iterator[HostBatch], place: Callable[[HostBatch], T], depth: int = 2) -> None:
        self._stream, self._place = stream, place
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self.waited = 0.0
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            while not self._closed.is_set():
                self._put((self._place(next(self._stream)), None))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer
            self._put((None, error))

    def _put(self, item: tuple[T | None, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        began = time.monotonic()
        item, error = self._queue.get()
        self.waited += time.monotonic() - began
        if error is not None:
            self._queue.put((None, error))
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stops the thread and the stream behind it."""
        self._closed.set()
        self._thread.join(timeout=5)
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()
