"""Child processes, one at a time: their output is shown and kept, a stop is passed on to them, a lock outlives us.

SIGTERM or Ctrl-C stops the child (a training saves first) and then raises `Stopped`. The children inherit the lock's
file: a runner that is killed outright leaves the lock with its child, so that no second runner starts beside it.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType


class Stopped(Exception):
    """The user asked to stop."""


class Failed(ValueError):
    """A child ended with an error; the message is its last line, `log` holds all of them."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class Children:
    """A context that runs children: `run` returns when the child has ended well."""

    def __init__(self, lock: int | None = None) -> None:
        self._inherit = () if lock is None else (lock,)
        self._child: subprocess.Popen[str] | None = None
        self._asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Children:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, command: Sequence[str], log: Path) -> None:
        """Runs a command, showing its output (tables left out, as long as a network) and appending it to `log`.

        Raises:
            Stopped: a stop was asked for.
            Failed: it ended with another status than 0.
        """
        self.check()
        log.parent.mkdir(parents=True, exist_ok=True)
        last: collections.deque[str] = collections.deque(maxlen=1)
        with (
            log.open("a", buffering=1) as kept,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                pass_fds=self._inherit,
            ) as child,
        ):
            self._child = child
            if self._asked:
                child.terminate()
            try:
                for line in child.stdout or ():
                    kept.write(line)
                    if not line.startswith(("|", "+-")):
                        print(f"    {line}", end="", flush=True)
                    if line.strip():
                        last.append(line.strip())
            except BaseException:
                child.terminate()
                raise
            status = child.wait()
        self._child = None
        self.check()
        if status:
            reason = last[0].removeprefix("error: ") if last else "no output"
            raise Failed(f"{reason} (exit status {status})", log)

    def check(self) -> None:
        """Raises Stopped if a stop was asked for."""
        if self._asked:
            raise Stopped

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()


@contextlib.contextmanager
def locked(path: Path, what: str, wait: Callable[[], None] | None = None) -> Iterator[int]:
    """Holds a lock file, released by the kernel however its holders die; yields its descriptor.

    wait: called about once a second while another process holds it (it may raise); None: no waiting.

    Raises:
        ValueError: another process holds it and there is no waiting; `what` says what that one is doing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if wait is None:
                    raise ValueError(f"{what} ({path} is locked): wait for it, or stop it") from error
                wait()
                time.sleep(1.0)
        yield file.fileno()
