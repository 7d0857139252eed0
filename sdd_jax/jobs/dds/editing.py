"""Editing by scores: SDS, DDS, CDS and PDS on one image's latents, and a trained translator's single pass.

| method | F an iteration, g = 2 passes of guidance (1 for a UNet that reads its scale, or guidance=1) |
| --- | --- |
| `sds` | g |
| `dds`, `pds` | 2 g |
| `cds` | 2 g + 2 |
| `translate` | 1 in all; the task is its only one, `--option task=NAME`, or else each image's target |

An edit is `sampling.score_editing.descend` from the source's latents, batched over images, one compiled program for
each method and shape; it is cut into equal parts between which progress is logged and frames are decoded.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import ImageOps

from sdd_jax.data.decode import read_picture
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.score import EpsFn, eps_of
from sdd_jax.jobs.dds.options import CUTS, Contrastive, Delta, Descent, Posterior, Translation, shared
from sdd_jax.jobs.editing.methods import (
    EditRequest,
    EditResult,
    Static,
    decode,
    encode,
    guided_unet,
    passes,
    plain_unet,
    scale_of,
    texts,
    usual_guidance,
)
from sdd_jax.jobs.editing.options import takes
from sdd_jax.models.features import with_outputs
from sdd_jax.models.translator import Translator, load_translator
from sdd_jax.sampling import score_editing
from sdd_jax.sampling.score_editing import OPTIMIZERS, Gradient, Prompts
from sdd_jax.types import Frozen, ModelBundle, Params

SELF_ATTENTION = r"up_blocks_.*/attn1"
_log = logging.getLogger("sdd_jax")


@takes(Descent)
def sds(request: EditRequest, options: Descent) -> EditResult:
    """Score distillation of the target prompt alone; the source prompt is not read."""
    return _edit(request, "sds", options, 1)


@takes(Delta)
def dds(request: EditRequest, options: Delta) -> EditResult:
    """Delta denoising score."""
    return _edit(request, "dds", options, 2)


@takes(Contrastive)
def cds(request: EditRequest, options: Contrastive) -> EditResult:
    """Contrastive denoising score."""
    return _edit(request, "cds" if options.contrast else "dds", options, 2, 2 if options.contrast else 0)


@takes(Posterior)
def pds(request: EditRequest, options: Posterior) -> EditResult:
    """Posterior distillation."""
    return _edit(request, "pds", options, 2)


@takes(Translation)
def translate(request: EditRequest, options: Translation) -> EditResult:
    """One pass of a trained translator.

    Raises:
        ValueError: a target, or an option `task`, that is the name of no task.
    """
    if "translator" in request.frozen:
        params, described = request.frozen["translator"], request.model.configs["translator"]
        translator, tasks = Translator(model=request.model, output=described["output"]), tuple(described["tasks"])
    else:
        translator, params, _, tasks = _exported(request.model.source, request.model.content_hash)
    chosen = options.task or (tasks[0] if len(tasks) == 1 else "")
    names = (chosen,) * len(request.target) if chosen else request.target
    unknown = [name for name in names if name not in tasks]
    if unknown:
        flag = "--option task" if options.task else "--target"
        raise ValueError(
            f"{flag}={unknown[0]!r} is no task of this translator; use {', '.join(tasks)}, as the target of each image "
            "or as --option task of all"
        )
    task = jnp.asarray([tasks.index(name) for name in names])
    source = encode(request)
    z = _translate(Static(translator.model), translator.output, params, source, task)
    if options.strength != 1.0:
        z = source + options.strength * (z - source)
    return EditResult(decode(request, z), 1.0)


@functools.lru_cache(maxsize=1)
def _exported(source: str, content_hash: str) -> tuple[Translator, Params, Params, tuple[str, ...]]:
    """`load_translator`, once for all batches, whose program is compiled once then."""
    return load_translator(source)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _translate(static: Static, output: str, params: Any, z: jax.Array, task: jax.Array) -> jax.Array:
    return Translator(model=static.model, output=output).apply(params, z, task)


class Program(NamedTuple):
    """What an iteration's program depends on."""

    method: str
    options: Descent
    guided: bool
    length: int


def _edit(request: EditRequest, method: str, options: Descent, branches: int, extra: int = 0) -> EditResult:
    """Runs a method; branches: guided predictions an iteration; extra: F beyond them."""
    model, inputs = request.model, inputs_of(request, options)
    inputs["z"] = z_source = encode(request)
    if options.mask:
        inputs["mask"] = read_mask(options.mask, request)
    cuts = most_parts(options.iterations, options.frames or CUTS)
    length = options.iterations // cuts
    program = Program(method, shared(options), bool(inputs["w"] != 1.0), length)
    carry = first_carry(program.options, z_source)
    frames, began = [], time.monotonic()
    for cut in range(cuts):
        carry = iterate(Static(model), program, request.frozen, inputs, carry, jax.random.key(request.seed),
                         jnp.int32(cut * length))  # fmt: skip
        if options.frames:
            frames.append(decode(request, carry[0][: len(z_source)]))
        jax.block_until_ready(carry)
        _log.info("%s: %d of %d iterations, %.1f s", method, (cut + 1) * length, options.iterations,
                  time.monotonic() - began)  # fmt: skip
    image = frames[-1] if frames else decode(request, carry[0][: len(z_source)])
    evaluations = options.iterations * (branches * (passes(model) if program.guided else 1) + extra)
    return EditResult(image, float(evaluations), np.stack(frames) if frames else None)


def inputs_of(request: EditRequest, options: Descent) -> dict[str, Any]:
    """What `iterate` reads of a request beside `z`, its latents."""
    w = scale_of(request, options.guidance, usual_guidance(request.model))
    return {
        "times": jnp.asarray(options.times(request.model)),
        "source": texts(request, request.source)._asdict(),
        "target": texts(request, request.target)._asdict(),
        "w": jnp.float32(w),
        "step": jnp.float32(options.step),
    }


def most_parts(total: int, limit: int) -> int:
    """The largest number of equal parts of `total`, up to `limit`."""
    return max(parts for parts in range(1, min(limit, total) + 1) if total % parts == 0)


def read_mask(path: str, request: EditRequest) -> jax.Array:
    """A picture as the mask of a request's latents, f32[1,h,w,1] in [0, 1]: its brightness, averaged over a latent."""
    height, width = request.image.shape[1:3]
    pixels = ImageOps.fit(read_picture(Path(path), upright=True).convert("L"), (width, height))
    unit = request.model.downsampling
    grid = np.asarray(pixels, np.float32).reshape(height // unit, unit, width // unit, unit) / 255
    return jnp.asarray(grid.mean((1, 3))[None, :, :, None])


def first_carry(options: Descent, z_source: jax.Array) -> tuple[jax.Array, Any]:
    """What a descent carries at first: latents, of both branches where it is symmetric, and the optimiser's state."""
    z = jnp.concatenate([z_source, z_source]) if _is_symmetric(options) else jnp.array(z_source, copy=True)
    return z, OPTIMIZERS[options.optimizer](options.step).init(z)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def iterate(
    static: Static,
    program: Program,
    frozen: Frozen,
    inputs: dict[str, Any],
    carry: tuple[jax.Array, Any],
    rng: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, Any]:
    """`program.length` iterations from the `start`-th on; the carry is donated."""
    options, schedule = program.options, Schedule(static.model.alphas_cumprod)
    gradient = score_editing.shaped(
        make_gradient(static.model, program, frozen, inputs),
        mask=inputs.get("mask"),
        alpha_power=options.alpha_power,
        sigma_power=options.sigma_power,
        clip=options.clip,
    )
    optimizer = OPTIMIZERS[options.optimizer](inputs["step"])
    return score_editing.descend(gradient, *carry, optimizer, rng, inputs["times"], schedule, start, program.length)


def make_gradient(model: ModelBundle, program: Program, frozen: Frozen, inputs: dict[str, Any]) -> Gradient:
    """The gradient of a method: inputs `z` (the source's latents), `source` and `target` texts, and `w`."""
    options = program.options
    source, target = (_prompts(inputs[name]) for name in ("source", "target"))
    denoise, tape = with_outputs(model.denoise, SELF_ATTENTION)
    recorded = dataclasses.replace(model, denoise=denoise)
    eps_hat, w = _eps_hat(recorded, frozen, program.guided), inputs["w"] if program.guided else None
    if program.method == "sds":
        return score_editing.sds(eps_hat, target, w)
    if _is_symmetric(options):
        return score_editing.symmetric_dds(eps_hat, source, target, w)
    delta = score_editing.dds(eps_hat, inputs["z"], source, target, w)
    if isinstance(options, Posterior):
        return score_editing.pds(delta, inputs["z"], Schedule(model.alphas_cumprod), options.stride)
    if not isinstance(options, Contrastive) or program.method == "dds":
        return delta
    network = plain_unet(recorded, frozen)

    def features(z_t: jax.Array, t: jax.Array, prompts: Prompts) -> tuple[jax.Array, ...]:
        network(z_t, t, prompts.context, **prompts.conditions)
        return tuple(tape)

    return score_editing.cds(delta, tape, features, target, options.contrast, options.patches)


def _eps_hat(model: ModelBundle, frozen: Frozen, is_guided: bool) -> EpsFn:
    if is_guided:
        return eps_of(guided_unet(model, frozen), model.prediction)
    network = plain_unet(model, frozen)
    return eps_of(lambda z, t, context, w, **conditions: network(z, t, context, **conditions), model.prediction)


def _prompts(texts: dict[str, Any]) -> Prompts:
    added = {} if texts["added_cond"] is None else {"added_cond": texts["added_cond"]}
    return Prompts(texts["context"], added)


def _is_symmetric(options: Descent) -> bool:
    return isinstance(options, Delta) and options.symmetric
