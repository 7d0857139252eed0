"""`python -m sdd_jax.precompute --config=configs/NAME.py[:variant] --out=DIR`: latents and text states to ArrayRecord.

    python -m sdd_jax.precompute --config=configs/ccd_sr.py:sd15 --config.data.path=photos --out=latents

Reads the pictures and captions that `config.data` names, encodes them with the autoencoder and the text encoders of
`config.model` in float32, and stores float16 posterior moments (so that every epoch draws anew) and text states, the
empty prompt's once. Per picture that costs one VAE encoding (1.12 TFLOP at 512 px), once instead of every epoch.

What is drawn anew at every step is not stored. A job with an adapter draws its condition from the picture, so its
records also hold the picture; where its degradation sharpens the target first, the moments are of the sharpened one.
One caption of each picture is stored, drawn where captions are drawn; crops and mirroring are not, and a config that
asks for them is refused.

The work is cut into shards. A shard that is there is not made again: a command that was killed goes on where it was
when given again, and several processes (`--distributed`) share the shards. `data.latent_records` has the format and the
source that jobs read it with.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sdd_jax.command import Parser, directory, run_command
from sdd_jax.config import defaults_of, load_config, split_overrides, to_plain
from sdd_jax.data.degrade_kernels import sharpen
from sdd_jax.data.latent_records import Manifest
from sdd_jax.data.latent_rows import sharpening
from sdd_jax.data.latent_writer import LatentWriter
from sdd_jax.data.pipeline import HostBatch, Prefetch, Source, make_stream
from sdd_jax.data.records import PortraitSource, Record, Transform, text_ids
from sdd_jax.data.restoration import caption_of
from sdd_jax.data.sources import IMAGE_OPTIONS, ImageData, augmented, open_source
from sdd_jax.jobs.ccd.data import PAIRED, read_data
from sdd_jax.jobs.streams.captioned import captioned_data
from sdd_jax.models.load import load
from sdd_jax.train import EngineConfig, engine_config, use_compile_cache
from sdd_jax.training.distributed import add_process_flags, join_processes, last_word
from sdd_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from sdd_jax.types import ModelBundle, Params

_log = logging.getLogger("sdd_jax")


class Pictures(NamedTuple):
    """What a config's data section names.

    source: records with `image` u8[H,W,3]. caption: record, generator -> its prompt. settings: all that the records
    depend on, for the manifest; among it `sharpening` (what is done to a picture before it is encoded, see
    `latent_rows.sharpening`) and `pictures` (whether the record holds the picture too).
    """

    source: Source
    caption: Callable[[Record, np.random.Generator], str]
    settings: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_precompute, argv)


def _precompute(argv: Sequence[str]) -> None:
    overrides, rest = split_overrides(argv)
    parser = Parser(prog="python -m sdd_jax.precompute", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="path to a config file, with :variant,variant")
    parser.add_argument("--out", required=True, type=directory, help="directory to write to; made, or gone on with")
    parser.add_argument("--batch", type=int, default=32, help="pictures encoded at a time")
    parser.add_argument("--shard", type=int, default=2048, help="records of a file; a multiple of --batch")
    add_process_flags(parser)
    flags = parser.parse_args(rest)
    if flags.batch < 1 or flags.shard < 1 or flags.shard % flags.batch:
        raise ValueError(f"--shard={flags.shard} must be a multiple of --batch={flags.batch}, both from 1")

    config = load_config(flags.config, overrides, defaults_of(EngineConfig), IMAGE_OPTIONS)
    for key in ("model", "revision", "data"):
        if key not in config:
            raise ValueError(f"--config={flags.config} has no config.{key}: precompute is for jobs on a loaded model")
    engine = engine_config(config)
    use_compile_cache(engine.compile_cache)
    if flags.distributed:
        join_processes(flags.heartbeat)
    with last_word():
        pictures = open_pictures(config)
        bundle, params = load(config.model, config.revision, on_host=True)
        precompute(
            pictures, bundle, params, flags.out,
            batch=flags.batch, shard=flags.shard, seed=engine.seed, workers=engine.workers,
        )  # fmt: skip


def open_pictures(config: ConfigDict) -> Pictures:
    """Opens the pictures that a job of this config trains on.

    Raises:
        FileNotFoundError, ValueError: nothing there, or settings that ask for other pictures than records can hold.
    """
    spec, keep = None, False
    if config.data.get("source") == "latents":
        raise ValueError("config.data.source='latents' is what precompute makes: name the pictures to make them of")
    if "degradation" in config.data:
        data, condition = read_data({"data": config.data, "condition": config.get("condition", {"task": "none"})})
        if condition.task in PAIRED:
            raise ValueError(
                f"config.condition.task={condition.task!r} reads a second picture, which records do not hold"
            )
        keep = condition.task != "none"
        if condition.task == "superres":
            spec = data.degrade_spec
        images = None if data.source == "portraits" else data.images()
        captions = data.captions
    else:
        plain = captioned_data(config.data)
        images = plain if isinstance(plain, ImageData) else None
        captions = "random" if images is None else images.captions
    kept = {"sharpening": sharpening(spec), "pictures": keep}
    if images is None:
        source: Source = PortraitSource(config.data.split, config.data.count)
        settings = {"source": "portraits", "split": config.data.split, "count": len(source), "captions": captions}
        return Pictures(
            source, lambda record, rng: caption_of(record["index"], captions, rng), to_plain({**settings, **kept})
        )
    for name, fixed in (("crop", "center"), ("flip", False), ("caption_dropout", 0.0)):
        if getattr(images, name) != fixed:
            raise ValueError(
                f"config.data.{name}={getattr(images, name)!r} draws another sample at every step and records are made "
                f"once: give --config.data.{name}={fixed}"
            )
    choose = augmented(images, lambda record, rng: {"caption": record["caption"]})
    settings = to_plain({**dataclasses.asdict(images), **kept})
    return Pictures(open_source(images), lambda record, rng: str(choose(record, rng)["caption"]), settings)


def precompute(
    pictures: Pictures,
    bundle: ModelBundle,
    params: Params,
    out: Path,
    *,
    batch: int = 32,
    shard: int = 2048,
    seed: int = 0,
    workers: int = 0,
) -> None:
    """Writes what is missing in `out` of these pictures' records; the last process to finish completes the manifest.

    Args:
        batch: pictures encoded at a time, over the devices of each process; divides `shard`, the records of a file.
        seed, workers: of the stream of pictures: captions that are drawn, processes that read.

    Raises:
        ValueError: `out` holds other latents, or what was encoded is not finite.
    """
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    encode = jax.jit(_encoder(bundle), in_shardings=(replicated(mesh), batch_sharding(mesh)))
    transform = _transform(pictures, bundle)
    example = transform(pictures.source[0], np.random.default_rng(0))
    rows = {name: np.zeros((1, *value.shape), value.dtype) for name, value in example.items()}
    arrays = {
        name: (leaf.shape[1:], leaf.dtype.name) for name, leaf in jax.eval_shape(_encoder(bundle), params, rows).items()
    }
    keep = pictures.settings["pictures"]
    if keep:
        arrays = {"moments": arrays.pop("moments"), "image": (example["image"].shape, "uint8"), **arrays}
    manifest = Manifest(
        model=bundle.source, model_hash=bundle.content_hash, data={**pictures.settings, "seed": seed},
        count=len(pictures.source), shard_size=shard, arrays=arrays,
    )  # fmt: skip
    writer = LatentWriter(out, manifest)
    missing = writer.missing()
    _log.info(
        "%d records of %s, %d of %d shards to make", manifest.count, bundle.source, len(missing), len(manifest.shards)
    )
    params = jax.device_put({name: value for name, value in params.items() if name != "unet"}, replicated(mesh))

    def place(host: HostBatch) -> tuple[HostBatch, Any]:
        empty = -len(host["empty"]) % mesh.size
        padded = {name: np.concatenate([value, np.repeat(value[-1:], empty, 0)]) for name, value in host.items()}
        return host, encode(params, jax.device_put(padded, batch_sharding(mesh)))

    def encoded(index: int) -> Iterator[dict[str, np.ndarray]]:
        """The records of a shard, encoded one batch ahead of the one that is being written."""
        stream = make_stream(
            pictures.source, transform,
            batch_size=batch, seed=seed, start_step=index * (shard // batch), workers=workers, shuffle=False,
        )  # fmt: skip
        batches = Prefetch(stream, place)
        left = manifest.shard_count(index)
        try:
            while left > 0:
                host, device = next(batches)
                made = {name: np.asarray(value) for name, value in device.items()}
                for row in range(min(batch, left)):
                    named = {
                        name: value[row] for name, value in made.items() if name == "moments" or not host["empty"][row]
                    }
                    yield {**named, "image": host["image"][row]} if keep else named
                left -= batch
        finally:
            batches.close()

    began, done = time.monotonic(), 0
    for index in missing:
        if index % jax.process_count() != jax.process_index():
            continue
        writer.write_shard(index, encoded(index))
        done += manifest.shard_count(index)
        _log.info("shard %d of %d, %.1f pictures/s", index + 1, len(manifest.shards), done / (time.monotonic() - began))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("precomputed")
    if jax.process_index() == 0:
        null = _null_text(bundle, params)
        writer.finish(null)
        _log.info("finished: %d records in %s", manifest.count, out)


def _transform(pictures: Pictures, bundle: ModelBundle) -> Transform:
    caption, sharp_by = pictures.caption, pictures.settings["sharpening"]
    tokenize, tokenize_2 = bundle.tokenize, bundle.tokenize_2

    def transform(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = caption(record, rng)
        row = {"image": record["image"], "empty": np.asarray(not text), **text_ids(text, tokenize, tokenize_2)}
        if sharp_by is not None:
            weight, window, threshold = sharp_by
            sharp = sharpen(record["image"].astype(np.float32) / 255.0, weight, int(window), threshold / 255.0)
            row["target"] = sharp * 2.0 - 1.0
        return row

    return transform


def _encoder(bundle: ModelBundle) -> Any:
    """Returns (params, rows) -> {"moments", "context" (, "pooled")} in float16."""

    def encode(params: Params, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image = rows["target"] if "target" in rows else rows["image"].astype(jnp.float32) / 127.5 - 1.0
        context, pooled = bundle.embed_text(params, rows["input_ids"], rows.get("input_ids_2"))
        made = {"moments": bundle.moments(params["vae"], image), "context": context}
        made |= {} if pooled is None else {"pooled": pooled}
        return {name: value.astype(jnp.float16) for name, value in made.items()}

    return encode


def _null_text(bundle: ModelBundle, params: Params) -> dict[str, np.ndarray]:
    ids = [
        None if tokenize is None else jnp.asarray(tokenize([""])) for tokenize in (bundle.tokenize, bundle.tokenize_2)
    ]
    context, pooled = jax.jit(bundle.embed_text)(params, *ids)
    named = {"context": context, "pooled": pooled}
    return {name: np.asarray(value) for name, value in named.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
