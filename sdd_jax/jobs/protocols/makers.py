"""Who makes the pictures of a protocol.

| protocol | of a model | of a run (`--workdir`), or of its export and teacher (`--exported --model`) |
| --- | --- | --- |
| generation | DDIM, guided | guidance distillation and iCD (`--option tau=0.7`); CCD and baselines without condition |
| inversion, editing | a method of `sdd_jax.edit` | the same; iCD inverts without attention control |
| restoration | - | CCD and its baselines with any condition (`conditions`) |

The noise of a sample depends on the seed and its place in the benchmark, or on the place of its batch.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.evals.protocols.benchmarks import Item
from sdd_jax.jobs.ccd.conditional import (
    default_guidance,
    default_solver,
    default_start,
    default_steps,
    make_sampler,
)
from sdd_jax.jobs.ccd.runs import open_runs
from sdd_jax.jobs.editing.methods import EditRequest, Static, edit, guided_unet, passes, trained_scale
from sdd_jax.jobs.editing.models import open_model
from sdd_jax.jobs.editing.options import check_options, parse_options
from sdd_jax.jobs.icd.job import generate
from sdd_jax.jobs.protocols.conditions import read_condition, read_square, record_of, trained_condition
from sdd_jax.jobs.protocols.exported import NETWORKS, exported_hash, open_exported, open_exported_network
from sdd_jax.jobs.streams.captioned import prompt_ids
from sdd_jax.models.card import Record
from sdd_jax.objectives.inputs import text_of
from sdd_jax.sampling.generate import sample
from sdd_jax.types import Frozen, ModelBundle

GUIDANCE, STEPS = 7.5, 50
"""Of a model's generation where none are given."""


class Maker(NamedTuple):
    """make(items, numbers) -> (images [b,H,W,3] in [-1, 1], F per image); numbers are the samples' places.

    name: the model's, with its weights' hash. settings: what else the pictures depend on.
    """

    name: str
    settings: dict[str, Any]
    make: Callable[[Sequence[Item], Sequence[int]], tuple[np.ndarray, float]]


def make_maker(flags: argparse.Namespace) -> Maker:
    """The maker that a protocol's flags ask for; ValueError or FileNotFoundError where there is none."""
    record = record_of(flags)
    is_network = record.config.get("task", "") in NETWORKS
    if flags.protocol == "restoration" or (flags.protocol == "generation" and is_network):
        return _conditional(flags, record)
    if flags.solver:
        raise ValueError(f"--solver={flags.solver} is of runs of {', '.join(NETWORKS)}: all others take DDIM's steps")
    if flags.method:
        check_options(flags.method, parse_options(flags.option))
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
    if jumps and flags.steps is not None:
        raise ValueError(f"--steps={flags.steps}: this run of iCD makes its own {jumps} jumps; leave it out")
    steps = STEPS if flags.steps is None else flags.steps

    @jax.jit
    def noise_of(numbers: jax.Array) -> jax.Array:
        shape = (side, side, model.latent_channels)
        return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)

    @jax.jit
    def run(frozen: Frozen, ids: dict[str, jax.Array], noise: jax.Array) -> jax.Array:
        context, added_cond = text_of(model, frozen, ids)
        extra = {} if added_cond is None else {"added_cond": added_cond}
        network = functools.partial(guided_unet(model, frozen), context=context, w=w, **extra)
        times, schedule = sampling_times(steps), Schedule(model.alphas_cumprod)
        return model.decode(frozen["vae"], sample(lambda z, t: network(z, t), noise, times, schedule, model.prediction))

    def make(items: Sequence[Item], numbers: Sequence[int]) -> tuple[np.ndarray, float]:
        ids = jax.tree.map(jnp.asarray, prompt_ids(model, [item.target for item in items]))
        noise = noise_of(jnp.asarray(numbers))
        if jumps:
            return np.asarray(generate(Static(model), frozen, ids, noise, w, **options)), float(jumps)
        return np.asarray(run(frozen, ids, noise)), float(passes(model) * steps)

    settings = {"steps": jumps or steps, "guidance": scale, "size": size}
    return Maker(_name(flags, model), settings, make)


def _editor(flags: argparse.Namespace, model: ModelBundle, frozen: Frozen, size: int) -> Maker:
    """An editing method; with --blend one sample at a time, since each has its own words.

    iCD's inversion is there with the forward model and back with the reverse model: the prompt switch between equal
    prompts, where prompt-to-prompt would hand the source's attention to the target.
    """
    options, method = parse_options(flags.option), flags.method
    if (flags.protocol, method) == ("inversion", "icd"):
        method = "icd-switch"

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
        result = edit(method, request)
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
    """A model of CCD or of its baselines, asked with what it was conditioned on in training."""
    condition = trained_condition(flags, record)
    if flags.option:
        raise ValueError(f"--option {flags.option[0]}: runs of {', '.join(NETWORKS)} take none; leave it out")
    opened = open_exported_network(flags, record) if flags.exported else open_runs([flags.workdir], [])
    objective, params, frozen = opened
    start, solver = default_start(condition), flags.solver or default_solver(objective)
    steps = default_steps(objective) if flags.steps is None else flags.steps
    w = default_guidance(objective) if flags.guidance is None else flags.guidance
    model, sampler = objective.model, make_sampler(objective, solver, start)
    size = _side(flags, model)

    def make(items: Sequence[Item], numbers: Sequence[int]) -> tuple[np.ndarray, float]:
        made = [read_condition(item, number, condition, size) for item, number in zip(items, numbers, strict=True)]
        hint = np.stack([one for one in made if one is not None]) if condition.task != "none" else None
        ids = prompt_ids(model, [item.target for item in items])
        key = jax.random.fold_in(jax.random.key(flags.seed), numbers[0])
        images = sampler(params, frozen, hint, ids, key, steps, w, size)
        return np.asarray(images), float(steps * (1 if w == 1.0 else 2))

    settings = {"steps": steps, "guidance": w, "solver": solver, "start": start, "size": size, "batch": flags.batch}
    return Maker(_name(flags, model), settings, make)


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
