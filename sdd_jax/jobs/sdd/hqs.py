"""The search for timesteps over a stream of images, its `hqs.json`, and the timesteps that a job trains on.

hqs.json: {prompt, model, options, t, H, N, hqs, stderr, selected, rule}; `H` in nats and `N` are means over images,
`hqs` and `stderr` of the scores (`objectives.selection`), lists as long as `t`; `selected` is the part of `t` that
`rule` takes.

A search holds one batch of images at a time, spread over all devices; several processes search together, each reading
all images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from sdd_jax.config import validate
from sdd_jax.data.cache import cache_dir
from sdd_jax.data.pipeline import HostBatch, Source
from sdd_jax.data.prompts import fill
from sdd_jax.data.records import to_float
from sdd_jax.objectives.hqs import HQSOptions, Reading, elements, measure
from sdd_jax.objectives.selection import BLIND, Curve, parse_rule, select, timestep_weights
from sdd_jax.training.distributed import text_of_first
from sdd_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, place, replicated
from sdd_jax.types import Batch, Frozen, ModelBundle

DEFAULT_RULE = "threshold:0"
BATCH = 16
REVISION = 1
"""Of what a search computes: raise it when that changes, so that older scores in a cache are not taken for it."""
_log = logging.getLogger("sdd_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """The content of an hqs.json."""

    prompt: str
    model: str
    options: Mapping[str, Any]
    t: tuple[int, ...]
    H: tuple[float, ...]
    N: tuple[float, ...]
    hqs: tuple[float, ...]
    stderr: tuple[float, ...]
    selected: tuple[int, ...]
    rule: str

    def __post_init__(self) -> None:
        lengths = {len(self.t), len(self.H), len(self.N), len(self.hqs), len(self.stderr)}
        if len(lengths) != 1 or not self.selected or not set(self.selected) <= set(self.t):
            raise ValueError("t, H, N, hqs and stderr must be equally long, and `selected` a part of t, not empty")

    def with_rule(self, rule: str, seed: int = 0) -> Search:
        """The same scores, selected by another rule; ValueError as of `select`."""
        selected = select(rule, np.asarray(self.t), np.asarray(self.hqs), seed)
        return dataclasses.replace(self, selected=tuple(selected.tolist()), rule=rule)

    def weights(self, name: str) -> np.ndarray:
        """Probabilities f32 of the selected timesteps; see `selection.timestep_weights`."""
        scores = dict(zip(self.t, self.hqs, strict=True))
        return timestep_weights(name, np.asarray([scores[t] for t in self.selected]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepConfig:
    """Config of what a job's timesteps are: `config.timesteps`.

    path: an hqs.json to read. given: timesteps, instead of any search. Without both the search runs when the job is
    built, as `config.search` says, and its scores are kept in the cache. rule: what selects by the scores; "" is the
    file's own choice, of a search at start "threshold:0". weights: "uniform" or "hqs".
    """

    path: str = ""
    given: tuple[int, ...] = ()
    rule: str = ""
    weights: str = "uniform"

    def __post_init__(self) -> None:
        if self.path and self.given:
            raise ValueError("path and given are both set: keep one of them")
        if self.given and (self.rule or self.weights != "uniform"):
            raise ValueError("given timesteps have no scores: leave rule empty and weights='uniform'")
        if any(not isinstance(t, int) or t < 0 for t in self.given):
            raise ValueError(f"given={self.given}: timesteps are integers from 0 on")
        if self.rule:
            parse_rule(self.rule)
        timestep_weights(self.weights, np.zeros(1))

    @property
    def searches(self) -> bool:
        """True where a job with these runs a search of its own."""
        blind = self.rule and parse_rule(self.rule)[0] in BLIND and self.weights == "uniform"
        return not (self.path or self.given or blind)


def read_search(path: str | Path) -> Search:
    """Reads an hqs.json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; make it with python -m sdd_jax.search")
    return _parsed(Path(path).read_text(), path)


def write_search(path: Path, search: Search) -> None:
    """Writes an hqs.json atomically, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(dataclasses.asdict(search), indent=2) + "\n")
    partial.rename(path)


def run_search(
    model: ModelBundle,
    frozen: Frozen,
    source: Source,
    prompt: str,
    options: HQSOptions,
    rule: str = DEFAULT_RULE,
    batch: int = BATCH,
) -> tuple[Search, np.ndarray]:
    """Scores every timestep of the options' grid over `options.images` records of a source.

    frozen: as of `editing.methods.frozen_of`. source: of records with `image` uint8[H,W,3] that `prompts.fill` knows.
    prompt: a template. batch: images at a time, rounded up to a multiple of the devices.

    Returns the search and, of its first image, the mean |d| over channels at each timestep, f32[m,s,s].

    Raises:
        ValueError: too few images, timesteps that the model does not have, non-finite gradients, or an empty selection.
    """
    times = options.times(len(model.alphas_cumprod))
    if len(source) < options.images:
        raise ValueError(f"images={options.images}: the data has {len(source)}; ask for at most those")
    read, batch = make_reader(model, frozen, options, batch)
    curve: Curve | None = None
    maps = np.zeros(())
    began = last = time.monotonic()
    for done, rows in search_batches(model, source, prompt, options, batch):
        reading = read(rows)
        if curve is None:
            shape = rows["image"].shape if options.pixels else _latent_shape(model, rows["image"].shape)
            curve, maps, began = Curve(times, elements(shape, options)), np.asarray(reading.maps), time.monotonic()
        curve.add(*(np.asarray(x)[:, : done - curve.count] for x in (reading.deficit, reading.magnitude)))
        if time.monotonic() - last > 10 or done == options.images:
            last = time.monotonic()
            _log.info(
                "HQS %r: %d of %d images, %s s left",
                prompt, done, options.images, _left(last - began, done - batch, options.images - done),
            )  # fmt: skip
    assert curve is not None
    _log.info("the two halves of the images agree to a rank correlation of %.3f", rank_correlation(*curve.halves))
    search = Search(
        prompt=prompt,
        model=model.source,
        options=dataclasses.asdict(options),
        t=tuple(times.tolist()),
        H=tuple(curve.H.tolist()),
        N=tuple(curve.N.tolist()),
        hqs=tuple(curve.hqs.tolist()),
        stderr=tuple(curve.stderr.tolist()),
        selected=tuple(times.tolist()),
        rule="all",
    )
    return search.with_rule(rule, options.seed), maps


def make_reader(
    model: ModelBundle, frozen: Frozen, options: HQSOptions, batch: int
) -> tuple[Callable[[HostBatch], Reading], int]:
    """Returns read(rows of `search_batches`) -> their reading, spread over devices, and the size that batches need.

    batch: images at a time, rounded up to a multiple of the devices.
    """
    times = options.times(len(model.alphas_cumprod))
    mesh = make_mesh(MeshConfig())
    everywhere, split = replicated(mesh), batch_sharding(mesh)
    frozen = place(frozen, jax.tree.map(lambda _: everywhere, frozen))

    @functools.partial(jax.jit, out_shardings=everywhere)
    def program(frozen: Frozen, rows: Batch) -> Reading:
        return measure(model, options, frozen, rows, jax.random.key(options.seed), jnp.asarray(times))

    def read(rows: HostBatch) -> Reading:
        return program(frozen, place(rows, dict.fromkeys(rows, split)))

    return read, -(-min(batch, options.images) // mesh.size) * mesh.size


def search_batches(
    model: ModelBundle, source: Source, prompt: str, options: HQSOptions, batch: int
) -> Iterator[tuple[int, HostBatch]]:
    """(images so far, batch) of equal batches, the last padded with its last row."""
    first = options.seed * options.images
    for start in range(0, options.images, batch):
        stop = min(start + batch, options.images)
        chosen = [(first + min(i, stop - 1)) % len(source) for i in range(start, start + batch)]
        records = [source[i] for i in chosen]
        prompts = [fill(prompt, record) for record in records]
        rows = {
            "image": np.stack([to_float(record["image"]) for record in records]),
            "input_ids": model.tokenize(prompts),
            "index": np.asarray(chosen, np.int32),
        }
        if model.tokenize_2 is not None:
            rows["input_ids_2"] = model.tokenize_2(prompts)
        yield stop, rows


def job_search(
    model: ModelBundle, frozen: Frozen, source: Source, prompt: str, options: HQSOptions, data: Mapping[str, Any]
) -> Search:
    """`run_search` at a job's start: its scores are read from the cache where it has run before.

    Several processes search together, and read from the cache of the first, which alone writes to its own.

    data: what the source was made of, which names the cache file together with everything else that the scores need.

    Raises:
        ValueError: as `run_search`.
    """
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(frozen["teacher"])})
    made_of = json.dumps([REVISION, model.content_hash, dtypes, prompt, dataclasses.asdict(options), dict(data)])
    path = cache_dir() / f"hqs-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.json"
    first = jax.process_index() == 0
    kept = text_of_first(path.read_text() if first and path.is_file() else "")
    if kept:
        search = _parsed(kept, path)
    else:
        _log.info("searching timesteps for %r", prompt)
        search = run_search(model, frozen, source, prompt, options, "all")[0]
        if first:
            write_search(path, search)
    _log.info("timesteps' scores: %s", path)
    return search


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two [m], ties sharing their mean rank; nan where one is constant."""
    ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (np.asarray(a), np.asarray(b))]
    norm = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm else float("nan")


def _parsed(text: str, source: str | Path) -> Search:
    try:
        return validate(json.loads(text), Search, str(source))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} is not an hqs.json ({error}): make it with python -m sdd_jax.search") from None


def _left(seconds: float, done: int, to_do: int) -> str:
    """Time for `to_do` images when `done` took `seconds`, the first batch left out, which compiles."""
    return f"{seconds / done * to_do:.0f}" if done > 0 else "?" if to_do else "0"


def _latent_shape(model: ModelBundle, shape: tuple[int, ...]) -> tuple[int, ...]:
    height, width = (side // model.downsampling for side in shape[1:3])
    return (shape[0], height, width, model.latent_channels)
