import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.guidance import (
    guidance_embedding,
    guide,
    guided,
    interval_guidance,
    ramp_guidance,
    step_guidance,
)

TIMES = jnp.array([999, 779, 519, 259])


def test_guidance_by_hand_and_off_at_one():
    assert guide(jnp.array(2.0), jnp.array(1.0), 3.0) == 4.0
    assert guide(jnp.array(2.0), jnp.array(1.0), 1.0) == 2.0
    assert guide(jnp.array(2.0), jnp.array(1.0), 0.0) == 1.0


@pytest.mark.parametrize(("w", "omega"), [(7.5, 6.5), (1.0, 0.0), (3.0, 2.0)])
def test_papers_omega_is_one_less(w, omega):
    """DDS and others write (1 + omega) eps_c - omega eps_u."""
    cond, uncond = jax.random.normal(jax.random.key(0), (2, 64))
    np.testing.assert_allclose(guide(cond, uncond, w), (1 + omega) * cond - omega * uncond, atol=1e-5)


def test_a_scale_per_sample():
    cond, uncond = jnp.full((2, 3, 3, 1), 2.0), jnp.ones((2, 3, 3, 1))
    np.testing.assert_array_equal(guide(cond, uncond, jnp.array([1.0, 3.0]))[:, 0, 0, 0], [2.0, 4.0])


def _denoise(calls):
    """A prediction that tells every input apart: z + 10 t + 100 mean(context) + 1000 extra."""

    def denoise(z, t, context, *, extra=0.0, added_cond=None):
        calls.append(z.shape[0])
        pred = z + 10.0 * t[:, None, None, None] + 100.0 * context.mean((1, 2))[:, None, None, None]
        if added_cond is not None:
            pred = pred + added_cond["pooled"][:, :1, None, None]
        return pred + 1000.0 * (extra[:, None, None, None] if getattr(extra, "ndim", 0) else extra)

    return denoise


def test_both_branches_run_in_one_forward_and_in_order():
    calls = []
    z = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    t, w = jnp.array([1, 2, 3]), jnp.array([1.0, 2.0, 7.5])
    context = jax.random.normal(jax.random.key(1), (3, 4, 5))
    null = jax.random.normal(jax.random.key(2), (1, 4, 5))
    extra = jnp.array([0.1, 0.2, 0.3])
    pred = guided(_denoise(calls), null)(z, t, context, w, extra=extra)
    assert calls == [6]
    denoise = _denoise([])
    expected = guide(
        denoise(z, t, context, extra=extra), denoise(z, t, jnp.broadcast_to(null, context.shape), extra=extra), w
    )
    np.testing.assert_allclose(pred, expected, rtol=1e-5)


def test_the_second_half_takes_its_own_added_conditions():
    z, t = jnp.zeros((1, 1, 1, 1)), jnp.zeros((1,), jnp.int32)
    context = jnp.zeros((1, 1, 1))
    added, null_added = {"pooled": jnp.full((1, 1), 2.0)}, {"pooled": jnp.full((1, 1), 1.0)}
    with_null = guided(_denoise([]), context, null_added)(z, t, context, 3.0, added_cond=added)
    without = guided(_denoise([]), context)(z, t, context, 3.0, added_cond=added, extra=jnp.float32(0.0))
    assert with_null.item() == 4.0 and without.item() == 2.0


@pytest.mark.parametrize("tau, expected", [(0.8, [1, 8, 8, 8]), (0.7, [1, 1, 8, 8])])
def test_published_dynamic_guidance(tau, expected):
    np.testing.assert_array_equal(step_guidance(TIMES, 8.0, tau), expected)


def test_the_threshold_itself_is_guided_at_every_timestep():
    t = jnp.arange(1000)
    for tau in range(0, 1000, 7):
        np.testing.assert_array_equal(step_guidance(t, 5.0, tau / 1000) == 5.0, np.arange(1000) <= tau)


def test_the_ramp_is_linear_in_w_between_its_ends():
    w = ramp_guidance(jnp.array([0, 400, 500, 600, 999]), 9.0, 0.4, 0.6)
    np.testing.assert_allclose(w, [9, 9, 5, 1, 1], rtol=1e-5)
    with pytest.raises(ValueError, match="tau1 < tau2"):
        ramp_guidance(TIMES, 8.0, 0.8, 0.8)


def test_the_interval_guides_its_inside_only():
    np.testing.assert_array_equal(interval_guidance(TIMES, jnp.array([8.0, 7.0, 6.0, 5.0]), 0.3, 0.8), [1, 7, 6, 1])


def test_the_embedding_of_no_guidance_is_zeros_and_ones():
    np.testing.assert_array_equal(guidance_embedding(jnp.array([1.0]))[0], [0.0] * 256 + [1.0] * 256)


def test_the_embedding_has_norm_256_and_lcms_values():
    w = jnp.array([1.0, 1.5, 8.0, 20.0])
    emb = guidance_embedding(w)
    np.testing.assert_allclose((emb**2).sum(1), 256.0, rtol=1e-5)
    angle = 1000 * (np.asarray(w, np.float64) - 1)[:, None] * np.exp(-np.log(1e4) / 255 * np.arange(256))
    np.testing.assert_allclose(emb, np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=2e-3)
    with pytest.raises(ValueError, match="even"):
        guidance_embedding(w, 5)
