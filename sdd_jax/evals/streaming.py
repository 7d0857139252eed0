"""A metric's network over a stream of any length: equal batches, split over the devices, one compiled program.

Batches are padded to one size with their last row and cut again, so that nothing compiles twice; the next batch is
dispatched before the last one's result is fetched, so that devices wait for neither. Memory does not grow with the
stream. Where several processes share the work, each streams its own part over its own devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sdd_jax.types import Params


class ShardedApply:
    """rows -> outputs, batch by batch: `apply(params, batch) -> f[b,...]` over the devices of this process.

    Args:
      apply: pure; its batch has the structure of a row (an array or a tuple of some) with a leading axis b.
      params: copied to every device once.
      batch: rows per step over all devices, rounded up to a multiple of their number.
      devices: those to use; all of this process if None.
    """

    def __init__(
        self,
        apply: Callable[[Params, Any], jax.Array],
        params: Params,
        *,
        batch: int = 32,
        devices: Sequence[jax.Device] | None = None,
    ):
        devices = list(jax.local_devices() if devices is None else devices)
        if batch < 1 or not devices:
            raise ValueError(f"a metric needs batches of at least 1 row and a device; got {batch}, {len(devices)}")
        mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
        everywhere, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        self.batch = -(-batch // len(devices)) * len(devices)
        self._params = jax.device_put(params, everywhere)
        self._apply = jax.jit(apply, in_shardings=(everywhere, self._split), out_shardings=self._split)

    def __call__(self, rows: Iterable[Any]) -> Iterator[np.ndarray]:
        """Yields outputs [<= batch, ...] of the rows in order."""
        pending: tuple[jax.Array, int] | None = None
        for part in _batched(rows, self.batch):
            padded = (*part, *(part[-1:] * (self.batch - len(part))))
            stacked = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *padded), self._split)
            ahead = self._apply(self._params, stacked), len(part)
            if pending is not None:
                yield np.asarray(pending[0])[: pending[1]]
            pending = ahead
        if pending is not None:
            yield np.asarray(pending[0])[: pending[1]]

    def all(self, rows: Iterable[Any]) -> np.ndarray:
        """The outputs of every row in one array [n, ...]; ValueError for no rows."""
        parts = list(self(rows))
        if not parts:
            raise ValueError("a metric got no images; check the folder or the split")
        return np.concatenate(parts)


def _batched(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(rows)
    while part := tuple(itertools.islice(iterator, size)):
        yield part
