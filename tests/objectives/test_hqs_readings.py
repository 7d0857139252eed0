"""HQS's readings of a network whose gradients are known."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_sdd import ACP, FROZEN, SLOPE, encode, make_model

from sdd_jax.objectives.hqs import HQSOptions, elements, measure

pytestmark = pytest.mark.usefixtures("compile_quickly")
TIMES = (50, 500, 900)


def entropy_deficit64(x):
    x = np.asarray(x, np.longdouble).ravel()
    p = np.exp(x - x.max())
    q = p / p.sum() * x.size
    return float(np.mean(q * np.log(q) - q + 1))


def batch_of(*indices):
    images = [np.random.default_rng(i).normal(size=(8, 8, 3)) for i in indices]
    ids = [[i + 1, 2 * i] for i in indices]
    return {
        "image": jnp.asarray(np.stack(images), jnp.float32),
        "input_ids": jnp.asarray(ids, jnp.int32),
        "index": jnp.asarray(indices, jnp.int32),
    }


def read(options, batch, key=0):
    program = jax.jit(
        lambda batch: measure(make_model(), options, FROZEN, batch, jax.random.key(key), jnp.array(TIMES))
    )
    return jax.tree.map(np.asarray, program(batch))


def gradients_by_hand(options, batch, draw=0, key=0):
    """d_t of the toy in float64, [m,b,h,w,c]."""
    noise_key = jax.random.fold_in(jax.random.key(key), draw)
    eps = np.stack([jax.random.normal(jax.random.fold_in(noise_key, i), (4, 4, 2)) for i in batch["index"]])
    eps, z = eps.astype(np.float64), np.asarray(encode({}, batch["image"]), np.float64)
    prompt = 0.1 * np.asarray(batch["input_ids"], np.float64).mean(1)[:, None, None, None]
    out = []
    for t in TIMES:
        alpha, sigma = math.sqrt(ACP[t]), math.sqrt(1 - ACP[t])
        d = SLOPE * (alpha * z + sigma * eps) + options.guidance * prompt - eps
        d = sigma**2 * d if options.weighted else d
        if options.jacobian:
            d = 2 * alpha * SLOPE * d
        if options.pixels:
            spread = 0.5 / 4 * d.repeat(2, 1).repeat(2, 2)
            d = np.concatenate([spread, np.zeros_like(spread[..., :1])], -1)
        out.append(d)
    return np.stack(out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pixels": False, "guidance": 7.5},
        {"jacobian": False, "absolute": True, "temperature": 0.1},
        {"standardize": True, "guidance": 1.0},
        {"jacobian": False, "absolute": True, "weighted": True},
    ],
    ids=["paper", "latent", "released", "standardized", "weighted"],
)
def test_readings_are_those_of_the_gradients_by_hand(changes):
    options, batch = HQSOptions(**changes), batch_of(0, 3)
    found, d = read(options, batch), gradients_by_hand(options, batch)
    np.testing.assert_allclose(found.magnitude, np.abs(d).sum((2, 3, 4)), rtol=1e-4)
    for m in range(len(TIMES)):
        for b in range(2):
            x = np.abs(d[m, b]).mean(-1) if options.absolute else d[m, b]
            x = x / x.std() if options.standardize else x
            assert found.deficit[m, b] == pytest.approx(entropy_deficit64(x / options.temperature), rel=1e-3)
            assert elements(d.shape, options) == x.size
    np.testing.assert_allclose(found.maps, np.abs(d[:, 0]).mean(-1), rtol=1e-4, atol=1e-6)


def test_an_images_noise_is_its_own_and_draws_are_averaged():
    options = HQSOptions(guidance=2.0)
    both, alone = read(options, batch_of(0, 3)), read(options, batch_of(3))
    np.testing.assert_allclose(both.deficit[:, 1:], alone.deficit, rtol=1e-5)
    other = read(options, batch_of(3), key=1)
    assert np.abs(other.magnitude / alone.magnitude - 1).max() > 1e-2
    several = read(dataclasses.replace(options, draws=3), batch_of(3))
    each = [np.abs(gradients_by_hand(options, batch_of(3), draw)).sum((2, 3, 4)) for draw in range(3)]
    np.testing.assert_allclose(several.magnitude, np.mean(each, 0), rtol=1e-4)


def test_guidance_of_one_leaves_the_prompt_free_pass_out():
    sizes = []

    def counted(params, z, t, context, *, added_cond=None):
        sizes.append(z.shape[0])
        return z

    for w in (1.0, 2.0):
        options = HQSOptions(jacobian=False, guidance=w)
        model = make_model(denoise=counted)
        jax.eval_shape(
            lambda b, o=options, m=model: measure(m, o, FROZEN, b, jax.random.key(0), jnp.array(TIMES)), batch_of(0, 1)
        )
    assert set(sizes[: len(sizes) // 2]) == {2} and set(sizes[len(sizes) // 2 :]) == {4}
    costs = [HQSOptions(jacobian=j, guidance=w).evaluations for j in (False, True) for w in (1.0, 2.0)]
    assert costs == [1, 2, 2, 4]
