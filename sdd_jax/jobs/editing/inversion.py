"""Editing methods that first invert the image: DDIB, ReNoise, prompt-to-prompt, NPI, NTI.

The way up is unguided, under the source prompt, 1F a step. The way down is guided in g = 2 passes (1 for a UNet that
reads its guidance), for the target alone or for pairs [sources, targets], whose sources are unguided, in one pass under
prompt-to-prompt:

| method | F for n steps | what ties the target to its source |
| --- | --- | --- |
| `ddib` | n + g n | the noise |
| `renoise` | rounds n + g n | the noise, by fixed-point iteration |
| `p2p` | n + (1 + g) n | attention maps |
| `npi` | n + 3 n | attention maps; the source prompt in place of the empty one |
| `nti` | n + n (2 + 2 Adam rounds) + 4 n | attention maps; optimised empty prompts |

Null-text counts each of its Adam rounds, a forward and a backward pass, as 2F. `rounds` > 1 iterates every step of
the inversion and multiplies its n. MasaCtrl and plug-and-play, which invert alike, are in `injection`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.jobs.editing.methods import (
    EditRequest,
    EditResult,
    Static,
    Texts,
    controlled_pairs,
    decode,
    encode,
    guided_unet,
    passes,
    plain_unet,
    reads_guidance,
    stacked,
    texts,
    unguided,
)
from sdd_jax.jobs.editing.options import Inversion, PromptControlled, Stepped, program_of, takes
from sdd_jax.sampling import baselines
from sdd_jax.sampling.attention_control import LocalBlend, PromptToPrompt
from sdd_jax.sampling.editing import (
    Control,
    DDIMRoute,
    PairDenoise,
    constant_guidance,
    decode_pairs,
    edit_image,
    prompted,
    prompted_pairs,
)
from sdd_jax.sampling.invert import invert_path
from sdd_jax.sampling.null_text import NullTexts, null_text_pairs, optimise_null_text
from sdd_jax.types import Frozen, ModelBundle


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReNoise(Stepped):
    """rounds: evaluations of each inversion step; the predictions from round `average_from` (0 first) are averaged."""

    rounds: int = 9
    average_from: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.average_from < self.rounds:
            raise ValueError(f"average_from={self.average_from} is no round of {self.rounds}: give 0 .. rounds - 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptToPromptInversion(PromptControlled, Inversion):
    """Prompt-to-prompt's controls on DDIM inversion."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NullText(PromptToPromptInversion):
    """inner_steps: the most Adam rounds of a step. Guidance is the same at every step, as the empty prompts need it."""

    inner_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.tau, self.ramp_to, self.start) != (1.0, None, 0.0):
            raise ValueError("null-text optimises for one scale at every step: leave tau, ramp_to and start out")
        if self.inner_steps < 0:
            raise ValueError(f"inner_steps={self.inner_steps} must not be negative")


@takes(Inversion)
def ddib(request: EditRequest, options: Inversion) -> EditResult:
    """DDIM inversion under the source prompt, DDIM under the target's."""
    return _follow(request, options, options.rounds)


@takes(ReNoise)
def renoise(request: EditRequest, options: ReNoise) -> EditResult:
    """Fixed-point inversion under the source prompt, DDIM under the target's."""
    return _follow(request, options, options.rounds)


def _follow(request: EditRequest, options: Inversion | ReNoise, rounds: int) -> EditResult:
    w = jnp.float32(options.scale(request))
    z = _invert_and_follow(
        Static(request.model), program_of(options), request.frozen, encode(request),
        texts(request, request.source), texts(request, request.target), w,
    )  # fmt: skip
    return EditResult(decode(request, z), options.steps * (rounds + passes(request.model)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _invert_and_follow(
    static: Static,
    options: Inversion | ReNoise,
    frozen: Frozen,
    x0: jax.Array,
    source: Texts,
    target: Texts,
    w: jax.Array,
) -> jax.Array:
    model, up = static.model, unguided(static.model, frozen, source)
    down = prompted(guided_unet(model, frozen), target.context, options.over_time(w), added_cond=target.added_cond)
    schedule, times = Schedule(model.alphas_cumprod), sampling_times(options.steps)
    if isinstance(options, Inversion):
        route = DDIMRoute(times, schedule, model.prediction, options.rounds)
        return baselines.ddib(route, up, down, x0, jnp.zeros_like(x0))
    z = baselines.renoise(up, x0, times, schedule, model.prediction, options.rounds, options.average_from)
    return DDIMRoute(times, schedule, model.prediction).decode(down, z)


@takes(PromptToPromptInversion)
def p2p(request: EditRequest, options: PromptToPromptInversion) -> EditResult:
    """Prompt-to-prompt on DDIM inversion."""
    return follow_pairs(request, options, *options.controls(request, options.steps))


@takes(PromptToPromptInversion)
def npi(request: EditRequest, options: PromptToPromptInversion) -> EditResult:
    """Negative-prompt inversion: prompt-to-prompt with the source prompt as the unconditional one."""
    _needs_two_passes(request, "npi")
    return follow_pairs(request, options, *options.controls(request, options.steps), negative=True)


def follow_pairs(
    request: EditRequest,
    options: Inversion,
    control: Control,
    blend: LocalBlend | None = None,
    negative: bool = False,
) -> EditResult:
    """DDIM inversion under the source prompt, then pairs down under a control; negative: the source prompt unguided."""
    w = jnp.float32(options.scale(request))
    z = _invert_and_decode_pairs(
        Static(request.model), program_of(options), negative, request.frozen, encode(request),
        texts(request, request.source), texts(request, request.target), w, control, blend,
    )  # fmt: skip
    guided_passes = passes(request.model)
    pair = 1 + guided_passes if isinstance(control, PromptToPrompt) else 2 * guided_passes
    return EditResult(decode(request, z), options.steps * (options.rounds + pair))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _invert_and_decode_pairs(
    static: Static,
    options: Inversion,
    negative: bool,
    frozen: Frozen,
    x0: jax.Array,
    source: Texts,
    target: Texts,
    w: jax.Array,
    control: Control,
    blend: LocalBlend | None,
) -> jax.Array:
    model, both, guidance = static.model, stacked(source, target), options.over_time(w)
    if negative:
        network = baselines.unguided_source_pairs(
            plain_unet(model, frozen), both.context, source.context, guidance, source.added_cond,
            added_cond=both.added_cond,
        )  # fmt: skip
    elif isinstance(control, PromptToPrompt):
        network = controlled_pairs(model, frozen, both, guidance)
    else:  # it reads what the source's unconditional pass holds
        network = prompted_pairs(guided_unet(model, frozen), both.context, guidance, added_cond=both.added_cond)
    return edit_image(
        _route(model, options), unguided(model, frozen, source), network, x0, jnp.zeros_like(x0), control, blend
    )[1]


@takes(NullText)
def nti(request: EditRequest, options: NullText) -> EditResult:
    """Null-text inversion with prompt-to-prompt; `request.kept` keeps its empty prompts, which no control changes."""
    model = request.model
    _needs_two_passes(request, "nti")
    controls, w = options.controls(request, options.steps), options.scale(request)
    inverted = NullText(steps=options.steps, rounds=options.rounds, inner_steps=options.inner_steps)
    kept = {} if request.kept is None else request.kept
    if (inverted, w) not in kept:
        kept[inverted, w] = _null_texts(
            Static(model), inverted, request.frozen, encode(request), texts(request, request.source), jnp.float32(w)
        )
    noise, nulls = kept[inverted, w]
    both = stacked(texts(request, request.source), texts(request, request.target))
    z = _decode_null_text(
        Static(model), inverted, request.frozen, noise, nulls.contexts, both, jnp.float32(w), *controls
    )
    evaluations = options.steps * (options.rounds + 2 + 4) + 2 * int(jnp.sum(nulls.rounds))
    return EditResult(decode(request, z), evaluations)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _null_texts(
    static: Static, options: NullText, frozen: Frozen, x0: jax.Array, source: Texts, w: jax.Array
) -> tuple[jax.Array, NullTexts]:
    """What null-text keeps of a source, whatever the edit: its noise f32[b,h,w,c] and the empty prompts."""
    model, route = static.model, _route(static.model, options)
    times, schedule, kind = route.times, route.schedule, route.kind
    path = invert_path(unguided(model, frozen, source), x0, times, schedule, kind, options.rounds)
    with_source = functools.partial(plain_unet(model, frozen), added_cond=source.added_cond)
    nulls = optimise_null_text(
        with_source, path, source.context, frozen["null_context"], w, times, schedule, kind, options.inner_steps
    )
    return path[-1], nulls


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode_null_text(
    static: Static,
    options: NullText,
    frozen: Frozen,
    z: jax.Array,
    nulls: jax.Array,
    both: Texts,
    w: jax.Array,
    control: Control,
    blend: LocalBlend | None,
) -> jax.Array:
    model = static.model
    network: PairDenoise = null_text_pairs(
        plain_unet(model, frozen), nulls, both.context, constant_guidance(w), added_cond=both.added_cond
    )
    decoded = decode_pairs(_route(model, options), network, jnp.concatenate([z, z]), control, blend)
    return jnp.split(decoded, 2)[1]


def _route(model: ModelBundle, options: Inversion) -> DDIMRoute:
    return DDIMRoute(sampling_times(options.steps), Schedule(model.alphas_cumprod), model.prediction, options.rounds)


def _needs_two_passes(request: EditRequest, method: str) -> None:
    if reads_guidance(request.model):
        raise ValueError(
            f"--method={method} changes the unconditional pass, which {request.model.source} does not have "
            "(time_cond_proj_dim): use the model it was distilled from"
        )
