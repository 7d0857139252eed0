"""The embedded world's directory: where its networks are.

tokenizer/ text_encoder/ vae/ unet/ scheduler/ model_index.json     a Stable Diffusion, as diffusers reads it
clip/ classifier/ regressor/                                        its instruments: towers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.evals.instruments import Instruments
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.models.towers import TowerConfig, load_tower
from sdd_jax.types import Params

SIZES = tuple(len(values) for values in portraits.VOCABULARY.values())


def world_directory(name: str) -> Path:
    """The directory that `config.world` means: "portraits" is the one shipped with the package."""
    return PORTRAITS if name == "portraits" else Path(name)


def tower_config(config: ConfigDict, outputs: int | None = None) -> TowerConfig:
    """Reads `config.tower`, with the number of outputs that the task fixes."""
    section = dict(config.tower)
    if outputs is not None:
        section["outputs"] = outputs
    return validate(section, TowerConfig, "config.tower")


def read_tower(world: Path, name: str) -> tuple[TowerConfig, Params, dict[str, Any]]:
    """Loads the tower `name` of a world; the error of a missing one says which job makes it."""
    directory = world / name
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{directory} has no weights: train them with --config=configs/pretrain_portraits.py:{name} and export them"
        )
    return load_tower(directory)


def read_instruments(world: Path) -> Instruments:
    """Loads the classifier, the regressor and the CLIP of a world."""
    classifier, regressor, clip = (read_tower(world, name)[:2] for name in ("classifier", "regressor", "clip"))
    return Instruments(classifier=classifier, regressor=regressor, clip=clip, sizes=SIZES)
