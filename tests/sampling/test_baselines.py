"""The editing baselines against what they must do for Gaussian data, whose best network is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.guidance import guided
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.sampling.baselines import ddib, renoise, sdedit, unguided_source_pairs
from sdd_jax.sampling.editing import DDIMRoute, NoControl, constant_guidance, decode_pairs, prompted
from sdd_jax.sampling.generate import sample
from sdd_jax.sampling.invert import invert

SD = Schedule.scaled_linear()
X0 = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
EPS = jax.random.normal(jax.random.key(1), X0.shape)
TIMES = sampling_times(20)


def unet(z, t, context, attention_edit=None):
    """The exact eps of data N(context, .5^2)."""
    return gaussian_eps(z, SD.at(t), context[:, :1, :1, None], 0.5)


def context(*values):
    return jnp.asarray(values, jnp.float32)[:, None, None]


def denoise(mean):
    return lambda z, t: unet(z, t, context(mean, mean))


def test_sdedit_starts_where_its_strength_says_and_keeps_more_when_weak():
    outs = {s: sdedit(denoise(2.7), X0, EPS, TIMES, SD, "eps", s) for s in (0.05, 0.4, 1.0)}
    start = add_noise(X0, EPS, SD.at(int(TIMES[12])))
    np.testing.assert_allclose(outs[0.4], sample(denoise(2.7), start, TIMES[12:], SD, "eps"), rtol=1e-5)
    moved = [float(jnp.mean(outs[s] - X0)) for s in (0.05, 0.4, 1.0)]
    assert moved[0] < 0.5 < moved[1] < moved[2], moved
    for strength in (0.0, 0.01, 1.2):
        with pytest.raises(ValueError, match="leaves no step of 20"):
            sdedit(denoise(2.7), X0, EPS, TIMES, SD, "eps", strength)


def test_ddib_moves_an_image_by_the_difference_of_the_means():
    route = DDIMRoute(TIMES, SD, "eps", rounds=10)
    np.testing.assert_allclose(ddib(route, denoise(0.7), denoise(0.7), X0, EPS), X0, atol=2e-3)
    np.testing.assert_allclose(ddib(route, denoise(0.7), denoise(2.7), X0, EPS) - X0, 2.0, atol=0.08)


@pytest.mark.parametrize("null", [0.7, 0.2])
def test_pairs_leave_the_source_unguided(null):
    """With the source's prompt as the empty one (negative-prompt inversion), and with another; each is on its own."""
    route, rows = DDIMRoute(TIMES, SD, "eps"), []
    z = jnp.concatenate([EPS, EPS])

    def counted(z, *rest, **edit):
        rows.append(z.shape[0])
        return unet(z, *rest, **edit)

    pair = unguided_source_pairs(counted, context(0.7, 0.7, 1.2, 1.2), context(null, null), constant_guidance(6.0))
    source, target = jnp.split(decode_pairs(route, pair, z, NoControl()), 2)
    assert set(rows) == {6}, "two images: sources, targets, and the targets' unconditional pass"
    np.testing.assert_allclose(source, route.decode(denoise(0.7), EPS), rtol=1e-4, atol=1e-4)
    guided_down = prompted(guided(unet, context(null)), context(1.2, 1.2), constant_guidance(6.0))
    np.testing.assert_allclose(target, route.decode(guided_down, EPS), rtol=1e-4, atol=1e-4)
    assert float(jnp.mean(target - source)) > 2


def test_every_row_has_its_own_added_conditions():
    """SDXL's, and what stands for them in the unconditional rows: the target's own, or the empty prompt's."""
    added, seen = {"text_embeds": jnp.asarray([[1.0], [2.0]])}, []

    def recorded(z, t, context, *, added_cond, attention_edit):
        seen.append((t.tolist(), context.ravel().tolist(), added_cond["text_embeds"].ravel().tolist()))
        return jnp.zeros_like(z)

    for null in (None, {"text_embeds": jnp.asarray([[9.0]])}):
        pair = unguided_source_pairs(
            recorded, context(3.0, 5.0), context(0.0), constant_guidance(2.0), null, added_cond=added
        )
        pair(X0, jnp.asarray([400, 500]), jnp.asarray(0), None)
    assert seen == [([400, 500, 500], [3.0, 5.0, 0.0], [1.0, 2.0, last]) for last in (2.0, 9.0)]


def test_renoise_averages_its_last_rounds():
    exact = invert(denoise(0.7), X0, TIMES, SD, "eps", rounds=4)
    np.testing.assert_allclose(renoise(denoise(0.7), X0, TIMES, SD, "eps", 4, 3), exact, rtol=1e-5, atol=1e-5)
    one_step = TIMES[:1]
    first, second = (invert(denoise(0.7), X0, one_step, SD, "eps", rounds=n) for n in (1, 2))
    both = renoise(denoise(0.7), X0, one_step, SD, "eps", 2, 0)
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="0 <= average_from < rounds"):
        renoise(denoise(0.7), X0, TIMES, SD, "eps", 2, 2)
