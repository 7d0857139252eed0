"""The processes of one job: how they find each other, and what is said when one of them is gone.

| where | who says how many there are |
| --- | --- |
| TPU pod slice, Slurm, Open MPI | the cluster; JAX reads it |
| anything else, CPUs too | `JAX_COORDINATOR_ADDRESS=HOST:PORT`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID` of each |

Every process sends heartbeats to the first one. When one dies, JAX ends the others, at once where it was the first one
and after `heartbeat` seconds of silence otherwise. It ends them from a thread of its own with a stack trace, when no
Python code runs any more; so a helper process, which outlives its parent by a line, says what happened and what to do.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT = 100
_LAST_WORD = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.stdin.buffer.read() != b"done":
    print(sys.argv[1], file=sys.stderr)
"""

_helpers: list[subprocess.Popen[bytes]] = []


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Gives a command the flags of a job of several processes."""
    parser.add_argument("--distributed", action="store_true", help="share the work with the other processes of the job")
    parser.add_argument(
        "--heartbeat", type=int, default=HEARTBEAT, help="seconds until a silent process counts as dead"
    )


def join_processes(heartbeat: int = HEARTBEAT) -> None:
    """Joins the other processes of this job; only the first one goes on logging what is not a warning.

    Args:
        heartbeat: seconds of silence after which a process counts as dead.

    Raises:
        ValueError: no cluster and no complete set of variables, or no contact with the first process.
    """
    count, index = (_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(num_processes=count, process_id=index, heartbeat_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: the processes did not find each other ({error}): start under Slurm, Open MPI or on a TPU "
            "slice, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process"
        ) from None
    if jax.process_index() != 0:
        logging.getLogger("sdd_jax").setLevel(logging.WARNING)


@contextlib.contextmanager
def last_word() -> Iterator[None]:
    """Has one line printed after this process of several, should it end before the block does, however it ends.

    A user's mistake (ValueError, OSError) is an end of the block like any other: it has a line of its own.
    """
    if jax.process_count() == 1:
        yield
        return
    line = (
        f"error: process {jax.process_index()} of {jax.process_count()} ended early. If another one died (above: "
        "'another task died', 'unhealthy'), its own log says why. What was saved is whole: the same command resumes"
    )
    command = [sys.executable, "-I", "-S", "-c", _LAST_WORD, line]
    helper = subprocess.Popen(command, stdin=subprocess.PIPE)
    _helpers.append(helper)  # its pipe stays open until this process is gone, JAX's own farewell included
    try:
        yield
    except (ValueError, OSError):
        helper.communicate(b"done")
        raise
    helper.communicate(b"done")


def text_of_first(text: str) -> str:
    """The first process's text, on all of them; what the others give is not looked at."""
    if jax.process_count() == 1:
        return text
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text.encode()), np.int32)))
    sent = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        sent[:] = np.frombuffer(text.encode(), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))).decode() if size else ""


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    if value and not value.isdigit():
        raise ValueError(f"{name}={value!r} is not a number")
    return int(value) if value else None
