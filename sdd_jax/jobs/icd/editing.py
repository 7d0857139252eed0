"""iCD's editing: encode in m jumps with the forward model, decode in m with the reverse model, guided dynamically.

| method | model | F for m jumps | what ties the target to its source |
| --- | --- | --- | --- |
| `icd` | one text encoder (SD1.5, SD2.1, portraits) | m + 2m | prompt-to-prompt on [source w = 1, target w(t)] |
| `icd`, `icd-switch` | two (SDXL), any | m + m | the source prompt at w = 1 above tau T, then the target's at w |

Both need a run of stage 2 (`--workdir`). Published: tau .8, w = 20 (19 in the paper), cross .3, self .6 on SD1.5 in 4
jumps; tau .7, w = 8 on SDXL.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdd_jax.jobs.editing.methods import (
    EditRequest,
    EditResult,
    Static,
    Texts,
    decode,
    encode,
    guided_unet,
    stacked,
    texts,
)
from sdd_jax.jobs.editing.options import PromptControlled, Scaled, program_of, takes
from sdd_jax.jobs.icd.job import route_of
from sdd_jax.sampling.attention_control import LocalBlend
from sdd_jax.sampling.editing import (
    BoundaryRoute,
    Control,
    constant_guidance,
    edit_image,
    prompt_switched,
    prompted,
    prompted_pairs,
)
from sdd_jax.sampling.generate import Denoise, initial_noise
from sdd_jax.types import Frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertibleEdit(PromptControlled):
    """Prompt-to-prompt over the jumps, with the published shares and threshold."""

    tau: float = 0.8
    cross: float = 0.3
    self_: float = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwitchedEdit(Scaled):
    """guidance: of the target prompt. tau: the source prompt rules above tau T."""

    tau: float = 0.7


@takes(InvertibleEdit)
def icd(request: EditRequest, options: InvertibleEdit) -> EditResult:
    """iCD's edit: prompt-to-prompt, or the prompt switch for models with two text encoders, as published."""
    if request.model.tokenize_2 is not None:
        return icd_switch(request)
    jumps, model = _jumps(request), request.model
    w = jnp.float32(options.scale(request, 20.0))
    z = _controlled(
        Static(model), program_of(options), request.frozen, encode(request), texts(request, request.source),
        texts(request, request.target), w, jax.random.key(request.seed), *options.controls(request, jumps),
    )  # fmt: skip
    return EditResult(decode(request, z), 3 * jumps)


@takes(SwitchedEdit)
def icd_switch(request: EditRequest, options: SwitchedEdit) -> EditResult:
    """iCD's edit without attention control: the source prompt first, then the target's."""
    jumps, model = _jumps(request), request.model
    w = jnp.float32(options.scale(request, 8.0))
    z = _switched(
        Static(model), options.tau, request.frozen, encode(request), texts(request, request.source),
        texts(request, request.target), w, jax.random.key(request.seed),
    )  # fmt: skip
    return EditResult(decode(request, z), 2 * jumps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _controlled(
    static: Static,
    options: InvertibleEdit,
    frozen: Frozen,
    x0: jax.Array,
    source: Texts,
    target: Texts,
    w: jax.Array,
    rng: jax.Array,
    control: Control,
    blend: LocalBlend | None,
) -> jax.Array:
    model, both = static.model, stacked(source, target)
    network = prompted_pairs(
        guided_unet(model, frozen, frozen["reverse"]), both.context, options.over_time(w), added_cond=both.added_cond
    )
    route, encoder, noise = _way_up(static, frozen, source, x0, rng)
    return edit_image(route, encoder, network, x0, noise, control, blend)[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _switched(
    static: Static,
    tau: float,
    frozen: Frozen,
    x0: jax.Array,
    source: Texts,
    target: Texts,
    w: jax.Array,
    rng: jax.Array,
) -> jax.Array:
    model = static.model
    unet = guided_unet(model, frozen, frozen["reverse"])
    timesteps = len(model.alphas_cumprod)
    network = prompt_switched(unet, source.context, target.context, w, tau, timesteps, added_cond=target.added_cond)
    route, encoder, noise = _way_up(static, frozen, source, x0, rng)
    return route.decode(network, route.encode(encoder, x0, noise))


def _way_up(
    static: Static, frozen: Frozen, source: Texts, x0: jax.Array, rng: jax.Array
) -> tuple[BoundaryRoute, Denoise, jax.Array]:
    model = static.model
    forward = guided_unet(model, frozen, frozen["forward"])
    encoder = prompted(forward, source.context, constant_guidance(1.0), added_cond=source.added_cond)
    return route_of(model, frozen["boundaries"]), encoder, initial_noise(rng, x0.shape)


def _jumps(request: EditRequest) -> int:
    if "boundaries" not in request.frozen:
        raise ValueError("icd edits with a run of stage 2: name it as --workdir in place of --model")
    return len(request.frozen["boundaries"].reverse)
