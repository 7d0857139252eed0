"""Damaged records of any source: skipped, counted, named in the log, and beyond a share of them the end of the job.

Record i that cannot be read is replaced by the first of i + 1, i + 2, ... that can, so every process and every worker
sees the same batch. Each of them counts what it meets itself, and none sees more than its part of an epoch: P processes
of W workers, each waiting for the share s of all n records, would let P W s n of them pass. So a reader stops when

    it has met more than s n damaged records, which is certain, or
    of the records that it was asked for more than the share s was damaged, and more than `ENOUGH` of them.

Damaged ones that were only tried as stand-ins do not count for the second: damage comes in runs, and one request can
walk through a whole one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

ENOUGH = 20
NAMED = 20
GIVE_UP = 1000

_log = logging.getLogger("sdd_jax")
T = TypeVar("T")


class Tolerance:
    """What one reader, a process or a worker, has met of a source's damaged records; pickles with what it knows.

    Args:
        title: what messages call the source. count: its records. max_bad_share: the share of them that may be damaged.
    """

    def __init__(self, title: str, count: int, max_bad_share: float) -> None:
        self._title, self._count, self._share = title, count, max_bad_share
        self._bad: dict[int, str] = {}
        self._asked = self._missed = 0

    @property
    def bad(self) -> tuple[str, ...]:
        """What was wrong with each damaged record that was met."""
        return tuple(self._bad.values())

    def read(self, position: int, read: Callable[[int], T]) -> T:
        """`read(position)`, or of the first record after it that can be read; `read` raises for those that cannot.

        Raises:
            ValueError: more of them are damaged than is tolerated, or none of the next 1000 can be read.
        """
        tried = min(self._count, GIVE_UP)
        self._asked += 1
        for ahead in range(tried):
            index = (position + ahead) % self._count
            if index in self._bad:
                continue
            try:
                return read(index)
            except (ValueError, OSError) as error:
                self._missed += not ahead
                self._note(index, str(error))
        raise ValueError(f"{self._title}: none of the {tried} records from {position} on can be read")

    def _note(self, index: int, reason: str) -> None:
        self._bad[index] = reason
        count = len(self._bad)
        for found, of, least, whose in (
            (count, self._count, 0, "records"),
            (self._missed, self._asked, ENOUGH, "records asked for so far"),
        ):
            if found > max(self._share * of, least):
                raise ValueError(
                    f"{self._title}: {found} of {of} {whose} cannot be read, more than "
                    f"config.data.max_bad_share={self._share:g} of them; the last: {reason}"
                )
        if count <= NAMED:
            _log.warning("skipped a record (%d so far): %s", count, reason)
        elif count & (count - 1) == 0:
            _log.warning("skipped %d records so far of %s", count, self._title)
