"""The mapper of a StyleGAN2 generator's codes as a manipulator: its networks, codes, data and export.

| `config.manipulator.generator` | what |
| --- | --- |
| portraits, or a world's directory | its style/: generator and encoder (configs/pretrain_style.py) |
| a file | `models.stylegan_convert`: rosinality's .pt, an exported ADA state dict, safetensors |
| `random:SIZE` | random weights, for compiling and counting |

Codes of W+, f32[count,n,d], are made once: of images by the encoder (portraits' are kept in the cache), drawn as
mapping(z) with truncation (`data.source=sampled`), or read from a file (`data.source=codes`), such as the e4e codes of
CelebA-HQ that StyleCLIP and SDD train on. A batch is `codes` and the filled prompt's `input_ids`.

Export: `mapper.safetensors` under the published names, and `config.json`, which says what it is a mapper of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import defaults_of
from sdd_jax.data.cache import cached_array, renderer_hash
from sdd_jax.data.pipeline import HostBatch, Source
from sdd_jax.data.prompts import check_template, fill
from sdd_jax.data.records import PortraitSource, Record, to_float
from sdd_jax.data.sources.images import SOURCES, ImageOptions
from sdd_jax.images import to_uint8
from sdd_jax.jobs.sdd.data import EditData, Parts, first_images
from sdd_jax.jobs.streams.captioned import token_ids
from sdd_jax.jobs.streams.portraits import stream_of
from sdd_jax.jobs.world.directory import world_directory
from sdd_jax.jobs.world.style import Style, read_style
from sdd_jax.models.e4e import Encoder, encode, load_e4e
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.state_dicts import read_nested_state_dict
from sdd_jax.models.style_mappers import MapperConfig, load_mapper, save_mapper
from sdd_jax.models.stylegan2 import StyleGAN2Config, init_generator, make_generator, mean_code, truncate
from sdd_jax.models.stylegan_convert import LoadedGenerator, load_generator
from sdd_jax.objectives.manipulators import StyleManipulator
from sdd_jax.types import Frozen, ModelBundle, Params

CODES = ("sampled", "codes")
RANDOM = "random:"
BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleData(EditData):
    """Config of the codes to manipulate, and of the edit.

    source: as of `EditData`, images that the encoder reads, each once and in the same cut; or "sampled", or "codes", a
    file at `path`. count: of portraits, or of sampled codes. truncation: psi of sampled codes, 1 is off.
    """

    truncation: float = 1.0

    def __post_init__(self) -> None:
        if self.source != "sampled" and self.truncation != 1.0:
            raise ValueError(f"truncation={self.truncation} is of sampled codes: leave it at 1 with {self.source!r}")
        if self.source in ("portraits", *SOURCES):
            super().__post_init__()
            for name, value in (("crop", "center"), ("flip", False), ("caption_dropout", 0.0)):
                if getattr(self, name) != value:
                    raise ValueError(f"{name}={getattr(self, name)!r}: images are encoded once; leave it at {value!r}")
            return
        if self.source not in CODES:
            raise ValueError(f"source={self.source!r} is not known; use portraits, {', '.join((*SOURCES, *CODES))}")
        self.check_unused(self.source)
        if self.source == "codes" and not self.path:
            raise ValueError("source='codes' needs a file of W+ codes [count, n, d]: set config.data.path")
        if self.count < 1:
            raise ValueError(f"count={self.count}: sample one code at least")
        check_template(self.prompt, ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleConfig:
    """Config of the manipulator.

    generator: see the module's text. encoder: an e4e checkpoint; "" is the world's, or none. mapping, levels: the
    mapper (`models.style_mappers`). mapper: a trained one to start from. delta_scale: see `StyleManipulator`.
    """

    kind: str = "stylegan"
    generator: str = ""
    encoder: str = ""
    mapping: str = "levels"
    levels: tuple[str, ...] = ("coarse", "medium", "fine")
    mapper: str = ""
    delta_scale: float = 0.1

    def __post_init__(self) -> None:
        if not self.generator:
            raise ValueError(
                "generator='': set config.manipulator.generator to a StyleGAN2 checkpoint, or to 'portraits'"
            )
        if not self.delta_scale > 0:
            raise ValueError(f"delta_scale={self.delta_scale} must be above 0: codes would stay as they are")
        if self.generator.startswith(RANDOM) and not self.generator.removeprefix(RANDOM).isdigit():
            raise ValueError(f"generator={self.generator!r}: give a size, as random:1024")
        _ = self.network

    @property
    def network(self) -> MapperConfig:
        """The mapper's choices."""
        return MapperConfig(kind=self.mapping, levels=self.levels)


class Networks(NamedTuple):
    """What a mapper stands between. encoder: None where no images are edited."""

    generator: LoadedGenerator
    encoder: Encoder | None


def read_networks(data: StyleData, chosen: StyleConfig) -> Networks:
    """Reads generator and encoder.

    Raises:
        FileNotFoundError: a file is missing, or a world has no style/.
        ValueError: files that are no such networks, or networks that do not fit each other or the data.
    """
    networks = _read(chosen)
    config, encoder = networks.generator.config, networks.encoder
    if encoder is not None and (encoder.config.num_ws, encoder.config.style_dim) != (config.num_ws, config.style_dim):
        raise ValueError(
            f"config.manipulator.encoder={chosen.encoder} gives {encoder.config.num_ws} codes of "
            f"{encoder.config.style_dim}, {chosen.generator} reads {config.num_ws} of {config.style_dim}"
        )
    if encoder is None and data.source not in CODES:
        raise ValueError(
            f"config.data.source={data.source!r} needs an encoder of images: set config.manipulator.encoder to an e4e "
            "checkpoint, or config.data.source to sampled or codes"
        )
    if data.source == "sampled" and not config.mapping_layers:
        raise ValueError(f"{chosen.generator} has no mapping to sample codes with: give config.data.source images")
    return networks


def style_parts(
    networks: Networks, config: ConfigDict, data: StyleData, chosen: StyleConfig, bundle: ModelBundle, frozen: Frozen
) -> Parts:
    """A mapper of the codes of `networks`."""
    generator, encoder = networks
    manipulator = StyleManipulator(
        model=bundle,
        generator=make_generator(generator.config, jnp.dtype(config.dtype)),
        mapper=chosen.network,
        encoder=None if encoder is None else encoder.config,
        delta_scale=chosen.delta_scale,
    )
    frozen = {**frozen, "generator": generator.params}
    hashes = {"generator": tree_hash(generator.params)}
    if encoder is not None:
        frozen |= {"encoder": encoder.params, "latent_avg": encoder.latent_avg}
        hashes["encoder"] = tree_hash({"params": encoder.params, "latent_avg": encoder.latent_avg})
    if chosen.mapper:
        frozen["mapper"] = load_mapper(chosen.mapper, chosen.network, manipulator.code_shapes)
    shape = (generator.config.num_ws, generator.config.style_dim)

    @functools.cache
    def codes() -> tuple[Sequence[Record], np.ndarray]:
        if data.source in CODES:
            found = _sampled(data, generator, config.seed) if data.source == "sampled" else read_codes(data.path, shape)
            return [{"position": i, "caption": ""} for i in range(len(found))], found
        assert encoder is not None
        return _encoded(data, encoder, hashes["encoder"])

    def stream(start_step: int) -> Iterator[HostBatch]:
        records, found = codes()

        def transform(record: Record, rng: np.random.Generator) -> HostBatch:
            code = np.broadcast_to(found[record["position"]].astype(np.float32), shape)
            return {"codes": code, **token_ids(bundle, fill(data.prompt, record))}

        return stream_of(config, records, transform)(start_step)

    def images() -> Source:
        return Generated(manipulator, frozen, codes()[1]) if data.source in CODES else data.open()

    def examples(count: int) -> HostBatch:
        if data.source not in CODES:
            return first_images(data.open(), count)
        found = np.asarray(codes()[1][:count], np.float32)
        return {"codes": np.broadcast_to(found, (len(found), *shape))}

    def export(params: Params, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_mapper(chosen.network, params, directory / "mapper.safetensors")
        facts = {**dataclasses.asdict(chosen), "prompt": data.prompt, "size": generator.config.size}
        (directory / "config.json").write_text(json.dumps(facts, indent=2) + "\n")

    left_out = {**defaults_of(ImageOptions), "prompt": data.prompt}
    facts = {key: value for key, value in dataclasses.asdict(data).items() if value != left_out.get(key)}
    return Parts(
        manipulator=manipulator,
        frozen=frozen,
        images=images,
        made_of={**facts, **hashes, "seed": config.seed} if data.source in CODES else facts,
        stream=stream,
        export=export,
        examples=examples,
        title=f"generator {chosen.generator}, {generator.config.size} px",
        generates=True,
        fingerprint=hashes,
    )


class Generated:
    """A generator's pictures of codes as records of the teacher's size, made as they are asked for."""

    def __init__(self, manipulator: StyleManipulator, frozen: Frozen, codes: np.ndarray) -> None:
        config, side = manipulator.generator.config, manipulator.side
        needed = {"generator": frozen["generator"]}

        @jax.jit
        def make(generator: Frozen, code: jax.Array) -> jax.Array:
            ws = jnp.broadcast_to(code[None], (1, config.num_ws, config.style_dim))
            image = manipulator.generator.synthesis(generator["generator"], ws, "const")
            return jax.image.resize(image, (1, side, side, 3), "bilinear", antialias=False)[0]

        self._codes = codes
        self._make: Callable[[np.ndarray], jax.Array] = lambda code: make(needed, jnp.asarray(code, jnp.float32))

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: int) -> Record:
        return {"image": to_uint8(np.asarray(self._make(self._codes[index]))), "caption": ""}


def read_codes(path: str | os.PathLike[str], shape: tuple[int, int]) -> np.ndarray:
    """Reads W+ codes f32[count,n,d] of `shape` [n,d]: a file of one such tensor.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, code in a pickle, or other tensors.
    """
    tensors = list(read_nested_state_dict(path).values())
    if len(tensors) != 1 or tensors[0].ndim != 3 or tensors[0].shape[1:] != shape or not len(tensors[0]):
        found = ", ".join(str(tensor.shape) for tensor in tensors[:3]) or "none"
        raise ValueError(f"{path}: codes of this generator are one tensor [count, {shape[0]}, {shape[1]}], not {found}")
    return tensors[0]


def _read(chosen: StyleConfig) -> Networks:
    name = chosen.generator
    encoder = load_e4e(chosen.encoder) if chosen.encoder else None
    if name.startswith(RANDOM):
        return Networks(random_generator(int(name.removeprefix(RANDOM))), encoder)
    world = world_directory(name)
    if not world.is_dir():
        return Networks(load_generator(name), encoder)
    style: Style = read_style(world)
    return Networks(style.generator, encoder or style.encoder)


def random_generator(size: int) -> LoadedGenerator:
    """A generator of the published widths, its weights drawn on the host as training would start from them."""
    config = StyleGAN2Config(size=size)
    shapes = jax.eval_shape(lambda key: init_generator(key, config), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [part.key for part in path]
        if names[-1] in ("kernel", "input") or names[0] == "noises":
            deviation = 1.0 / config.lr_mul if names[0].startswith("style_") else 1.0
            return (deviation * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)
        return np.full(leaf.shape, float("modulation" in names), np.float32)

    return LoadedGenerator(config, jax.tree_util.tree_map_with_path(draw, shapes), None)


def _sampled(data: StyleData, generator: LoadedGenerator, seed: int) -> np.ndarray:
    """Codes f32[count,1,d], the same for all layers."""
    functions = make_generator(generator.config)
    z = np.random.default_rng(seed).standard_normal((data.count, generator.config.style_dim), np.float32)
    w = jax.jit(functions.mapping)(generator.params, z)
    if data.truncation != 1.0:
        mean = generator.latent_avg
        mean = mean_code(functions, generator.params, jax.random.key(0)) if mean is None else mean
        w = truncate(w, mean[0] if mean.ndim == 2 else mean, data.truncation)
    return np.asarray(w)[:, None]


def _encoded(data: StyleData, encoder: Encoder, made_by: str) -> tuple[Sequence[Record], np.ndarray]:
    """Records without their images, and codes f32[count,n,d] of them."""
    config = encoder.config
    run = jax.jit(lambda params, average, image: encode(config, params, average, image))
    source = PortraitSource(data.split, data.count) if data.source == "portraits" else data.open()
    records: list[Record] = []

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(source), BATCH):
            rows = [source[i] for i in range(start, min(start + BATCH, len(source)))]
            records.extend({"position": start + i, "caption": row.get("caption", "")} for i, row in enumerate(rows))
            images = np.stack([to_float(row["image"]) for row in rows])
            padded = np.concatenate([images, np.repeat(images[-1:], BATCH - len(images), 0)])
            yield np.asarray(run(encoder.params, encoder.latent_avg, padded))[: len(images)]

    if not isinstance(source, PortraitSource):
        codes = np.concatenate(list(chunks()))
        return records, codes
    key = f"{renderer_hash()} {made_by}"
    shape = (len(source), config.num_ws, config.style_dim)
    codes = cached_array(f"codes-{data.split}", key, shape, "float32", chunks)
    return [{"position": i, "index": index} for i, index in enumerate(source.indices)], codes
