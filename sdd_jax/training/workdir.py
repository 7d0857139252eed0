"""The run's directory: one job, one process group at a time, checked before any device work.

config.json      the resolved config and the fingerprint of the frozen weights
checkpoints/     Orbax, see `checkpoint`
metrics.jsonl, events.out.tfevents.*, samples/*.png
.lock            held by the running job (released by the kernel however the job dies)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from sdd_jax.config import flatten, to_plain

# What may change between two runs of the same job: how long, how often and on what, never what is computed.
_FREE = (
    "steps", "log_every", "checkpoint_every", "keep", "preview_every", "nonfinite_limit", "workers", "remat",
    "compile_cache", "profile_step", "profile_steps", "mesh",
)  # fmt: skip


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the workdir; raises ValueError if it cannot be written or belongs to a job with another config."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be written ({error.strerror}); use another") from error
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        before = flatten(json.loads(path.read_text())["config"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not readable as a job's config; use another --workdir") from error
    now = flatten(to_plain(config))
    changed = [
        f"{key} ({before.get(key, 'absent')} there, {now.get(key, 'absent')} here)"
        for key in sorted(before.keys() | now.keys())
        if key.split(".")[0] not in _FREE and before.get(key, "absent") != now.get(key, "absent")
    ]
    if changed:
        raise ValueError(
            f"--workdir={workdir} belongs to another job: {', '.join(changed)}; use another --workdir or that config"
        )


@contextlib.contextmanager
def hold_workdir(workdir: Path, config: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> Iterator[None]:
    """Checks and locks the workdir for this job and records its config; process 0 alone writes.

    Raises:
        ValueError: as `check_workdir`, or when another process is running in it.
    """
    check_workdir(workdir, config)
    if jax.process_index() != 0:
        yield
        return
    with (workdir / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--workdir={workdir} is in use by another running job; wait for it or stop it") from error
        partial = workdir / "config.json.partial"
        record = {"config": to_plain(config), "fingerprint": to_plain(fingerprint)}
        partial.write_text(json.dumps(record, indent=2) + "\n")
        partial.rename(workdir / "config.json")
        yield
