"""The mapper of a StyleGAN2 generator's codes as a manipulator: its networks, codes, data and export.

| `config.manipulator.generator` | what |
| --- | --- |
| portraits, or a world's directory | its style/: generator and encoder (configs/pretrain_style.py) |
| a file | `models.stylegan_convert`: rosinality's .pt, an exported ADA state dict, safetensors |
| `random:SIZE` | random weights, for compiling and counting |

Codes of W+ are made once (`jobs.sdd.style_codes`). A batch is `codes` f32[b,n,d] and the filled prompt's `input_ids`.

Export: `mapper.safetensors` under the published names, and `config.json`, which says what it is a mapper of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.data.pipeline import HostBatch, Source
from sdd_jax.data.prompts import fill
from sdd_jax.data.records import Record
from sdd_jax.data.sources.images import SOURCES
from sdd_jax.jobs.sdd.data import Parts, first_images
from sdd_jax.jobs.sdd.style_codes import CODES, Generated, StyleData, encoded_codes, read_codes, sampled_codes
from sdd_jax.jobs.streams.captioned import token_ids
from sdd_jax.jobs.streams.portraits import stream_of
from sdd_jax.jobs.world.directory import world_directory
from sdd_jax.jobs.world.style import Style, read_style
from sdd_jax.models.e4e import Encoder, load_e4e
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.style_mappers import MapperConfig, load_mapper, save_mapper
from sdd_jax.models.stylegan2 import StyleGAN2Config, init_generator, make_generator
from sdd_jax.models.stylegan_convert import LoadedGenerator, load_generator
from sdd_jax.objectives.manipulators import StyleManipulator
from sdd_jax.types import Frozen, ModelBundle, Params

RANDOM = "random:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleConfig:
    """Config of the manipulator.

    generator: see the module's text. encoder: an e4e checkpoint; "" is the world's, or none. mapping, levels: the
    mapper (`models.style_mappers`). mapper: a trained one to start from. delta_scale, zero_start: see
    `StyleManipulator`.
    """

    kind: str = "stylegan"
    generator: str = ""
    encoder: str = ""
    mapping: str = "levels"
    levels: tuple[str, ...] = ("coarse", "medium", "fine")
    mapper: str = ""
    delta_scale: float = 0.1
    zero_start: bool = False

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
    """What a mapper stands between. encoder: None where no images are edited. codes: of a file, f32[count,n,d]."""

    generator: LoadedGenerator
    encoder: Encoder | None
    codes: np.ndarray | None = None


def read_networks(data: StyleData, chosen: StyleConfig) -> Networks:
    """Reads generator and encoder, and a file of codes.

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
    if data.source == "codes":
        return networks._replace(codes=read_codes(data.path, (config.num_ws, config.style_dim)))
    return networks


def style_parts(
    networks: Networks, config: ConfigDict, data: StyleData, chosen: StyleConfig, bundle: ModelBundle, frozen: Frozen
) -> Parts:
    """A mapper of the codes of `networks`."""
    generator, encoder, kept = networks
    manipulator = StyleManipulator(
        model=bundle,
        generator=make_generator(generator.config, jnp.dtype(config.dtype)),
        mapper=chosen.network,
        encoder=None if encoder is None else encoder.config,
        delta_scale=chosen.delta_scale,
        zero_start=chosen.zero_start,
    )
    frozen = {**frozen, "generator": generator.params}
    hashes = {"generator": tree_hash(generator.params)}
    if encoder is not None:
        frozen |= {"encoder": encoder.params, "latent_avg": encoder.latent_avg}
        hashes["encoder"] = tree_hash({"params": encoder.params, "latent_avg": encoder.latent_avg})
    if chosen.mapper:
        frozen["mapper"] = load_mapper(chosen.mapper, chosen.network, manipulator.code_shapes)
    shape = (generator.config.num_ws, generator.config.style_dim)
    on_disk = data.source in SOURCES  # read at the encoder's size; timesteps are searched at the teacher's
    searched = dataclasses.replace(data, size=manipulator.side) if on_disk else data

    @functools.cache
    def codes() -> tuple[Sequence[Record], np.ndarray]:
        if data.source in CODES:
            found = sampled_codes(data, generator, config.seed) if kept is None else kept
            return [{"position": i, "caption": ""} for i in range(len(found))], found
        assert encoder is not None
        return encoded_codes(data, encoder, hashes["encoder"])

    def stream(start_step: int) -> Iterator[HostBatch]:
        records, found = codes()

        def transform(record: Record, rng: np.random.Generator) -> HostBatch:
            code = np.broadcast_to(found[record["position"]].astype(np.float32), shape)
            return {"codes": code, **token_ids(bundle, fill(data.prompt, record))}

        return stream_of(config, records, transform)(start_step)

    def images() -> Source:
        return Generated(manipulator, frozen, codes()[1]) if data.source in CODES else searched.open()

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

    return Parts(
        manipulator=manipulator,
        frozen=frozen,
        images=images,
        made_of={**data.facts, **hashes, "seed": config.seed} if data.source in CODES else searched.facts,
        stream=stream,
        export=export,
        examples=examples,
        title=f"generator {chosen.generator}, {generator.config.size} px",
        generates=True,
        fingerprint=hashes,
    )


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
