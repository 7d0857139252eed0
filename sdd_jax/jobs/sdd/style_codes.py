"""The codes of W+ that a StyleGAN mapper edits: images encoded once, drawn by the generator's mapping, or a file.

| `config.data.source` | codes f32[count,n,d] |
| --- | --- |
| images (`portraits`, `folder`, ...) | the encoder's, made once; portraits' are kept in the cache |
| `sampled` | mapping(z) with truncation, the same for all layers |
| `codes` | a file, such as the e4e codes of CelebA-HQ that StyleCLIP and SDD train on |
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data.cache import cached_array, renderer_hash
from sdd_jax.data.prompts import check_template
from sdd_jax.data.records import PortraitSource, Record, to_float
from sdd_jax.data.sources.images import SOURCES
from sdd_jax.images import to_uint8
from sdd_jax.jobs.sdd.data import EditData
from sdd_jax.models.e4e import Encoder, encode
from sdd_jax.models.state_dicts import read_nested_state_dict
from sdd_jax.models.stylegan2 import make_generator, mean_code, truncate
from sdd_jax.models.stylegan_convert import LoadedGenerator
from sdd_jax.objectives.manipulators import StyleManipulator
from sdd_jax.types import Frozen

CODES = ("sampled", "codes")
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
    tensors = list(read_nested_state_dict(path, page="docs/sdd.md").values())
    if len(tensors) != 1 or tensors[0].ndim != 3 or tensors[0].shape[1:] != shape or not len(tensors[0]):
        found = ", ".join(str(tensor.shape) for tensor in tensors[:3]) or "none"
        raise ValueError(f"{path}: codes of this generator are one tensor [count, {shape[0]}, {shape[1]}], not {found}")
    return tensors[0]


def sampled_codes(data: StyleData, generator: LoadedGenerator, seed: int) -> np.ndarray:
    """Codes f32[count,1,d] drawn as mapping(z), the same for all layers, by a seed."""
    functions = make_generator(generator.config)
    z = np.random.default_rng(seed).standard_normal((data.count, generator.config.style_dim), np.float32)
    w = jax.jit(functions.mapping)(generator.params, z)
    if data.truncation != 1.0:
        mean = generator.latent_avg
        mean = mean_code(functions, generator.params, jax.random.key(0)) if mean is None else mean
        w = truncate(w, mean[0] if mean.ndim == 2 else mean, data.truncation)
    return np.asarray(w)[:, None]


def encoded_codes(data: StyleData, encoder: Encoder, made_by: str) -> tuple[Sequence[Record], np.ndarray]:
    """Records without their images, and codes f32[count,n,d] of them; portraits' are kept in the cache.

    made_by: the hash of the encoder's weights, which the cached file is named by.
    """
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
