"""What every command shares: its flags, log lines on stdout, and user errors as one line with exit status 2.

What the user got wrong is raised by this package as ValueError or OSError and shown as one line; an error from inside a
library is a bug and keeps its traceback (`--debug`, anywhere on the line, keeps every traceback).
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import absl.logging

from sdd_jax.config import one_line

_PACKAGE = Path(__file__).parent


class Parser(argparse.ArgumentParser):
    """The flags of a command; one that is wrong is a `ValueError`, for `run_command` to show."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def directory(text: str) -> Path:
    """A directory to write to, there or not: the type of such a flag."""
    path = Path(text)
    found = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not found.is_dir():
        raise argparse.ArgumentTypeError(f"{found} is a file, name a directory to write to")
    return path


def run_command(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs `command` on `argv`, by default the process's own arguments; returns the exit status: its own or 0, or 2."""
    log_to_stdout()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return command([argument for argument in arguments if argument != "--debug"]) or 0
    except (ValueError, OSError) as error:
        if "--debug" in arguments or not is_ours(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def log_to_stdout(level: int = logging.INFO) -> None:
    """Shows this package's log lines from `level` on and libraries' errors."""
    absl.logging.set_verbosity(absl.logging.ERROR)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("sdd_jax")
    log.handlers, log.propagate = [handler], False
    log.setLevel(level)


def is_ours(error: BaseException) -> bool:
    """True where this package raised the error itself."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_PACKAGE)
