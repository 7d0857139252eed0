"""The one adapter to Orbax: asynchronous saves with a verified manifest, exact restores, no silent fallback.

A checkpoint is a directory `checkpoints/STEP/` that appears by one rename. Before that rename, once every process's
arrays are on disk, process 0 hashes them and writes `MANIFEST.json`:

    {step, arrays: {path: [shape, dtype]}, files: {path: sha256}, config, fingerprint}

so a checkpoint without a manifest is one that was tampered with, never one that a kill interrupted. A restore
recomputes the hashes, newest step first. One that differs is passed over with a loud message (and moved to `rejected/`
when the run saves again) and the step before it is tried; if none is good the run ends with an error. Reading changes
nothing on disk. Shapes and dtypes are compared with the manifest first, because Orbax would cast silently.

`fingerprint` says which frozen weights the state was trained against (source and content hash); they are not saved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sdd_jax.config import one_line, to_plain
from sdd_jax.training.state import TrainState

MANIFEST = "MANIFEST.json"
_log = logging.getLogger("sdd_jax")


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving it waits for the save in flight."""

    def __init__(self, workdir: Path, *, keep: int, config: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        self._directory = workdir.absolute() / "checkpoints"
        self._rejected = workdir.absolute() / "rejected"
        self._record = {"config": to_plain(config), "fingerprint": to_plain(fingerprint)}
        self._saving: dict[str, Any] = {}
        self._rejects: list[int] = []
        self._tidy = False
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the newest committed step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving `state`, the result of `step` steps; returns once the arrays are copied off the device."""
        if not self._tidy:
            self._make_room()
        if step in self._manager.all_steps():
            return
        self._manager.wait_until_finished()
        self._saving = {"step": step, "arrays": _describe(state), **self._record}
        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def wait(self) -> None:
        """Blocks until the save in flight is committed."""
        self._manager.wait_until_finished()

    def _write_manifest(self) -> None:
        """Runs on process 0 when all arrays of the save are on disk, just before the directory gets its name."""
        step = self._saving["step"]
        (directory,) = [path for path in self._directory.iterdir() if path.name.split(".")[0] == str(step)]
        manifest = {**self._saving, "files": _hash_files(directory)}
        partial = directory / f"{MANIFEST}.partial"
        with partial.open("w") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(directory / MANIFEST)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Returns the newest state that verifies, laid out as `abstract` says; None where nothing was ever saved.

        Args:
            abstract: the state as ShapeDtypeStructs with shardings; what is a NumPy array there is one in the result.

        Raises:
            ValueError: no checkpoint is good, or the good one holds another job's arrays.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps:
            manifest, problem = _verify(self._directory / str(step))
            if problem:
                problems[step] = problem
                _log.error("CHECKPOINT %d OF %s IS NOT USED: %s", step, self._directory, problem)
                continue
            self._check(step, manifest, abstract)
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # whatever stops this one from being read, an older step may still read
                problems[step] = f"it does not read: {one_line(error)}"
                _log.error("CHECKPOINT %d OF %s IS NOT USED: %s", step, self._directory, problems[step])
                continue
            self._rejects = list(problems)
            return state
        if problems:
            shown = "; ".join(f"step {step}: {problem}" for step, problem in problems.items())
            raise ValueError(
                f"no usable checkpoint in {self._directory} ({shown}); nothing was changed: "
                "restore the files from a copy, or start again in another --workdir"
            )
        return None

    def _check(self, step: int, manifest: Mapping[str, Any], abstract: TrainState) -> None:
        """Raises if the checkpoint's trees or weights are not this job's."""
        directory = self._directory / str(step)
        saved, wanted = manifest["arrays"], _describe(abstract)
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise ValueError(
                    f"checkpoint {directory} does not fit this job: {path} is {_show(saved.get(path))} there and "
                    f"{_show(wanted.get(path))} here; use another --workdir or the config that wrote it"
                )
        before, now = manifest["fingerprint"], self._record["fingerprint"]
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"checkpoint {directory} was trained against another {key}: {before.get(key)} there and "
                    f"{now.get(key)} here; use another --workdir, or the {key} it names"
                )

    def _make_room(self) -> None:
        """Before the first save: moves rejected checkpoints aside and removes what a killed save left unnamed.

        Not earlier, so that reading a workdir never touches the files of the job that runs in it.
        """
        if jax.process_index() == 0:
            for step in self._rejects:
                self._rejected.mkdir(exist_ok=True)
                target = self._rejected / f"{step}-{time.time_ns()}"
                (self._directory / str(step)).rename(target)
                _log.error("moved the bad checkpoint %d to %s", step, target)
            for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints_make_room")
        self._manager.reload()
        self._tidy = True


def _describe(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), np.dtype(leaf.dtype).name]
        for path, leaf in leaves
    }


def _show(entry: Any) -> str:
    return "absent" if entry is None else f"{entry[1]}{entry[0]}"


def _hash_files(directory: Path) -> dict[str, str]:
    """Returns the sha256 of every file of a checkpoint but Orbax's own top-level notes, which hold no state."""
    hashes = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.parent != directory:
            with path.open("rb") as file:
                hashes[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _verify(directory: Path) -> tuple[dict[str, Any], str]:
    """Returns a checkpoint's manifest and what is wrong with the checkpoint (empty: nothing)."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        expected = manifest["files"]
    except FileNotFoundError:
        return {}, f"it has no {MANIFEST}"
    except (ValueError, KeyError):
        return {}, f"its {MANIFEST} is not readable"
    actual = _hash_files(directory)
    for path, digest in expected.items():
        if path not in actual:
            return {}, f"{path} is missing"
        if actual[path] != digest:
            return {}, f"{path} has changed since it was written (sha256 differs)"
    return manifest, ""
