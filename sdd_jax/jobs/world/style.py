"""Job of the world's style generator: a small StyleGAN2 with its encoder, exported as style/, and its reader."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data.portraits_draw import SIZE
from sdd_jax.data.records import PortraitSource, plain, to_float
from sdd_jax.images import write_grid
from sdd_jax.jobs.streams.portraits import portrait_stream
from sdd_jax.jobs.world.directory import read_tower, world_directory
from sdd_jax.models.e4e import E4EConfig, Encoder, load_e4e, save_e4e
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.stylegan2 import StyleGAN2Config
from sdd_jax.models.stylegan_convert import LoadedGenerator, load_generator, save_generator
from sdd_jax.objectives.style_autoencoder import StyleAutoencoder, centre_codes
from sdd_jax.train import Job
from sdd_jax.types import Frozen, Params

FOLDER, ENCODER = "style", "encoder"
STATISTICS = 2048
PREVIEW = 12
COARSE = 4


class Style(NamedTuple):
    """A world's style generator and its encoder, each with its parameters and the same mean code."""

    generator: LoadedGenerator
    encoder: Encoder


def style_autoencoder(config: ConfigDict) -> Job:
    """Trains the generator and its encoder by reconstruction against the classifier's features."""
    tower, classifier, _ = read_tower(world_directory(config.world), "classifier")
    generator = validate(config.generator, StyleGAN2Config, "config.generator")
    if generator.size != SIZE:
        raise ValueError(f"config.generator: size={generator.size}, but portraits are {SIZE} px")
    if generator.mapping_layers:
        raise ValueError(
            f"config.generator: mapping_layers={generator.mapping_layers} would never be trained, since codes come "
            "from the encoder; set 0"
        )
    codes = {"num_ws": generator.num_ws, "style_dim": generator.style_dim, "side": SIZE}
    encoder = validate({**config.encoder, **codes}, E4EConfig, "config.encoder")
    networks = {"generator": generator, "encoder": encoder, "tower": tower}
    objective = validate({**config.objective, **networks}, StyleAutoencoder, "config.objective")
    encode = jax.jit(objective.encode)

    @jax.jit
    def rows(params: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        ws = objective.encode(params, image)
        mixed = jnp.concatenate([jnp.roll(ws, 1, 0)[:, :COARSE], ws[:, COARSE:]], 1)
        return objective.generate(params, ws), objective.generate(params, mixed)

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        images = _images("heldout", range(PREVIEW))
        found = [np.asarray(row) for row in rows(params if ema is None else ema, images)]
        labels = ["image", "reconstruction", "coarse codes of its neighbour"]
        write_grid(directory / f"{step:08d}.png", [images, *found], labels)

    def export(params: Params, directory: Path) -> None:
        codes = [encode(params, _images("train", range(i, i + 64))) for i in range(0, STATISTICS, 64)]
        mean = jnp.concatenate(codes).mean(0)
        generator_params = objective.generator_params(params)
        save_generator(LoadedGenerator(generator, generator_params, mean), directory / FOLDER)
        centred = centre_codes(params["encoder"], mean)
        save_e4e(Encoder(encoder, centred, np.asarray(mean)), directory / FOLDER / ENCODER)

    return Job(
        name="style generator and encoder on rendered portraits",
        objective=objective,
        frozen={"classifier": classifier},
        stream=portrait_stream(config, plain),
        previews=previews,
        batch_size=config.batch_size,
        config=config,
        fingerprint={"classifier": tree_hash(classifier)},
        export=export,
    )


def read_style(world: Path) -> Style:
    """Loads the style generator and the encoder of a world.

    Raises:
        FileNotFoundError: the world has none.
        ValueError: damaged files.
    """
    for directory in (world / FOLDER, world / FOLDER / ENCODER):
        if not (directory / "model.safetensors").is_file():
            raise FileNotFoundError(
                f"{directory} has no weights: train them with --config=configs/pretrain_style.py and export them"
            )
    return Style(load_generator(world / FOLDER), load_e4e(world / FOLDER / ENCODER))


def _images(split: str, positions: range) -> np.ndarray:
    source = PortraitSource(split, positions.stop, cached=False)
    return np.stack([to_float(source[i]["image"]) for i in positions])
