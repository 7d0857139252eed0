"""Who makes the pictures of a protocol.

| protocol | of a model | of a run (`--workdir`), or of its export and teacher (`--exported --model`) |
| --- | --- | --- |
| generation | DDIM, guided | guidance distillation and iCD (`--option tau=0.7`); CCD and baselines without condition |
| inversion, editing | a method of `sdd_jax.edit` | the same |
| restoration | - | CCD and its baselines with super-resolution's condition |

The noise of a sample depends on the seed and its place in the benchmark, or on the place of its batch.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdd_jax.config import to_plain
from sdd_jax.data.decode import read_picture
from sdd_jax.data.records import to_float
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.evals.protocols.benchmarks import Item
from sdd_jax.jobs.ccd.conditional import default_start, make_sampler
from sdd_jax.jobs.ccd.data import ConditionConfig
from sdd_jax.jobs.ccd.heldout import condition_of
from sdd_jax.jobs.ccd.runs import open_runs
from sdd_jax.jobs.editing.methods import METHODS, EditRequest, Static, edit, guided_unet, passes, trained_scale
from sdd_jax.jobs.editing.models import open_model
from sdd_jax.jobs.editing.options import parse_options
from sdd_jax.jobs.icd.job import generate
from sdd_jax.jobs.protocols.exported import (
    NETWORKS,
    exported_condition,
    exported_hash,
    open_exported,
    open_exported_network,
)
from sdd_jax.jobs.streams.captioned import prompt_ids
from sdd_jax.models.card import Record, read_record
from sdd_jax.objectives.inputs import text_of
from sdd_jax.runs import read_config
from sdd_jax.sampling.generate import sample
from sdd_jax.types import Frozen, ModelBundle

GUIDANCE = 7.5
"""Of generation where none is given."""


class Maker(NamedTuple):
    """make(items, numbers) -> (images [b,H,W,3] in [-1, 1], F per image); numbers are the samples' places.

    name: the model's, with its weights' hash. settings: what else the pictures depend on.
    """

    name: str
    settings: dict[str, Any]
    make: Callable[[Sequence[Item], Sequence[int]], tuple[np.ndarray, float]]


def make_maker(flags: argparse.Namespace) -> Maker:
    """The maker that a protocol's flags ask for; ValueError or FileNotFoundError where there is none."""
    record = _record(flags)
    if flags.protocol in ("generation", "restoration") and record.config.get("task", "") in NETWORKS:
        return _conditional(flags, record)
    if flags.protocol == "restoration":
        raise ValueError(
            f"--protocol=restoration takes runs of {', '.join(NETWORKS)} (--workdir), what was exported of such "
            "(--exported), or pictures made before (--results)"
        )
    if flags.method and flags.method not in METHODS:
        raise ValueError(f"--method={flags.method} is no editing method; use {', '.join(METHODS)}")
    model, frozen = open_exported(flags, record) if flags.exported else open_model(flags)
    return (_generator if flags.protocol == "generation" else _editor)(flags, model, frozen, _side(flags, model))


def _generator(flags: argparse.Namespace, model: ModelBundle, frozen: Frozen, size: int) -> Maker:
    """DDIM over the trailing grid, guided; of an iCD run its reverse model's jumps, guided dynamically."""
    side, key = size // model.downsampling, jax.random.key(flags.seed)
    options, scale = parse_options(flags.option), trained_scale(frozen, flags.guidance, GUIDANCE, "--guidance")
    w = jnp.float32(scale)
    jumps = len(frozen["boundaries"].reverse_jumps) if "boundaries" in frozen else 0
    if unknown := sorted(set(options) - ({"tau", "ramp_to", "start"} if jumps else set())):
        raise ValueError(f"--option {unknown[0]}: generation takes tau, ramp_to and start, of iCD runs alone")

    @jax.jit
    def noise_of(numbers: jax.Array) -> jax.Array:
        shape = (side, side, model.latent_channels)
        return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)

    @jax.jit
    def run(frozen: Frozen, ids: dict[str, jax.Array], noise: jax.Array) -> jax.Array:
        context, added_cond = text_of(model, frozen, ids)
        extra = {} if added_cond is None else {"added_cond": added_cond}
        network = functools.partial(guided_unet(model, frozen), context=context, w=w, **extra)
        times, schedule = sampling_times(flags.steps), Schedule(model.alphas_cumprod)
        return model.decode(frozen["vae"], sample(lambda z, t: network(z, t), noise, times, schedule, model.prediction))

    def make(items: Sequence[Item], numbers: Sequence[int]) -> tuple[np.ndarray, float]:
        ids = jax.tree.map(jnp.asarray, prompt_ids(model, [item.target for item in items]))
        noise = noise_of(jnp.asarray(numbers))
        if jumps:
            return np.asarray(generate(Static(model), frozen, ids, noise, w, **options)), float(jumps)
        return np.asarray(run(frozen, ids, noise)), float(passes(model) * flags.steps)

    settings = {"steps": jumps or flags.steps, "guidance": scale, "size": size}
    return Maker(_name(flags, model), settings, make)


def _editor(flags: argparse.Namespace, model: ModelBundle, frozen: Frozen, size: int) -> Maker:
    """An editing method; with --blend one sample at a time, since each has its own words."""
    options = parse_options(flags.option)

    def edited(items: Sequence[Item], numbers: Sequence[int], options: dict[str, Any]) -> tuple[np.ndarray, float]:
        request = EditRequest(
            model=model,
            frozen=frozen,
            image=np.stack([read_square(item, size) for item in items]),
            source=tuple(item.source for item in items),
            target=tuple(item.target for item in items),
            seed=flags.seed + numbers[0],
            options=options,
        )
        result = edit(flags.method, request)
        return result.image, result.evaluations

    def make(items: Sequence[Item], numbers: Sequence[int]) -> tuple[np.ndarray, float]:
        if not flags.blend:
            return edited(items, numbers, options)
        made = []
        for number, item in dict(zip(numbers, items, strict=True)).items():
            words = dict(zip(("blend_source", "blend_target"), item.blend or (), strict=False))
            made.append(edited([item], [number], {**options, **words}))
        return np.concatenate([images for images, _ in made]), float(np.mean([cost for _, cost in made]))

    return Maker(_name(flags, model), {"size": size, "batch": flags.batch}, make)


def _conditional(flags: argparse.Namespace, record: Record) -> Maker:
    """A model of CCD or of its baselines; a degraded image is stretched as the original that it is compared with."""
    wanted = "superres" if flags.protocol == "restoration" else "none"
    section = exported_condition(record) if flags.exported else condition_of(flags.workdir)
    found = section.get("task", "superres")
    if found != wanted:
        where = f"--exported={flags.exported}" if flags.exported else f"--workdir={flags.workdir}"
        raise ValueError(f"{where} has the condition {found!r}: {flags.protocol} takes {wanted!r} runs")
    opened = open_exported_network(flags, record) if flags.exported else open_runs([flags.workdir], [])
    objective, params, frozen = opened
    start = default_start(ConditionConfig(task=found))
    model, sampler = objective.model, make_sampler(objective, start=start)
    size = _side(flags, model)

    def make(items: Sequence[Item], numbers: Sequence[int]) -> tuple[np.ndarray, float]:
        low = np.stack([read_square(item, size) for item in items]) if wanted == "superres" else None
        ids = prompt_ids(model, [item.target for item in items])
        key = jax.random.fold_in(jax.random.key(flags.seed), numbers[0])
        return np.asarray(sampler(params, frozen, low, ids, key, flags.steps, size=size)), float(flags.steps)

    settings = {"steps": flags.steps, "size": size, "batch": flags.batch, "start": start}
    return Maker(_name(flags, model), settings, make)


def read_square(item: Item, size: int) -> np.ndarray:
    """A sample's image stretched to [size, size], f32 in [-1, 1], as iCD's evaluation reads its benchmarks."""
    picture = read_picture(_image(item))
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return to_float(np.asarray(picture))


def _record(flags: argparse.Namespace) -> Record:
    """The config of a run, and of what was exported of one its origins too; nothing of a model."""
    if flags.exported:
        return read_record(flags.exported)
    return Record({} if flags.workdir is None else to_plain(read_config(flags.workdir)), {})


def _side(flags: argparse.Namespace, model: ModelBundle) -> int:
    """Pixels of a side of the pictures, the model's own unless --size says another."""
    size: int = flags.size or model.sample_size * model.downsampling
    if size % model.downsampling:
        raise ValueError(f"--size={size}: sides are multiples of {model.downsampling}")
    return size


def _name(flags: argparse.Namespace, model: ModelBundle) -> str:
    """A model by its weights, a run by its newest checkpoint too."""
    if flags.exported:
        return f"{model.source} {model.content_hash} {exported_hash(flags.exported)}"
    if flags.workdir is None:
        return f"{model.source} {model.content_hash}"
    steps = [int(path.name) for path in (flags.workdir / "checkpoints").iterdir() if path.name.isdigit()]
    return f"{flags.workdir} step {max(steps, default=0)} {model.content_hash}"


def _image(item: Item) -> Path:
    if item.image is None:
        raise ValueError(f"sample {item.id} has no image")
    return item.image
