"""The editing methods that iCD is compared with, those that are a line or two on what exists.

| method | way up | way down | source |
| --- | --- | --- | --- |
| `sdedit` | noise at an intermediate t | the target prompt | Meng et al. 2022 |
| `ddib` | DDIM inversion, source prompt | DDIM, target prompt | Su et al. 2023 |
| prompt-to-prompt on DDIM | DDIM inversion, w = 1 | pairs, `PromptToPrompt` | Hertz et al. 2022 |
| negative-prompt inversion | DDIM inversion, w = 1 | the same, unconditional is the source | Miyake et al. 2023 |
| MasaCtrl | DDIM inversion, w = 1 | pairs, `MasaCtrl` | Cao et al. 2023 |
| plug-and-play | DDIM inversion, w = 1 | pairs, `PlugAndPlay` | Tumanyan et al. 2023 |
| `renoise` | averaged fixed-point inversion | any | Garibi et al. 2024 |

Those on pairs are `editing.edit_image` with a `DDIMRoute` and a control of `attention_control`; the teacher is guided
in two passes, `prompted_pairs(guided(unet, null_context), ...)`, under prompt-to-prompt for the targets alone,
`unguided_source_pairs`. Null-text, edit-friendly inversion and InfEdit have files of their own (`null_text`,
`virtual_inversion`).

All take batches. Cost in F (one forward of B samples; guidance in two passes doubles what is guided): sdedit strength x
n; ddib and pairs n up and n or 2n down, of which `unguided_source_pairs` guides the half; renoise rounds x n.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.guidance import guide
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.transport import move
from sdd_jax.models.attention import AttentionEdit
from sdd_jax.sampling.editing import Guidance, GuidedUNet, PairDenoise, Route
from sdd_jax.sampling.generate import Denoise, at_all, sample, steps_down


def sdedit(
    denoise: Denoise,
    x0: jax.Array,
    noise: jax.Array,
    times: np.ndarray,
    schedule: Schedule,
    kind: str,
    strength: float = 0.6,
) -> jax.Array:
    """Noises x0 [b,h,w,c] to the start of the last `strength` of `times` int32[n] and denoises it: f32[b,h,w,c].

    denoise: the network under the target prompt, guided. noise: standard normal as x0.

    Raises:
        ValueError: a strength outside of (0, 1], or one that leaves no step.
    """
    count = round(strength * len(times))
    if not 0 < strength <= 1 or count < 1:
        raise ValueError(
            f"strength={strength} leaves no step of {len(times)}: give a share of them, above 0 and up to 1"
        )
    kept = times[-count:]
    return sample(denoise, add_noise(x0, noise, schedule.at(int(kept[0]))), kept, schedule, kind)


def ddib(route: Route, source: Denoise, target: Denoise, x0: jax.Array, noise: jax.Array) -> jax.Array:
    """Up under the source prompt, down under the target's: x0 [b,h,w,c] -> f32[b,h,w,c]; arguments as `Route`'s."""
    return route.decode(target, route.encode(source, x0, noise))


def unguided_source_pairs(
    denoise: GuidedUNet,
    contexts: jax.Array,
    null_context: jax.Array,
    guidance: Guidance,
    null_added_cond: Any = None,
    *,
    added_cond: Any = None,
) -> PairDenoise:
    """A two-pass network on pairs whose sources are at w = 1: rows [sources, targets, targets unconditional], 3F.

    denoise(z, t, context, **conditions) -> prediction. contexts: [2b,n,d], sources first; null_context [1,n,d] or
    [b,n,d]; with the sources' contexts it is negative-prompt inversion, whose source's two passes agree. guidance: of
    the targets. added_cond: SDXL's, of 2b; null_added_cond: what stands for it in the last rows, None the targets' own.

    For controls that leave the unconditional rows alone, as prompt-to-prompt does: MasaCtrl's and plug-and-play's read
    the source's there.
    """

    def pairs(z: jax.Array, t: jax.Array, step: jax.Array, attention_edit: AttentionEdit | None) -> jax.Array:
        b = z.shape[0] // 2

        def with_null(a: jax.Array, null: jax.Array) -> jax.Array:
            return jnp.concatenate([a, jnp.broadcast_to(null, (b, *a.shape[1:])).astype(a.dtype)])

        conditions: dict[str, Any] = {}
        if added_cond is not None:
            null_added = jax.tree.map(lambda a: a[b:], added_cond) if null_added_cond is None else null_added_cond
            conditions["added_cond"] = jax.tree.map(with_null, added_cond, null_added)
        pred = denoise(
            with_null(z, z[b:]), with_null(t, t[b:]), with_null(contexts, null_context), attention_edit=attention_edit,
            **conditions,
        )  # fmt: skip
        source, cond, uncond = jnp.split(pred, 3)
        return jnp.concatenate([source, guide(cond, uncond, guidance(t[b:]))])

    return pairs


def renoise(
    denoise: Denoise,
    x0: jax.Array,
    times: jax.Array | np.ndarray,
    schedule: Schedule,
    kind: str,
    rounds: int = 9,
    average_from: int = 7,
) -> jax.Array:
    """Inverts x0 [b,h,w,c] by fixed-point iteration, averaging its last predictions: f32[b,h,w,c] at times[0].

    Each step s -> t evaluates eps_hat `rounds` times, each at the latest z_t, and takes the mean of the rounds from
    `average_from` (0 first) on; average_from = rounds - 1 is `invert.invert`. The paper's noise regularisation and
    correction of editability are not part of it.

    Raises:
        ValueError: unless 0 <= average_from < rounds.
    """
    if not 0 <= average_from < rounds:
        raise ValueError(f"renoise averages rounds {average_from}..{rounds - 1}: give 0 <= average_from < rounds")
    to_eps = predictor(kind).eps

    def step(z_s: jax.Array, now: tuple[jax.Array, Level, Level]) -> tuple[jax.Array, None]:
        t, at_t, at_s = now

        def refine(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            z_t, total = carry
            eps_hat = to_eps(denoise(z_t, at_all(t, z_t)), z_t, at_t)
            return move(eps_hat, z_s, at_s, at_t, "eps"), total + jnp.where(index >= average_from, eps_hat, 0.0)

        _, total = jax.lax.fori_loop(0, rounds, refine, (z_s, jnp.zeros_like(z_s)))
        return move(total / (rounds - average_from), z_s, at_s, at_t, "eps"), None

    return jax.lax.scan(step, x0.astype(jnp.float32), steps_down(times, schedule), reverse=True)[0]
