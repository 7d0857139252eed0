import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.attention import AttentionEdit
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.sampling.attention_control import (
    LocalBlend,
    MasaCtrl,
    PlugAndPlay,
    PromptToPrompt,
    control_steps,
    target_from_source,
)

N = 5
UNET = dict(
    sample_size=8,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)


def control(cross_steps=0, self_steps=0, keep=1.0, equalizer=1.0, mapper=None, pairs=1, **rest):
    return PromptToPrompt(
        mapper=jnp.broadcast_to(jnp.eye(N) if mapper is None else mapper, (pairs, N, N)),
        keep=jnp.broadcast_to(keep, (pairs, N)),
        equalizer=jnp.broadcast_to(equalizer, (pairs, N)),
        cross_steps=cross_steps,
        self_steps=self_steps,
        **rest,
    )


def maps(rows, queries=4, tokens=N, seed=0):
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(tokens), (rows, 2, queries)), jnp.float32)


@pytest.mark.parametrize(
    "n, cross, self_, expected",
    [
        (4, 0.3, 0.6, (1, 2)),
        (4, 0.2, 0.2, (1, 0)),
        (50, 0.4, 0.8, (20, 40)),
        (100, 0.0, 0.29, (0, 29)),
        (4, 1, 1, (5, 4)),
    ],
)
def test_published_step_limits(n, cross, self_, expected):
    assert control_steps(n, cross, self_) == expected


def test_shares_outside_of_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="cross=1.5"):
        control_steps(4, 1.5, 0.0)


def test_equation_1_by_hand():
    mapper = jnp.zeros((N, N)).at[0, 0].set(1).at[1, 1].set(0.5).at[1, 2].set(0.5).at[2, 3].set(1)
    keep, factor = jnp.array([1.0, 1, 1, 1, 0]), jnp.array([1.0, 1, 1, 2, 3])
    p = maps(2)
    out = control(1, 0, keep, factor, mapper).replace(p[:1], p[1:])
    m, target = np.asarray(p[0]), np.asarray(p[1])
    want = np.stack([m[..., 0], m[..., 1] / 2, m[..., 1] / 2, 2 * m[..., 2], 3 * target[..., 4]], -1)
    np.testing.assert_allclose(out[0], want, rtol=1e-6)


def test_only_the_targets_rows_change_and_only_in_their_steps():
    p = maps(8)  # two pairs, and the unconditional pass
    one = control(cross_steps=1, self_steps=2, pairs=2)
    for step in range(4):
        edit = one.at(jnp.asarray(step)).probs
        cross, own = (edit(p, layer="x", is_cross=is_cross) for is_cross in (True, False))
        for out, steps in ((cross, 1), (own, 2)):
            np.testing.assert_array_equal(out[:2], p[:2])
            np.testing.assert_array_equal(out[4:], p[4:])
            np.testing.assert_allclose(out[2:4], p[:2] if step < steps else p[2:4], atol=1e-7)


def test_large_self_attention_is_left_alone():
    p = maps(2, queries=9)
    edit = control(self_steps=4, self_tokens=8).at(jnp.asarray(0)).probs
    np.testing.assert_array_equal(edit(p, layer="x", is_cross=False), p)


@pytest.fixture(scope="module")
def unet():
    """The controlled and the plain UNet, and the words' maps, as one compiled function of a pair in two passes."""
    network = make_unet(UNET)
    shapes = jax.eval_shape(lambda key: init_unet(network, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), shapes)
    z = jnp.asarray(rng.normal(size=(1, 8, 8, 4)), jnp.float32).repeat(4, 0)

    @jax.jit
    def run(contexts, step, cross_steps, self_steps, equalizer, words):
        blend = LocalBlend(words=words, size=8)
        edit, tape = blend.record(control(cross_steps, self_steps, equalizer=equalizer).at(step))
        t = jnp.full((4,), 500)
        plain = network.apply({"params": params}, z, t, contexts)
        controlled = network.apply({"params": params}, z, t, contexts, attention_edit=edit)
        return plain, controlled, blend.word_map(tape)

    return run


CONTEXTS = jnp.asarray(np.random.default_rng(1).normal(size=(4, N, 8)), jnp.float32)
ONES = jnp.ones((N,))


def test_neutral_control_is_no_control(unet):
    plain, controlled, total = unet(CONTEXTS, 2, 2, 2, ONES, jnp.ones((2, N)))
    np.testing.assert_allclose(controlled, plain, atol=2e-5)
    assert np.abs(plain[0] - plain[1]).max() > 1e-2
    np.testing.assert_allclose(total, jnp.ones((2, 8, 8)), rtol=1e-5, err_msg="all words' maps add up to 1")


def test_control_reaches_the_target_alone(unet):
    plain, controlled, _ = unet(CONTEXTS, 0, 1, 1, ONES, jnp.ones((2, N)))
    for row in (0, 2, 3):
        np.testing.assert_allclose(controlled[row], plain[row], atol=2e-5)
    assert np.abs(controlled[1] - plain[1]).max() > 1e-2
    same = CONTEXTS.at[1].set(CONTEXTS[0])
    _, controlled, _ = unet(same, 0, 1, 1, ONES, jnp.ones((2, N)))
    np.testing.assert_allclose(controlled[1], controlled[0], atol=2e-5, err_msg="equal prompts give equal images")


def test_words_of_no_weight_are_not_seen(unet):
    silent = unet(CONTEXTS, 0, 1, 0, 0 * ONES, jnp.ones((2, N)))
    other = unet(CONTEXTS.at[1].add(1.0), 0, 1, 0, 0 * ONES, jnp.ones((2, N)))
    np.testing.assert_allclose(silent[1][1], other[1][1], atol=2e-5)
    assert np.abs(silent[0][1] - other[0][1]).max() > 1e-2
    np.testing.assert_allclose(silent[2][1], 0.0, atol=1e-6, err_msg="the tape holds the edited maps")


def test_the_tape_is_the_words_share_over_heads_and_layers():
    words = jnp.zeros((2, N)).at[0, 1].set(1.0).at[1, 2:4].set(1.0)
    edit, tape = LocalBlend(words=words, size=2).record(AttentionEdit())
    first, second = maps(4, seed=1), maps(4, seed=2)
    for p in (first, second):
        np.testing.assert_array_equal(edit.probs(p, layer="x", is_cross=True), p)
    edit.probs(first, layer="x", is_cross=False)
    edit.probs(maps(4, queries=9), layer="x", is_cross=True)
    both = (np.asarray(first) + np.asarray(second)).mean(1) / 2
    want = np.stack([both[0, :, 1], both[1, :, 2] + both[1, :, 3]]).reshape(2, 2, 2)
    np.testing.assert_allclose(LocalBlend(words=words, size=2).word_map(tape), want, rtol=1e-6)
    with pytest.raises(ValueError, match="no cross-attention map of 2 x 2"):
        LocalBlend(words=words, size=2).word_map([])


def test_local_blend_by_hand():
    blend = LocalBlend(words=jnp.ones((2, N)), size=4, threshold=0.3, start_step=1)
    source, target = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    source[0, 0], target[3, 3], target[0, 3] = 5.0, 1.0, 0.2  # .2 is below .3 of the largest
    region = np.zeros((4, 4), bool)
    region[:2, :2] = region[2:, 2:] = True  # one pixel around each, from the pooling
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    out = blend(z, jnp.stack([source, target]), jnp.asarray(1))
    np.testing.assert_array_equal(out[0], z[0])
    mask = region.repeat(2, 0).repeat(2, 1)[..., None]
    np.testing.assert_array_equal(out[1], np.where(mask, z[1], z[0]))
    np.testing.assert_array_equal(blend(z, jnp.stack([source, target]), jnp.asarray(0)), z)


def test_targets_take_their_own_sources_in_both_passes():
    x = jnp.arange(8.0)[:, None]
    np.testing.assert_array_equal(target_from_source(x, 2).ravel(), [0, 1, 0, 1, 4, 5, 4, 5])
    np.testing.assert_array_equal(target_from_source(x[:2], 1).ravel(), [0, 0])


def qkv():
    return tuple(jax.random.normal(key, (4, 3, 2, 2)) for key in jax.random.split(jax.random.key(0), 3))


def test_masactrl_reads_the_sources_keys_and_values_from_its_step_in_the_decoder():
    q, k, v = qkv()
    own, inside = dict(layer="up_blocks_2/attentions_0/transformer_blocks_0/attn1", is_cross=False), MasaCtrl(pairs=1)
    for step in (3, 4):
        out = inside.at(jnp.asarray(step)).qkv(q, k, v, **own)
        taken = [target_from_source(x, 1) if step == 4 else x for x in (k, v)]
        for got, want in zip(out, (q, *taken), strict=True):
            np.testing.assert_array_equal(got, want)
    edit = inside.at(jnp.asarray(9)).qkv
    for layer in (
        {**own, "is_cross": True},
        {**own, "layer": "up_blocks_1/attentions_0"},
        {**own, "layer": "mid_block"},
    ):
        assert all(got is want for got, want in zip(edit(q, k, v, **layer), (q, k, v), strict=True))
    assert (
        dataclasses.replace(inside, layers="mid").at(jnp.asarray(9)).qkv(q, k, v, layer="mid_block", is_cross=False)[1]
        is not k
    )


def test_plug_and_play_injects_queries_keys_and_features_up_to_its_steps():
    q, k, v = qkv()
    plug = PlugAndPlay(pairs=1, attention_steps=2, feature_steps=3)
    for step in range(4):
        edit = plug.at(jnp.asarray(step))
        got = edit.qkv(q, k, v, layer="up_blocks_1/attentions_1/transformer_blocks_0/attn1", is_cross=False)
        for out, x in zip(got, (q, k), strict=False):
            np.testing.assert_array_equal(out, target_from_source(x, 1) if step < 2 else x)
        np.testing.assert_array_equal(got[2], v)
        np.testing.assert_array_equal(
            edit.features(q, layer="up_blocks_1/resnets_1"), target_from_source(q, 1) if step < 3 else q
        )
        assert edit.features(q, layer="up_blocks_1/resnets_0") is q
        assert edit.qkv(q, k, v, layer="up_blocks_1/attentions_0/x/attn1", is_cross=False)[0] is q
