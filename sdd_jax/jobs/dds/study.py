"""What DDS claims without training, measured on portraits whose edits are known: editing curves, drift, figure 8.

Each function is a table's evaluation, (None, seed, options) -> metrics. A curve's metrics are named `metric@x`, x being
what makes an edit stronger: iterations of a score method, the share of steps that SDEdit makes again, the guidance
scale. Two methods are compared where they succeed equally often (`tables.dds.at_equal`), for any method preserves
everything if it edits nothing.

Figure 8 looks at the SDS gradient itself, at images that need no change:

    left    the root mean square of g_SDS(z, y), averaged over noise, by t: aligned pairs against permuted captions
    right   the cosine of g_SDS(z, y) and g_SDS(zhat, yhat), same noise: an image and its edit against shuffled pairs

Its closed form: for data N(mu, tau^2) and z = mu, g = -kappa eps, kappa = alpha^2 tau^2 / (alpha^2 tau^2 + sigma^2), so
the left plot is kappa, and the right one is 1 for two aligned prompts whatever their means.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.edit_pairs import EDITS, EditPairs, edit_pairs, parse_edit
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.score import EpsFn, eps_denoiser, sds_gradient
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.evals.edit_cost import measure_seconds
from sdd_jax.jobs.ccd.conditional import make_sampler
from sdd_jax.jobs.ccd.report import sample_all
from sdd_jax.jobs.dds.data import TranslationTask
from sdd_jax.jobs.dds.editing import most_parts
from sdd_jax.jobs.dds.report import BATCH, finite, joined, make_measure, part_of, requests_of, run_edits, task_pairs
from sdd_jax.jobs.editing.methods import EditRequest, decode, edit, encode, frozen_of, texts
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.load import load
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.runs import open_run
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.types import Frozen, ModelBundle

TIMES = (50, 150, 300, 450, 600, 750, 900)
GAUSSIAN_STD = 0.5
Metrics = dict[str, float]
Eps = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def editing_curve(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The metrics of an editing method along its strength, `metric@x`.

    options: `method`; `settings`, the method's own options; `strengths`, values of its option `vary` (SDEdit's
    `strength`, `guidance`), each a run; score methods without `vary` give a point every tenth of their iterations.
    `edits`, `count`: of `data.edit_pairs`; or `tasks` (words put in), `only` and `count`: cats to other animals.
    """
    model, frozen = _teacher(options)
    pairs = _pairs(options)
    measure = make_measure(read_instruments(world_directory(options.get("world", "portraits"))), model, frozen)
    method, settings = options["method"], dict(options.get("settings", {}))
    if "vary" in options:
        outputs = {
            value: run_edits(method, model, frozen, pairs, pairs.target, seed, {**settings, options["vary"]: value})
            for value in options["strengths"]
        }
    else:
        outputs = score_path(method, model, frozen, pairs, seed, settings)
    curves = {x: finite(measure(images, pairs)) for x, images in outputs.items()}
    return {f"{name}@{x:g}": value for x, metrics in curves.items() for name, value in metrics.items()}


def score_path(
    method: str, model: ModelBundle, frozen: Frozen, pairs: EditPairs, seed: int, settings: Mapping[str, Any]
) -> dict[float, np.ndarray]:
    """A score method's pictures by the number of iterations done, f32[n,H,W,3] each."""
    iterations = int(settings.get("iterations", 200))
    frames = most_parts(iterations, int(settings.get("frames", 10)))
    parts = []
    for request in requests_of(model, frozen, pairs, seed, {**settings, "frames": frames}):
        found = edit(method, request).frames
        assert found is not None
        parts.append(found)
    path = np.concatenate(parts, axis=1)
    return {(i + 1) * iterations / frames: images for i, images in enumerate(path)}


def editing_point(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """The metrics of one run of a method, and `seconds` for one image; options as for `editing_curve`."""
    model, frozen = _teacher(options)
    pairs = _pairs(options)
    measure = make_measure(read_instruments(world_directory(options.get("world", "portraits"))), model, frozen)
    method, settings = options["method"], dict(options.get("settings", {}))
    metrics = measure(run_edits(method, model, frozen, pairs, pairs.target, seed, settings), pairs)
    one = part_of(pairs, slice(0, 1))
    seconds = measure_seconds(lambda: run_edits(method, model, frozen, one, one.target, seed, settings), repeats=1)
    return finite({**metrics, "seconds": seconds})


def instructed(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """As `editing_point`, of a model that was trained to follow instructions (`configs/finetune.py:edit`).

    options: `steps` of sampling, and the pairs' as for `editing_curve`.
    """
    assert workdir is not None
    job, params, _ = open_run(workdir)
    objective = job.objective
    assert isinstance(objective, ConditionalNetwork)
    pairs, steps = _pairs(options), int(options.get("steps", 50))
    species = [portraits.VOCABULARY["species"][labels[0]] for labels in pairs.labels]
    words = [portraits.instruction(*parse_edit(one), kind) for one, kind in zip(pairs.edits, species, strict=True)]
    sampler = make_sampler(objective)

    def run(pairs: EditPairs, words: list[str]) -> np.ndarray:
        rows = {"image": pairs.image, "condition": pairs.image, "input_ids": objective.model.tokenize(words)}
        return sample_all(sampler, params, job.frozen, rows, steps, seed, BATCH)

    instruments = read_instruments(world_directory(options.get("world", "portraits")))
    metrics = make_measure(instruments, objective.model, job.frozen)(run(pairs, words), pairs)
    seconds = measure_seconds(lambda: run(part_of(pairs, slice(0, 1)), words[:1]), repeats=1)
    return finite({**metrics, "seconds": seconds})


def drift(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """How far a method moves pictures whose prompt is theirs already: `change@iterations`, root mean square.

    options: as for `editing_curve`. Against the source through the autoencoder; exactly 0 where latents do not move.
    """
    model, frozen = _teacher(options)
    pairs = _pairs(options)
    same = dataclasses.replace(pairs, target=pairs.source)
    path = score_path(options["method"], model, frozen, same, seed, options.get("settings", {}))
    still = np.concatenate([decode(one, encode(one)) for one in requests_of(model, frozen, same, seed, {})])
    change = {x: float(np.sqrt(np.mean((images - still) ** 2))) for x, images in path.items()}
    return {**{f"change@{x:g}": value for x, value in change.items()}, "change": list(change.values())[-1]}


def gradients(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """Figure 8 on the teacher: `aligned@t`, `permuted@t` (left), `cosine@t`, `shuffled@t` (right).

    options: `edits`, `count`, `world` as for `editing_curve`; `times`; `draws` of noise (200 in the paper); `guidance`.
    """
    model, frozen = _teacher(options)
    pairs = _pairs(options)
    schedule, w = Schedule(model.alphas_cumprod), options.get("guidance", 1.0)
    denoise = functools.partial(model.denoise, frozen["teacher"]["unet"])
    eps_hat = eps_denoiser(denoise, model.prediction, frozen["null_context"])
    both = [
        EditRequest(model=model, frozen=frozen, image=image, source=prompts, target=prompts)
        for image, prompts in ((pairs.image, pairs.source), (pairs.counterfactual, pairs.target))
    ]
    z, z_edited = (encode(request) for request in both)
    context, edited_context = (texts(request, request.source).context for request in both)
    measured = figure_8(
        eps_hat, z, z_edited, context, edited_context, schedule, options.get("times", TIMES),
        int(options.get("draws", 200)), seed, None if w == 1.0 else w,
    )  # fmt: skip
    return measured


def gaussian_gradients(workdir: Path | None, seed: int, options: Mapping[str, Any]) -> Metrics:
    """Figure 8 on Gaussian data, measured by the same code, and `kappa@t`, what `aligned@t` should be.

    An image is its prompt's mean; options: `times`, `draws`.
    """
    schedule, times = Schedule.scaled_linear(), options.get("times", TIMES)

    def denoise(z: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        return gaussian_eps(z, schedule.at(t), context[:, :, :, None], GAUSSIAN_STD)

    eps_hat = eps_denoiser(denoise, "eps", jnp.zeros((1, 8, 8)))
    rng = jax.random.key(1)
    z = jax.random.normal(rng, (8, 8, 8, 1))
    z_edited = z + 0.5 * jax.random.normal(jax.random.fold_in(rng, 1), z.shape)
    found = figure_8(
        eps_hat, z, z_edited, z[..., 0], z_edited[..., 0], schedule, times, int(options.get("draws", 200)), seed, None
    )
    return {**found, **{f"kappa@{t}": gaussian_kappa(schedule, t) for t in times}}


def gaussian_kappa(schedule: Schedule, t: int, std: float = GAUSSIAN_STD) -> float:
    """alpha^2 tau^2 / (alpha^2 tau^2 + sigma^2): the size of SDS's gradient at the mean of N(mu, tau^2)."""
    level = schedule.at(t)
    kept = float(level.alpha) ** 2 * std**2
    return kept / (kept + float(level.sigma) ** 2)


def figure_8(
    eps_hat: EpsFn,
    z: jax.Array,
    z_edited: jax.Array,
    context: jax.Array,
    edited_context: jax.Array,
    schedule: Schedule,
    times: Sequence[int],
    draws: int,
    seed: int,
    w: float | None,
) -> Metrics:
    """Both plots for n images z [n,h,w,c] of `context`, and what they are edited to; captions are permuted by one.

    A shuffled pair is an image and another one's edit; the same noise throughout.
    """

    @jax.jit
    def measure(t: jax.Array, rng: jax.Array) -> dict[str, jax.Array]:
        at = jnp.broadcast_to(t, z.shape[:1])
        level = schedule.at(at)

        def one(key: jax.Array) -> dict[str, jax.Array]:
            eps = jnp.broadcast_to(initial_noise(key, (1, *z.shape[1:])), z.shape)

            def gradient(image: jax.Array, prompt: jax.Array) -> jax.Array:
                return sds_gradient(eps_hat, image, eps, at, level, prompt, w)

            aligned, edited = gradient(z, context), gradient(z_edited, edited_context)
            permuted = gradient(z, jnp.roll(context, 1, axis=0))
            return {
                "aligned": jnp.mean(_size(aligned)),
                "permuted": jnp.mean(_size(permuted)),
                "cosine": jnp.mean(_cosine(aligned, edited)),
                "shuffled": jnp.mean(_cosine(aligned, jnp.roll(edited, 1, axis=0))),
            }

        found = jax.lax.map(one, jax.random.split(rng, draws))
        return jax.tree.map(jnp.mean, found)

    keys = jax.random.split(jax.random.key(seed), len(times))
    rows = {t: measure(jnp.int32(t), key) for t, key in zip(times, keys, strict=True)}
    return {f"{name}@{t}": float(value) for t, row in rows.items() for name, value in row.items()}


def _size(g: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(g), axis=(1, 2, 3)))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean(a * b, axis=(1, 2, 3)) / jnp.maximum(_size(a) * _size(b), 1e-12)


def _teacher(options: Mapping[str, Any]) -> tuple[ModelBundle, Frozen]:
    model, params = load(options.get("world", "portraits"))
    return model, frozen_of(model, params)


def _pairs(options: Mapping[str, Any]) -> EditPairs:
    count = int(options.get("count", 8))
    if "tasks" not in options:
        return edit_pairs(options.get("edits", EDITS), count)
    only = options.get("only", "")
    return joined([task_pairs(TranslationTask(target=target), only, count) for target in options["tasks"]])
