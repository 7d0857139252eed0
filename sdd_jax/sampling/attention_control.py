"""Attention control of pairs of images [sources, targets]: what ties an edit to its source inside the UNet.

Each control is data with one method, `at(step) -> AttentionEdit`, pure in the step, and a pytree, so that one compiled
program serves all prompts. Rows of every attention map are [sources b, targets b], followed by the same again where
guidance runs two passes (`guidance.guided`), by the targets alone where it leaves the sources out
(`baselines.unguided_source_pairs`), which prompt-to-prompt allows.

Prompt-to-prompt (Hertz et al. 2022). M and M* are the source's and the target's cross-attention maps [heads, q, n], J
[n, n] takes source tokens to target tokens, k [n] is 1 where the target's word exists in the source, c [n] multiplies
words:

    M* <- c (k (M J) + (1 - k) M*)       cross-attention, steps i < int(f_cross (n_steps + 1))                 (1)
    M* <- M                              self-attention of at most 32^2 tokens, steps i < int(f_self n_steps)    (2)

Replacement is k = 1 with J from words at the same place; refinement has J a partial permutation from an alignment and k
= 0 for new words (`prompt_alignment`). As in the released code, c acts in the steps of (1) alone; maps of the
unconditional pass are left alone. (1) with J = I, k = 0, c = 1 and no steps of (2) is no control at all.

LocalBlend. Let A be the cross maps at `size`^2 queries, of the words that are edited, averaged over heads and layers
and summed over the steps so far. With mask = [max-pooled A / max A > threshold], united over source and target,

    z_target <- z_source + mask (z_target - z_source)                                                          (3)

The maps leave the UNet through a tape that `record` hands out: the edit's function writes the traced map of each layer
on it, and whoever called the network reads it, in the same trace. Functional from outside; a model built with remat
would trace its layers apart, and needs remat "none", as every sampler's does.

MasaCtrl (Cao et al. 2023): the target's self-attention reads the source's keys and values, from a step on, in the
decoder. Plug-and-play (Tumanyan et al. 2023): the target takes over the source's queries and keys in the decoder's
self-attention, and one residual block's features, up to a step each; both in both passes.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp

from sdd_jax.models.attention import AttentionEdit


def control_steps(num_steps: int, cross: float, self_: float) -> tuple[int, int]:
    """How many steps (1) and (2) act, of `num_steps`: (int(cross (n + 1)), int(self n)).

    (4, .3, .6) -> 1, 2; (50, .4, .8) -> 20, 40. ValueError for a share outside of [0, 1].
    """
    if not (0 <= cross <= 1 and 0 <= self_ <= 1):
        raise ValueError(f"shares of controlled steps lie in [0, 1], got cross={cross} and self={self_}")
    margin = 1e-9  # 0.29 * 100 is 28.999999999999996
    return int(cross * (num_steps + 1) + margin), int(self_ * num_steps + margin)


def target_from_source(x: jax.Array, pairs: int) -> jax.Array:
    """x [2b k, ...] of rows [sources b, targets b] k times: each target's row replaced by its source's."""
    rows = x.reshape(-1, 2, pairs, *x.shape[1:])
    return jnp.broadcast_to(rows[:, :1], rows.shape).reshape(x.shape)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("mapper", "keep", "equalizer"),
    meta_fields=("cross_steps", "self_steps", "self_tokens"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptToPrompt:
    """Equations (1) and (2) for b pairs.

    mapper: J f32[b,n,n], row a source token, column a target token. keep: k f32[b,n]. equalizer: c f32[b,n].
    cross_steps, self_steps: how many steps, see `control_steps`. self_tokens: the most tokens that (2) touches.
    """

    mapper: jax.Array
    keep: jax.Array
    equalizer: jax.Array
    cross_steps: int
    self_steps: int
    self_tokens: int = 32**2

    def at(self, step: jax.Array) -> AttentionEdit:
        """The edit of step int32[], which may be traced."""
        b = self.mapper.shape[0]

        def probs(probs: jax.Array, *, layer: str, is_cross: bool) -> jax.Array:
            source, target, others = probs[:b], probs[b : 2 * b], probs[2 * b :]
            if is_cross:
                target = jnp.where(step < self.cross_steps, self.replace(source, target), target)
            elif probs.shape[2] <= self.self_tokens:
                target = jnp.where(step < self.self_steps, source, target)
            return jnp.concatenate([source, target, others])

        return AttentionEdit(probs=probs)

    def replace(self, source: jax.Array, target: jax.Array) -> jax.Array:
        """(1): maps f32[b,heads,q,n] of source and target -> what the target uses, the same shape."""
        carried = jnp.einsum("bhqm,bmn->bhqn", source, self.mapper, precision=jax.lax.Precision.HIGHEST)
        keep, equalizer = self.keep[:, None, None], self.equalizer[:, None, None]
        return equalizer * (keep * carried + (1 - keep) * target)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("words",), meta_fields=("size", "threshold", "start_step")
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalBlend:
    """Equation (3) for b pairs.

    words: f32[2b,n], 1 for the tokens whose region is edited, in the source's and in the target's prompt. size: side of
    the square maps that are read (16 for 64 x 64 latents). threshold: of the normalised map. start_step: the first
    step that is blended; the published one is int(.2 n).
    """

    words: jax.Array
    size: int = 16
    threshold: float = 0.3
    start_step: int = 0

    def record(self, edit: AttentionEdit) -> tuple[AttentionEdit, list[jax.Array]]:
        """`edit` that also writes the words' share of each cross map of `size`^2 queries on the tape, f32[2b,q]."""
        tape: list[jax.Array] = []
        rows = self.words.shape[0]

        def probs(probs: jax.Array, *, layer: str, is_cross: bool) -> jax.Array:
            if edit.probs is not None:
                probs = edit.probs(probs, layer=layer, is_cross=is_cross)
            if is_cross and probs.shape[2] == self.size**2:
                tape.append(jnp.einsum("bhqn,bn->bq", probs[:rows], self.words) / probs.shape[1])
            return probs

        return dataclasses.replace(edit, probs=probs), tape

    def word_map(self, tape: list[jax.Array]) -> jax.Array:
        """The mean over the tape's layers, f32[2b,size,size]; ValueError where no layer has maps of that size."""
        if not tape:
            raise ValueError(
                f"no cross-attention map of {self.size} x {self.size} at these latents: set LocalBlend.size"
            )
        return jnp.mean(jnp.stack(tape), axis=0).reshape(-1, self.size, self.size)

    def mask(self, maps: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """The region of (3) for maps f32[2b,size,size]: bool[b,h,w], at latents of `shape` (h, w)."""
        pooled = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")
        scaled = jax.image.resize(pooled, (maps.shape[0], *shape), "nearest")
        source, target = jnp.split(scaled > self.threshold * scaled.max((1, 2), keepdims=True), 2)
        return source | target

    def __call__(self, z: jax.Array, maps: jax.Array, step: jax.Array) -> jax.Array:
        """(3) on z f32[2b,h,w,c], from `start_step` on."""
        source, target = jnp.split(z, 2)
        mask = self.mask(maps, (z.shape[1], z.shape[2]))[..., None] | (step < self.start_step)
        return jnp.concatenate([source, jnp.where(mask, target, source)])


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("pairs", "start_step", "layers"))
@dataclasses.dataclass(frozen=True, kw_only=True)
class MasaCtrl:
    """Mutual self-attention for b pairs.

    start_step: the first controlled step (published: 4 of 50). layers: matches the start of the paths of the controlled
    layers; the default is SD1.5's from the tenth self-attention on.
    """

    pairs: int
    start_step: int = 4
    layers: str = r"up_blocks_[23]/"

    def at(self, step: jax.Array) -> AttentionEdit:
        """The edit of step int32[], which may be traced."""

        def qkv(
            q: jax.Array, k: jax.Array, v: jax.Array, *, layer: str, is_cross: bool
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            if is_cross or not re.match(self.layers, layer):
                return q, k, v
            active = step >= self.start_step
            k, v = (jnp.where(active, target_from_source(x, self.pairs), x) for x in (k, v))
            return q, k, v

        return AttentionEdit(qkv=qkv)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(),
    meta_fields=("pairs", "attention_steps", "feature_steps", "attention_layers", "feature_layers"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlugAndPlay:
    """Feature and self-attention injection for b pairs.

    attention_steps, feature_steps: how many steps each acts (published: int(.5 n), int(.8 n)). attention_layers,
    feature_layers: match the start of the paths of the controlled layers; the defaults are SD's.
    """

    pairs: int
    attention_steps: int
    feature_steps: int
    attention_layers: str = r"up_blocks_(1/attentions_[12]|[23]/)"
    feature_layers: str = r"up_blocks_1/resnets_1"

    def at(self, step: jax.Array) -> AttentionEdit:
        """The edit of step int32[], which may be traced."""

        def qkv(
            q: jax.Array, k: jax.Array, v: jax.Array, *, layer: str, is_cross: bool
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            if is_cross or not re.match(self.attention_layers, layer):
                return q, k, v
            active = step < self.attention_steps
            q, k = (jnp.where(active, target_from_source(x, self.pairs), x) for x in (q, k))
            return q, k, v

        def features(features: jax.Array, *, layer: str) -> jax.Array:
            if not re.match(self.feature_layers, layer):
                return features
            injected = target_from_source(features, self.pairs)
            return jnp.where(step < self.feature_steps, injected, features)

        return AttentionEdit(qkv=qkv, features=features)
