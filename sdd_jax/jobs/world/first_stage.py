"""Job of the world's first stage: the autoencoder, whose latents are normalised when it is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data.records import PortraitSource, plain, to_float
from sdd_jax.images import write_grid
from sdd_jax.jobs.streams.portraits import portrait_stream
from sdd_jax.jobs.world.directory import read_tower, world_directory
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.save import save_component
from sdd_jax.models.vae import AutoencoderKL, VAEConfig, posterior
from sdd_jax.objectives.autoencoder import Autoencoder, normalise_latents
from sdd_jax.train import Job
from sdd_jax.types import Frozen, Params

STATISTICS = 2048
PREVIEW = 12


def vae(config: ConfigDict) -> Job:
    """Trains the autoencoder against the classifier's features."""
    tower, classifier, _ = read_tower(world_directory(config.world), "classifier")
    vae_config = {"_class_name": "AutoencoderKL", **config.vae.to_dict()}
    network = AutoencoderKL(VAEConfig.from_json(vae_config, "config.vae"))
    size = vae_config["sample_size"]

    def moments(params: Params, image: jax.Array) -> jax.Array:
        out: Any = network.apply({"params": params}, image, method="encode")
        return out

    def decode(params: Params, z: jax.Array) -> jax.Array:
        out: Any = network.apply({"params": params}, z, method="decode")
        return out

    settings = {
        **config.objective,
        "init_vae": lambda rng: network.init(rng, jnp.zeros((1, size, size, 3)))["params"],
        "moments": moments,
        "decode": decode,
        "tower": tower,
    }
    reconstruct = jax.jit(lambda params, image: decode(params, posterior(moments(params, image))[0]))

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        source = PortraitSource("heldout", PREVIEW, cached=False)
        images = np.stack([to_float(source[i]["image"]) for i in range(PREVIEW)])
        rows = [images, np.asarray(reconstruct(params if ema is None else ema, images))]
        write_grid(directory / f"{step:08d}.png", rows, ["image", "reconstruction"])

    def export(params: Params, directory: Path) -> None:
        mean, std = latent_statistics(jax.jit(moments), params)
        normalised = normalise_latents(params, jnp.asarray(mean), jnp.asarray(std))
        save_component(normalised, vae_config, directory / "vae", "AutoencoderKL", np.float16)

    return Job(
        name="autoencoder on rendered portraits",
        objective=validate(settings, Autoencoder, "config.objective"),
        frozen={"classifier": classifier},
        stream=portrait_stream(config, plain),
        previews=previews,
        batch_size=config.batch_size,
        config=config,
        fingerprint={"classifier": tree_hash(classifier)},
        export=export,
    )


def latent_statistics(
    moments: Callable[[Params, np.ndarray], jax.Array], params: Params
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation f32[c] of the latents of the first training portraits, posterior noise included."""
    source = PortraitSource("train", STATISTICS, cached=False)
    means, squares = [], []
    for start in range(0, len(source), 64):
        images = np.stack([to_float(source[i]["image"]) for i in range(start, start + 64)])
        mean, std = posterior(moments(params, images))
        means.append(np.asarray(mean.mean((0, 1, 2)), np.float64))
        squares.append(np.asarray((mean**2 + std**2).mean((0, 1, 2)), np.float64))
    centre = np.mean(means, 0)
    return centre.astype(np.float32), np.sqrt(np.mean(squares, 0) - centre**2).astype(np.float32)
