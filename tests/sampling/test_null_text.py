import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax.diffusion.guidance import guide
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.diffusion.transport import move
from sdd_jax.sampling.editing import DDIMRoute, NoControl, constant_guidance, decode_pairs
from sdd_jax.sampling.invert import invert_path
from sdd_jax.sampling.null_text import null_text_pairs, optimise_null_text

SD = Schedule.scaled_linear()
X0 = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
TIMES = sampling_times(5)
CONTEXT = jnp.asarray([0.03, 0.01])[:, None, None]
NULL = jnp.zeros((1, 1, 1))
W = 3.0


def unet(z, t, context, attention_edit=None):
    """A prediction that the null context can shift: .5 z + its mean."""
    return 0.5 * z + context.mean((1, 2))[:, None, None, None]


def path():
    return invert_path(lambda z, t: unet(z, t, CONTEXT), X0, TIMES, SD, "eps", rounds=20)


def optimised(path, context, inner_steps):
    return optimise_null_text(unet, path, context, NULL, W, TIMES, SD, "eps", inner_steps)


def by_hand(path, context, inner_steps):
    """One sample at a time, a Python loop a step, optax's Adam with the published rate and bound."""
    z, null, nulls, counts = path[-1], jnp.broadcast_to(NULL, context.shape), [], []
    for i, (t, s) in enumerate(zip(TIMES, [*TIMES[1:], None], strict=True)):
        at_t, at_s = SD.at(int(t)), SD.at_boundary(0 if s is None else int(s))
        cond = unet(z, t, context)

        def loss(null, z=z, cond=cond, at_t=at_t, at_s=at_s, target=path[-2 - i]):
            out = move(guide(cond, unet(z, 0, null), W), z, at_t, at_s, "eps")
            return jnp.mean((out - target) ** 2), out

        adam = optax.adam(1e-2 * (1 - i / 100))
        state = adam.init(null)
        taken = 0
        for _ in range(inner_steps):
            taken += 1
            (value, _), grad = jax.value_and_grad(loss, has_aux=True)(null)
            update, state = adam.update(grad, state)
            null = optax.apply_updates(null, update)
            if value < 1e-5 + 2e-5 * i:
                break
        z = loss(null)[1]
        nulls.append(null)
        counts.append(taken)
    return jnp.stack(nulls), counts


def test_a_batch_is_what_each_sample_is_alone():
    stops = path()
    got, rounds = optimised(stops, CONTEXT, 10)
    assert got.shape == (5, 2, 1, 1)
    alone = [by_hand(stops[:, i : i + 1], CONTEXT[i : i + 1], 10) for i in range(2)]
    want, counts = alone[1]
    assert rounds.tolist() == [max(pair) for pair in zip(alone[0][1], counts, strict=True)]
    np.testing.assert_allclose(got[:, 1], want[:, 0], rtol=1e-3, atol=1e-5)
    assert min(counts) < 10, "this sample stands still while the other goes on"
    assert np.abs(got[:, 0] - got[:, 1]).max() > 1e-3


def test_guided_decoding_with_the_optimised_nulls_reconstructs():
    stops = path()
    z = jnp.concatenate([stops[-1]] * 2)
    contexts = jnp.concatenate([CONTEXT, CONTEXT + 0.05])
    route = DDIMRoute(TIMES, SD, "eps")
    errors, edits = [], []
    for inner_steps in (0, 10):
        pair = null_text_pairs(unet, optimised(stops, CONTEXT, inner_steps).contexts, contexts, constant_guidance(W))
        source, edited = jnp.split(decode_pairs(route, pair, z, NoControl()), 2)
        errors.append(float(jnp.abs(source - X0).mean()))
        edits.append(float(jnp.abs(edited - source).mean()))
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.03, errors
    assert edits[1] > 3 * errors[1]
