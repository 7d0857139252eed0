"""Trained rows and their evaluations on disk, under names that hash what they were made from.

    CACHE/trainings/NAME-KEY/     a training's workdir, as `python -m sdd_jax.main` writes it, and the time it took
    CACHE/evaluations/KEY.json    {row, metrics, seconds, device} of one evaluation

A training's key hashes its resolved config (without what changes only how a run is watched, saved or spread, and
without engine keys at their defaults), the weights and the renderer it reads, the keys of its needs, and its revision.
The sources of the package are not part of it: most edits change nothing that a row computes, and `Training.revision`
is there for those that do. An evaluation's key hashes its training's, its function, options, seed and revision, and the
embedded world, whose instruments measure.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sdd_jax.config import defaults_of, flatten, load_config, to_plain
from sdd_jax.data.cache import renderer_hash
from sdd_jax.jobs.world.style import FOLDER as STYLE
from sdd_jax.models.hub import PORTRAITS, content_hash
from sdd_jax.tables.types import Row, Training
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.checkpoint import MANIFEST

_NOT_THE_RESULT = (
    "log_every", "checkpoint_every", "preview_every", "keep", "nonfinite_limit", "workers", "compile_cache",
    "profile_step", "profile_steps", "mesh",
)  # fmt: skip
_WEIGHTS = ("model", "world")
_GENERATOR = "manipulator.generator"


class Cache:
    """The directory of trained rows and evaluations. Configs are read once: a file edited meanwhile changes no key."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self._configs: dict[tuple[str, int], ConfigDict] = {}
        self._keys: dict[tuple[str, int], str] = {}

    def config(self, training: Training, seed: int) -> ConfigDict:
        """A training's resolved config; each key of its needs holds the needed training's workdir.

        Raises:
            FileNotFoundError, ValueError: as `load_config`, for the training or one that it needs.
        """
        known = self._configs.get((repr(training), seed))
        if known is None:
            overrides = self._overrides(training, seed)
            known = load_config(training.config, overrides, defaults_of(EngineConfig))
            engine_config(known)
            self._configs[repr(training), seed] = known
        return known

    def key(self, training: Training, seed: int) -> str:
        """The hash that a training is kept under, 12 hex digits."""
        known = self._keys.get((repr(training), seed))
        if known is None:
            known = self._keys[repr(training), seed] = self._hash_training(training, seed)
        return known

    def _hash_training(self, training: Training, seed: int) -> str:
        config, defaults = flatten(to_plain(self.config(training, seed))), flatten(to_plain(defaults_of(EngineConfig)))
        config |= {key: self.key(needed, seed) for key, needed in training.needs.items()}
        kept = {
            name: value
            for name, value in config.items()
            if name.split(".")[0] not in _NOT_THE_RESULT and (name not in defaults or value != defaults[name])
        }
        weights = {}
        for name in _WEIGHTS:
            directory = _world(config.get(name))
            weights[name] = _world_hash(directory) if directory.is_dir() else ""
        style = _world(config.get(_GENERATOR)) / STYLE
        if _GENERATOR in config and style.is_dir():
            weights[_GENERATOR] = _directory_hash(style)
        return _hash({"config": kept, "weights": weights, "renderer": renderer_hash(), "revision": training.revision})

    def _overrides(self, training: Training, seed: int) -> list[str]:
        needs = [f"{key}={self.workdir(needed, seed)}" for key, needed in training.needs.items()]
        return [*training.overrides, f"seed={seed}", *needs]

    def workdir(self, training: Training, seed: int) -> Path:
        """Where the training runs."""
        name = Path(training.config.partition(":")[0]).stem
        return self.root / "trainings" / f"{name}-{self.key(training, seed)}"

    def arguments(self, training: Training, seed: int) -> list[str]:
        """The arguments of `python -m sdd_jax.main` for the training."""
        return [
            f"--config={training.config}",
            f"--workdir={self.workdir(training, seed)}",
            *(f"--config.{override}" for override in self._overrides(training, seed)),
        ]

    def step(self, training: Training, seed: int) -> int:
        """The step of the training's newest checkpoint; 0 where there is none."""
        found = self.workdir(training, seed).glob(f"checkpoints/*/{MANIFEST}")
        return max((int(path.parent.name) for path in found if path.parent.name.isdigit()), default=0)

    def is_trained(self, training: Training, seed: int) -> bool:
        """True where the training has run to its last step."""
        steps = self.config(training, seed).steps
        return (self.workdir(training, seed) / "checkpoints").is_dir() and self.step(training, seed) >= steps

    def seconds(self, training: Training, seed: int) -> float:
        """The time that the training took so far, all its runs together."""
        return float(read_json(self.workdir(training, seed) / "time.json").get("seconds", 0.0))

    def add_seconds(self, training: Training, seed: int, seconds: float) -> None:
        """Records one more run of the training."""
        total = self.seconds(training, seed) + seconds
        write_atomically(self.workdir(training, seed) / "time.json", json.dumps({"seconds": round(total, 3)}))

    def evaluation_key(self, row: Row, training_seed: int | None, sampling_seed: int) -> str:
        """The hash that one evaluation of a row is kept under."""
        trained = training_seed is not None and row.training is not None
        return _hash(
            {
                "training": self.key(row.training, training_seed) if trained else None,  # type: ignore[arg-type]
                "evaluation": row.evaluation,
                "options": to_plain(row.options),
                "seed": sampling_seed,
                "revision": row.revision,
                "world": _world_hash(PORTRAITS),
                "renderer": renderer_hash(),
            }
        )

    def fingerprint(self, row: Row) -> str:
        """Identifies everything a row's figures depend on, its first seeds included; '' for one that is never run."""
        return "" if row.not_run else self.evaluation_key(row, row.training_seeds[0], row.sampling_seeds[0])

    def evaluation_path(self, row: Row, training_seed: int | None, sampling_seed: int) -> Path:
        """The file of one evaluation."""
        return self.root / "evaluations" / f"{self.evaluation_key(row, training_seed, sampling_seed)}.json"

    def evaluation(self, row: Row, training_seed: int | None, sampling_seed: int) -> dict[str, Any]:
        """One evaluation's record, {} where it was not made."""
        return {} if row.not_run else read_json(self.evaluation_path(row, training_seed, sampling_seed))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a record; {} where there is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: remove it, and it is made again") from error
    return content if isinstance(content, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill, never finds half of it; makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text if text.endswith("\n") else f"{text}\n")
    partial.rename(path)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _world(name: object) -> Path:
    return PORTRAITS if name == "portraits" else Path(str(name))


def _world_hash(world: Path) -> str:
    """Of all but the style generator, which only mappers of its codes read."""
    return _directory_hash(world, without=STYLE)


@functools.cache
def _directory_hash(directory: Path, without: str = "") -> str:
    kinds = (".safetensors", ".msgpack", ".json", ".txt")
    files = [path for path in directory.rglob("*") if path.suffix in kinds and path.is_file()]
    kept = [path for path in files if path.relative_to(directory).parts[0] != without]
    return content_hash(kept, directory)
