import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.guidance import guidance_embedding, guide, guided, step_guidance
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.diffusion.timegrid import BOUNDARIES, sampling_times
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.sampling.attention_control import LocalBlend, PromptToPrompt
from sdd_jax.sampling.editing import (
    BoundaryRoute,
    DDIMRoute,
    NoControl,
    constant_guidance,
    decode_pairs,
    edit_image,
    embedded_guidance,
    prompt_switched,
    prompted,
    prompted_pairs,
)
from sdd_jax.sampling.generate import sample
from sdd_jax.sampling.invert import jump

SD = Schedule.scaled_linear()
SHAPE = (2, 4, 4, 1)
X0 = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), SHAPE)
EPS = jax.random.normal(jax.random.key(1), SHAPE)
ICD = BoundaryRoute(BOUNDARIES["4_tau0.8"], SD, "eps")
DDIM = DDIMRoute(sampling_times(50), SD, "eps")
NULL = jnp.zeros((1, 1, 1))


def unet(z, t, context, **_):
    """The exact eps of data N(context, .5^2)."""
    return gaussian_eps(z, SD.at(t), context[:, :1, :1, None], 0.5)


def context(*values):
    return jnp.asarray(values, jnp.float32)[:, None, None]


@pytest.mark.parametrize("route", [ICD, DDIM], ids=["icd", "ddim"])
def test_a_constant_network_reconstructs_exactly(route):
    def constant(z, t):
        return EPS

    z = route.encode(constant, X0, EPS)
    np.testing.assert_allclose(z, add_noise(X0, EPS, SD.at(999)), atol=1e-5)
    np.testing.assert_allclose(route.decode(constant, z), X0, rtol=1e-4, atol=2e-4)


def test_routes_decode_as_the_samplers_do():
    network = prompted(guided(unet, NULL), context(0.7, 0.7), constant_guidance(1.0))
    np.testing.assert_allclose(DDIM.decode(network, EPS), sample(network, EPS, DDIM.times, SD, "eps"), rtol=1e-6)
    jumps = ICD.boundaries.reverse_jumps
    np.testing.assert_allclose(ICD.decode(network, EPS), jump(network, EPS, jumps, SD, "eps"), rtol=1e-6)


def test_guidance_in_one_pass_and_in_two_have_one_signature():
    w = jnp.array([1.0, 8.0])

    def reads_w(z, t, context, *, timestep_cond):
        return z + timestep_cond[:, :1, None, None]

    one = embedded_guidance(reads_w)(X0, jnp.array([999, 999]), context(0, 0), w)
    np.testing.assert_allclose(one, X0 + guidance_embedding(w)[:, :1, None, None])
    all_eight = embedded_guidance(reads_w)(X0, jnp.array([999, 999]), context(0, 0), 8.0)
    np.testing.assert_allclose(all_eight[1], one[1], rtol=1e-6)
    t, c = jnp.array([500, 500]), context(0.7, 0.2)
    np.testing.assert_allclose(
        guided(unet, NULL)(X0, t, c, w), guide(unet(X0, t, c), unet(X0, t, 0 * c), w), rtol=1e-5, atol=1e-6
    )


class Recorder:
    """A guided UNet that keeps what it is asked, through scans."""

    def __init__(self):
        self.calls = []

    def __call__(self, z, t, context, w, *, attention_edit=None):
        keep = lambda *call: self.calls.append([np.asarray(x).ravel().tolist() for x in call])  # noqa: E731
        jax.debug.callback(keep, t, context, w, ordered=True)
        return jnp.zeros_like(z)


@pytest.mark.parametrize("tau, scales", [(0.8, [1, 8, 8, 8]), (0.7, [1, 1, 8, 8])])
def test_dynamic_guidance_on_the_way_down(tau, scales):
    network = Recorder()
    ICD.decode(prompted(network, context(3.0), functools.partial(step_guidance, w=8.0, tau=tau)), X0[:1])
    jax.effects_barrier()
    assert network.calls == [[[t], [3.0], [w]] for t, w in zip((999, 779, 519, 259), scales, strict=True)]


def test_the_prompt_switches_where_guidance_starts():
    network = Recorder()
    ICD.decode(prompt_switched(network, context(3.0), context(5.0), 8.0, 0.7), X0[:1])
    jax.effects_barrier()
    assert network.calls == [[[999], [3.0], [1.0]], [[779], [3.0], [1.0]], [[519], [5.0], [8.0]], [[259], [5.0], [8.0]]]


def test_pairs_guide_their_targets_alone():
    network = Recorder()
    pair = prompted_pairs(network, context(3.0, 5.0), functools.partial(step_guidance, w=8.0, tau=0.8))
    decode_pairs(ICD, pair, X0, NoControl())
    jax.effects_barrier()
    assert [call[2] for call in network.calls] == [[1, 1], [1, 8], [1, 8], [1, 8]]
    assert all(call[1] == [3.0, 5.0] for call in network.calls)


def test_unguided_inversion_reconstructs_and_guidance_harms():
    contexts = context(0.7, 0.7)
    two_pass = guided(unet, NULL)
    z = DDIM.encode(prompted(two_pass, contexts, constant_guidance(1.0)), X0, EPS)
    errors = [
        float(jnp.abs(DDIM.decode(prompted(two_pass, contexts, guidance), z) - X0).mean())
        for guidance in (
            constant_guidance(1.0), functools.partial(step_guidance, w=8.0, tau=0.4), constant_guidance(8.0)
        )
    ]  # fmt: skip
    assert errors[0] < 0.05 < errors[1] < errors[2], errors


def test_an_edit_moves_the_target_and_returns_the_source():
    two_pass = guided(unet, NULL)
    encoder = prompted(two_pass, context(0.7, 0.7), constant_guidance(1.0))
    pair = prompted_pairs(two_pass, context(0.7, 0.7, 2.7, 2.7), constant_guidance(1.0))
    source, edited = edit_image(DDIM, encoder, pair, X0, EPS, NoControl())
    np.testing.assert_allclose(source, X0, atol=0.1)
    np.testing.assert_allclose(edited - source, 2.0, atol=0.15)


def attentive(z, t, contexts, w, *, attention_edit):
    """A UNet that is its cross-attention map: two words at 4 x 4 queries, the second one's weight is the prediction."""
    first = jax.nn.sigmoid(z.reshape(z.shape[0], 16) + contexts[:, :, 0])
    probs = jnp.stack([first, 1 - first], -1)[:, None]
    if attention_edit.probs is not None:
        probs = attention_edit.probs(probs, layer="attn2", is_cross=True)
    return probs[:, 0, :, 1].reshape(z.shape)


def replace_all(steps):
    ones = jnp.ones((1, 2))
    return PromptToPrompt(
        mapper=jnp.eye(2)[None], keep=ones, equalizer=ones, cross_steps=steps, self_steps=0
    )  # fmt: skip


def test_control_acts_in_its_steps_of_the_way_down():
    z = jnp.concatenate([X0[:1], X0[:1]])
    pair = prompted_pairs(attentive, context(0.0, 2.0), constant_guidance(1.0))
    free, one, every = (
        decode_pairs(ICD, pair, z, control) for control in (NoControl(), replace_all(1), replace_all(4))
    )
    np.testing.assert_allclose(every[1], every[0], rtol=1e-5)
    for out in (one, every):
        np.testing.assert_allclose(out[0], free[0], rtol=1e-5)
    gaps = [float(jnp.abs(out[1] - out[0]).mean()) for out in (free, one)]
    assert 1e-3 < gaps[1] and abs(gaps[0] - gaps[1]) > 1e-3


def test_blending_keeps_the_source_outside_of_the_words_region():
    z = jnp.concatenate([X0[:1], X0[:1]])
    pair = prompted_pairs(attentive, context(0.0, 2.0), constant_guidance(1.0))
    words = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    blends = [LocalBlend(words=words, size=4, threshold=threshold) for threshold in (0.0, 0.9, 1.0)]
    free = decode_pairs(ICD, pair, z, NoControl())
    everywhere, some, nowhere = (decode_pairs(ICD, pair, z, NoControl(), blend) for blend in blends)
    np.testing.assert_allclose(everywhere, free, rtol=1e-5)
    np.testing.assert_array_equal(nowhere[1], nowhere[0])
    same = np.asarray(some[1] == some[0])
    assert 0 < same.sum() < same.size and np.allclose(some[0], free[0], atol=1e-6)
