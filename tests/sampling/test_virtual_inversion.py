import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.parameterization import converter
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.diffusion.transport import gaussian_eps, posterior_std
from sdd_jax.sampling.attention_control import PromptToPrompt
from sdd_jax.sampling.editing import NoControl, constant_guidance, prompted_pairs
from sdd_jax.sampling.virtual_inversion import edit_friendly_decode, edit_friendly_maps, infedit

SD = Schedule.scaled_linear()
X0 = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
TIMES = sampling_times(20)
KEY = jax.random.key(5)


def denoise(mean, kind="eps"):
    def predict(z, t):
        return converter("eps", kind)(gaussian_eps(z, SD.at(t), mean, 0.5), z, SD.at(t))

    return predict


@pytest.mark.parametrize("kind, skip", [("eps", 0), ("v", 12)])
def test_the_source_prompt_returns_the_image(kind, skip):
    noise = edit_friendly_maps(denoise(0.2, kind), X0, KEY, TIMES, SD, kind)
    assert noise.z.shape == noise.maps.shape == (20, *X0.shape)
    out = edit_friendly_decode(denoise(0.2, kind), noise, TIMES, SD, kind, skip)
    np.testing.assert_allclose(out, X0, atol=2e-4)


def test_the_target_prompt_moves_it_less_the_more_steps_are_skipped():
    noise = edit_friendly_maps(denoise(0.7), X0, KEY, TIMES, SD, "eps")
    moved = [float(jnp.mean(edit_friendly_decode(denoise(2.7), noise, TIMES, SD, "eps", n) - X0)) for n in (0, 12, 18)]
    assert 1.8 < moved[0] < 2.05 and moved[0] > moved[1] > moved[2] > 0, moved
    with pytest.raises(ValueError, match="skip=20 is no step of 20"):
        edit_friendly_decode(denoise(0.7), noise, TIMES, SD, "eps", 20)


def test_maps_are_drawn_apart_and_larger_than_the_samplers_own_noise():
    """Neighbouring z_t share no noise, so a map's variance is above the posterior's: the paper's reason for editing."""
    noise = edit_friendly_maps(denoise(0.7), X0, KEY, TIMES, SD, "eps")
    for i in (3, 10):
        at_t, at_s = SD.at(int(TIMES[i])), SD.at(int(TIMES[i + 1]))
        assert float(noise.maps[i].std()) > 1.2 * float(posterior_std(at_t, at_s))
        eps, following = (
            (noise.z[j] - SD.at(int(TIMES[j])).alpha * X0) / SD.at(int(TIMES[j])).sigma for j in (i, i + 1)
        )
        correlation = np.corrcoef(np.ravel(eps), np.ravel(following))[0, 1]
        assert abs(correlation) < 0.3


def unet(z, t, context, w, attention_edit=None):
    return gaussian_eps(z, SD.at(t), context[:, :1, :1, None], 0.5)


def contexts(source, target):
    return jnp.asarray([source, source, target, target], jnp.float32)[:, None, None]


def test_infedit_returns_the_image_for_equal_prompts_and_moves_it_to_the_targets_mean():
    same = prompted_pairs(unet, contexts(0.2, 0.2), constant_guidance(1.0))
    np.testing.assert_allclose(infedit(same, X0, KEY, TIMES, SD, "eps", NoControl()), X0, atol=1e-6)
    pair = prompted_pairs(unet, contexts(0.7, 2.7), constant_guidance(1.0))
    np.testing.assert_allclose(infedit(pair, X0, KEY, TIMES, SD, "eps", NoControl()) - X0, 2.0, atol=0.02)


def test_infedit_is_controlled_step_by_step():
    def attentive(z, t, context, w, attention_edit):
        probs = jax.nn.sigmoid(z.reshape(4, 1, 64, 1) + context[:, None])
        return attention_edit.probs(probs, layer="attn2", is_cross=True).reshape(z.shape)

    pair = prompted_pairs(attentive, contexts(0.2, 2.0), constant_guidance(1.0))

    def run(steps):
        ones = jnp.ones((2, 1))
        control = PromptToPrompt(
            mapper=jnp.ones((2, 1, 1)), keep=ones, equalizer=ones, cross_steps=steps, self_steps=0
        )  # fmt: skip
        return infedit(pair, X0, KEY, TIMES, SD, "eps", control)

    np.testing.assert_allclose(run(20), X0, atol=1e-6, err_msg="the source's maps throughout: nothing to edit")
    assert float(jnp.abs(run(10) - X0).mean()) > 1e-3
