"""Job of the world's UNet: plain latent diffusion on precomputed latents; its export completes a Stable Diffusion."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.records import PortraitSource, latents
from sdd_jax.diffusion.guidance import guided
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.images import write_grid
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.jobs.streams.portraits import PortraitData, stream_of
from sdd_jax.jobs.world.directory import world_directory
from sdd_jax.models import hub
from sdd_jax.models.bundle import make_bundle
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.load import read_component
from sdd_jax.models.save import save
from sdd_jax.models.tokenizer import load_tokenizer
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.objectives.diffusion import Diffusion
from sdd_jax.sampling.generate import initial_noise, sample
from sdd_jax.train import Job, Previews
from sdd_jax.types import Frozen, ModelBundle, Params

PREVIEW = 12
PREVIEW_STEPS = 25
PREVIEW_GUIDANCE = 3.0
INSTRUMENTS = ("clip", "classifier", "regressor")


def unet(config: ConfigDict) -> Job:
    """Trains the UNet on the world's own autoencoder and text encoder."""
    world = world_directory(config.world)
    data = validate(config.data, PortraitData, "config.data")
    unet_config = {"_class_name": "UNet2DConditionModel", **config.unet.to_dict()}
    configs = {
        "unet": unet_config,
        "vae": hub.read_json(world / "vae" / "config.json"),
        "text_encoder": hub.read_json(world / "text_encoder" / "config.json"),
        "scheduler": {"_class_name": "DDIMScheduler", **config.scheduler.to_dict()},
    }
    bundle = make_bundle(configs, load_tokenizer(world / "tokenizer"), remat=config.remat, source=config.world)
    frozen: Frozen = {
        "vae": read_component(world, configs, "vae"),
        "text": {"text_encoder": read_component(world, configs, "text_encoder")},
    }
    empty = jnp.asarray(bundle.tokenize([""]))
    frozen["null_context"] = bundle.embed_text(frozen["text"], empty)[0]
    objective = {**config.objective, "model": bundle, "init_unet": functools.partial(init_unet, make_unet(unet_config))}

    def stream(start_step: int) -> Iterator[HostBatch]:
        source = PortraitSource(data.split, data.count)
        moments = encoded_portraits(bundle, frozen["vae"], source)
        return stream_of(config, source, latents(moments, bundle.tokenize))(start_step)

    def export(params: Params, directory: Path) -> None:
        whole = {"unet": params["unet"], "vae": frozen["vae"], **frozen["text"]}
        directory.mkdir(parents=True, exist_ok=True)
        # beside the parts of a world that earlier exports left in `directory`, each of which is then replaced
        with tempfile.TemporaryDirectory(prefix=".export.", dir=directory) as scratch:
            made = save(bundle, whole, Path(scratch) / "model", np.float16)
            for name in INSTRUMENTS:
                if (world / name).is_dir():
                    shutil.copytree(world / name, made / name)
            for part in made.iterdir():
                if (directory / part.name).is_dir():
                    shutil.rmtree(directory / part.name)
                part.rename(directory / part.name)

    return Job(
        name=f"diffusion teacher on portraits, text encoder and autoencoder of {config.world}",
        objective=validate(objective, Diffusion, "config.objective"),
        frozen=frozen,
        stream=stream,
        previews=_previews(bundle),
        batch_size=config.batch_size,
        config=config,
        fingerprint={"world": tree_hash({"vae": frozen["vae"], "text": frozen["text"]})},
        export=export,
    )


def _previews(bundle: ModelBundle) -> Previews:
    indices = portraits.split_indices("heldout")[:PREVIEW]
    captions = [portraits.caption(portraits.portrait(i).attributes) for i in indices]
    truth = np.stack([portraits.image(i) for i in indices])
    ids = jnp.asarray(bundle.tokenize(captions))
    schedule, times = Schedule(bundle.alphas_cumprod), sampling_times(PREVIEW_STEPS)

    @jax.jit
    def draw(params: Params, frozen: Frozen) -> jax.Array:
        context, _ = bundle.embed_text(frozen["text"], ids)
        network = guided(functools.partial(bundle.denoise, params["unet"]), frozen["null_context"])
        size = bundle.sample_size
        noise = initial_noise(jax.random.key(0), (PREVIEW, size, size, bundle.latent_channels))
        z = sample(lambda z, t: network(z, t, context, PREVIEW_GUIDANCE), noise, times, schedule, bundle.prediction)
        return bundle.decode(frozen["vae"], z)

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        rows = [truth, np.asarray(draw(params if ema is None else ema, frozen))]
        write_grid(directory / f"{step:08d}.png", rows, ["same caption", "sample"])

    return previews
