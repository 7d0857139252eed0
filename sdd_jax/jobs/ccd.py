"""Job of CCD: the teacher, the adapter and the conditional data that `configs/ccd_*.py` name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data.degrade_spec import preset
from sdd_jax.data.folder import ImageFolder
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.records import PortraitSource
from sdd_jax.data.restoration import degraded_images, degraded_portraits
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.images import write_grid
from sdd_jax.jobs.latents import encoded_portraits
from sdd_jax.jobs.world import PortraitData, stream_of
from sdd_jax.models.adapters import Adapter, ControlNetAdapter, MuMixing
from sdd_jax.models.bundle import load
from sdd_jax.models.save import save_component
from sdd_jax.models.unet import make_unet
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.inputs import text_of
from sdd_jax.sampling.generate import initial_noise, sample
from sdd_jax.train import Job, Previews
from sdd_jax.types import Frozen, ModelBundle, Params

PREVIEW = 8
PREVIEW_STEPS = (1, 2, 4)

Array = jax.Array | np.ndarray
Sampler = Callable[[Params, Frozen, Array, Array, jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestorationData:
    """Config of super-resolution data.

    source: "portraits", or "folder" (of `path`). split, count: of portraits. size: image side of a folder's images.
    degradation: a preset's name. captions: of portraits as prompts: "random", "full" or "none".
    """

    source: str = "portraits"
    path: str = ""
    split: str = "train"
    count: int = 24_000
    size: int = 64
    degradation: str = "portraits"
    captions: str = "random"

    def __post_init__(self) -> None:
        for name, choices in (("source", ("portraits", "folder")), ("captions", ("random", "full", "none"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use {', '.join(choices)}")
        if self.source == "folder" and not self.path:
            raise ValueError("source='folder' needs a path: set config.data.path to a folder of images")
        if self.source == "portraits":
            PortraitData(split=self.split, count=self.count)
        preset(self.degradation, self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Config of the adapter: kind "controlnet" or "mu"; the ControlNet's condition embedding, one stride 2 a step."""

    kind: str = "controlnet"
    embedding_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        if self.kind not in ("controlnet", "mu"):
            raise ValueError(f"kind={self.kind!r} is not an adapter; use controlnet or mu")


def ccd(config: ConfigDict) -> Job:
    """Distils the teacher into a few-step conditional model."""
    data = validate(config.data, RestorationData, "config.data")
    adapter_config = validate(config.adapter, AdapterConfig, "config.adapter")
    if config.ema is None:
        raise ValueError("config.ema=None: the target network of CCD is the parameters' average; give it a decay")
    bundle, params = load(config.model, config.revision, dtype=jnp.dtype(config.dtype), remat=config.remat)
    adapter = make_adapter(adapter_config, bundle, jnp.dtype(config.dtype), config.remat)
    objective = validate({**config.objective, "model": bundle, "adapter": adapter}, CCD, "config.objective")
    frozen: Frozen = {
        "teacher": {"unet": params["unet"]},
        "vae": params["vae"],
        "text": {name: value for name, value in params.items() if name.startswith("text_encoder")},
    }
    return Job(
        name=f"CCD super-resolution, data {data.path or data.source}, teacher {bundle.source}, {adapter_config.kind}",
        objective=objective,
        frozen=frozen,
        stream=_stream(config, data, bundle, frozen),
        previews=_previews(objective, data),
        batch_size=config.batch_size,
        config=config,
        fingerprint={"teacher": bundle.source, "teacher_hash": bundle.content_hash},
        export=_exporter(bundle, params["unet"], adapter),
    )


def make_adapter(
    config: AdapterConfig, bundle: ModelBundle, dtype: DTypeLike = jnp.float32, remat: str = "none"
) -> Adapter:
    """Builds the adapter for a teacher's UNet; `dtype` is what it computes in, `remat` as for `load`."""
    if config.kind == "mu":
        return MuMixing(model=bundle, module=make_unet(bundle.configs["unet"], dtype=dtype, remat=remat))
    return ControlNetAdapter(config=controlnet_config(config, bundle), dtype=dtype, remat=remat)


def controlnet_config(config: AdapterConfig, bundle: ModelBundle) -> dict[str, Any]:
    """The `config.json` of a ControlNet whose encoder is the teacher's.

    Raises:
        ValueError: the embedding's strides do not bring an image to the size of the teacher's latents.
    """
    factor = 2 ** (len(config.embedding_channels) - 1)
    if factor != bundle.downsampling:
        raise ValueError(
            f"config.adapter.embedding_channels={config.embedding_channels} scales by {factor}, the latents of "
            f"{bundle.source} by {bundle.downsampling}: give one channel count per halving, plus one"
        )
    unet = {k: v for k, v in bundle.configs["unet"].items() if not k.startswith("_")}
    decoder_only = ("up_block_types", "out_channels", "sample_size", "center_input_sample", "time_cond_proj_dim")
    encoder = {name: value for name, value in unet.items() if name not in decoder_only}
    return {**encoder, "conditioning_channels": 3, "conditioning_embedding_out_channels": config.embedding_channels}


def make_sampler(objective: CCD) -> Sampler:
    """Returns sampler(params, frozen, condition f32[b,H,W,3], ids i32[b,n], rng, steps) -> images f32[b,H,W,3].

    Deterministic DDIM over the trailing grid, compiled once per number of steps and shape.
    """
    model, schedule = objective.model, Schedule(objective.model.alphas_cumprod)

    @jax.jit
    def run(
        params: Params, frozen: Frozen, condition: jax.Array, ids: jax.Array, rng: jax.Array, times: jax.Array
    ) -> jax.Array:
        text = text_of(model, frozen, {"input_ids": ids})
        hint = objective.adapter.prepare(frozen, condition)
        side = [size // model.downsampling for size in condition.shape[1:3]]
        noise = initial_noise(rng, (condition.shape[0], *side, model.latent_channels))

        def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
            return objective.predict(params, frozen, hint, z, t, text)

        return model.decode(frozen["vae"], sample(denoise, noise, times, schedule, model.prediction))

    def sampler(params: Params, frozen: Frozen, condition: Array, ids: Array, rng: jax.Array, steps: int) -> jax.Array:
        times = sampling_times(steps, objective.grid_steps, schedule.num_timesteps)
        return run(params, frozen, jnp.asarray(condition), jnp.asarray(ids), rng, jnp.asarray(times))

    return sampler


def _stream(
    config: ConfigDict, data: RestorationData, bundle: ModelBundle, frozen: Frozen
) -> Callable[[int], Iterator[HostBatch]]:
    spec = preset(data.degradation, data.size)

    def stream(start_step: int) -> Iterator[HostBatch]:
        if data.source == "folder":
            folder = ImageFolder(data.path, data.size)
            return stream_of(config, folder, degraded_images(bundle.tokenize, spec))(start_step)
        source = PortraitSource(data.split, data.count)
        moments = None if spec.sharpen_weight else encoded_portraits(bundle, frozen["vae"], source)
        transform = degraded_portraits(bundle.tokenize, spec, data.captions, moments)
        return stream_of(config, source, transform)(start_step)

    return stream


def heldout_rows(data: RestorationData, bundle: ModelBundle, count: int) -> dict[str, np.ndarray]:
    """The first `count` held-out portraits, degraded: `image`, `condition`, `input_ids`, `index`."""
    source = PortraitSource("heldout", count, cached=False)
    transform = degraded_portraits(bundle.tokenize, preset(data.degradation, data.size), data.captions)
    rows = [transform(source[i], np.random.default_rng([7, i])) for i in range(count)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "index": np.asarray(source.indices)}


def _previews(objective: CCD, data: RestorationData) -> Previews | None:
    if data.source != "portraits":
        return None
    batch = heldout_rows(data, objective.model, PREVIEW)
    sampler = make_sampler(objective)

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        shown = params if ema is None else ema
        key = jax.random.key(0)
        drawn = [sampler(shown, frozen, batch["condition"], batch["input_ids"], key, n) for n in PREVIEW_STEPS]
        labels = ["bicubic", *(f"CCD {n} step{'s' * (n > 1)}" for n in PREVIEW_STEPS), "truth"]
        write_grid(directory / f"{step:08d}.png", [batch["condition"], *map(np.asarray, drawn), batch["image"]], labels)

    return previews


def _exporter(bundle: ModelBundle, teacher: Params, adapter: Adapter) -> Callable[[Params, Path], None]:
    def export(params: Params, directory: Path) -> None:
        if not isinstance(adapter, ControlNetAdapter):
            raise ValueError("mu-mixing has no published format: train with config.adapter.kind=controlnet to export")
        unet = params.get("unet", teacher)
        save_component(unet, bundle.configs["unet"], directory / "unet", "UNet2DConditionModel")
        save_component(params["adapter"]["controlnet"], adapter.config, directory / "controlnet", "ControlNetModel")

    return export
