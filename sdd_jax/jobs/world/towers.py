"""Jobs of the world's plain towers: the attribute classifier and the nuisance regressor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.records import labelled, measured
from sdd_jax.jobs.streams.portraits import portrait_stream
from sdd_jax.jobs.world.directory import SIZES, tower_config
from sdd_jax.models.towers import TowerConfig, save_tower
from sdd_jax.objectives.classification import Classification
from sdd_jax.objectives.regression import Regression
from sdd_jax.train import Job
from sdd_jax.types import Params


def classifier(config: ConfigDict) -> Job:
    """Trains the attribute classifier."""
    tower = tower_config(config, sum(SIZES))
    settings = {**config.objective, "tower": tower, "sizes": SIZES}
    facts = {"attributes": {name: list(values) for name, values in portraits.VOCABULARY.items()}}
    return Job(
        name="attribute classifier on rendered portraits",
        objective=validate(settings, Classification, "config.objective"),
        frozen={},
        stream=portrait_stream(config, labelled),
        previews=None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={},
        export=_exporter(tower, "classifier", facts),
    )


def regressor(config: ConfigDict) -> Job:
    """Trains the nuisance regressor."""
    tower = tower_config(config, len(portraits.RANGES))
    return Job(
        name="nuisance regressor on rendered portraits",
        objective=validate({**config.objective, "tower": tower}, Regression, "config.objective"),
        frozen={},
        stream=portrait_stream(config, measured),
        previews=None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={},
        export=_exporter(tower, "regressor", {"nuisance": {k: list(v) for k, v in portraits.RANGES.items()}}),
    )


def _exporter(tower: TowerConfig, name: str, facts: dict[str, Any]) -> Callable[[Params, Path], None]:
    def export(params: Params, directory: Path) -> None:
        save_tower(directory / name, tower, params, facts)

    return export
