"""CCD against eq. 11 written again in numpy, with networks that are a line of arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.models.adapters import ControlNetAdapter
from sdd_jax.objectives.ccd import CCD
from sdd_jax.types import ModelBundle, Residuals

ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
SHAPE = (6, 4, 4, 2)


def linear(params, z, t, context, *, added_cond=None, residuals=None):
    """a z + b t / 1000 + residual + mean(context): whatever a network reads enters its output."""
    time = t[:, None, None, None] / 1000
    hint = 0.0 if residuals is None else residuals.down[0]
    return params["a"] * z + params["b"] * time + hint + context.mean((1, 2))[:, None, None, None]


def oracle(kind):
    """The exact prediction of `kind`: the condition is the data."""

    def denoise(params, z, t, context, *, added_cond=None, residuals=None):
        at = Schedule(ACP).at(t)
        x = residuals.down[0]
        eps = (z - at.alpha * x) / at.sigma
        return {"eps": eps, "x0": x, "v": at.alpha * eps - at.sigma * x}[kind]

    return denoise


@dataclasses.dataclass(frozen=True)
class Hint:
    """Hands the scaled condition to the network as its only residual."""

    def init(self, rng, unet):
        return {"gain": jnp.ones(())}

    def prepare(self, frozen, condition):
        return condition

    def residuals(self, params, hint, z_t, t, context, added_cond=None):
        return Residuals((params["gain"] * hint,), None)


def make_model(denoise=linear, prediction="eps", alphas_cumprod=ACP):
    def encode(vae, image, rng=None):
        return image

    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    return ModelBundle(**{
        **fields, "denoise": denoise, "encode": encode, "prediction": prediction, "alphas_cumprod": alphas_cumprod,
    })  # fmt: skip


class Recorder:
    """Wraps a network and keeps what it was asked (outside of jit)."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, []

    def __call__(self, params, z, t, context, **rest):
        out = self.denoise(params, z, t, context, **rest)
        self.calls.append((params, np.asarray(z), np.asarray(t), np.asarray(out)))
        return out


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=SHAPE), jnp.float32),
        "condition": jnp.asarray(rng.normal(size=SHAPE), jnp.float32),
        "context": jnp.asarray(rng.normal(size=(SHAPE[0], 3, 5)), jnp.float32),
    }


def weights(a, b, gain=1.0):
    leaf = lambda value: jnp.asarray(value, jnp.float32)  # noqa: E731
    return {"unet": {"a": leaf(a), "b": leaf(b)}, "adapter": {"gain": leaf(gain)}}


PARAMS, TARGET = weights(0.3, 5.0, 0.5), weights(0.2, -9.0, 0.9)
FROZEN = {"teacher": {"unet": weights(9.0, 9.0)["unet"]}, "vae": {}, "text": {}, "target": TARGET}


def frozen(key=3):
    return {**FROZEN, "step_rng": jax.random.key(key)}


def levels(t):
    acp = ACP[t].astype(np.float64)[:, None, None, None]
    return np.sqrt(acp), np.sqrt(1 - acp)


def by_hand(batch, z_t, t, s, prediction):
    """Eq. 11 and its parts in float64 numpy, the noise read off z_t."""
    x, condition, context = (np.asarray(batch[k], np.float64) for k in ("image", "condition", "context"))

    def network(p, z, time):
        a, b, gain = float(p["unet"]["a"]), float(p["unet"]["b"]), float(p["adapter"]["gain"])
        shift = b * time[:, None, None, None] / 1000 + context.mean((1, 2))[:, None, None, None]
        return a * z + shift + gain * condition

    def split(out, z, time):
        alpha, sigma = levels(time)
        if prediction == "eps":
            return (z - sigma * out) / alpha, out
        return alpha * z - sigma * out, sigma * z + alpha * out

    alpha_t, sigma_t = levels(t)
    alpha_s, sigma_s = levels(s)
    eps = (z_t - alpha_t * x) / sigma_t
    x_hat, eps_hat = split(network(PARAMS, z_t, t), z_t, t)
    z_s = alpha_s * x_hat + sigma_s * eps
    _, eps_target = split(network(TARGET, z_s, s), z_s, s)
    return z_s, np.mean((eps_target - eps_hat) ** 2), np.mean((x - x_hat) ** 2)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_is_equation_11_with_the_target_at_s(batch, prediction, shared):
    network = Recorder(linear)
    method = CCD(model=make_model(network, prediction), adapter=Hint(), shared_time=shared, grid_steps=50, x_weight=0.5)
    loss, metrics = method.loss(PARAMS, frozen(), batch, jax.random.key(1), jnp.asarray(0))
    (online, z_t, t, _), (target, z_s, s, _) = network.calls
    assert online is PARAMS["unet"] and target is TARGET["unet"]

    grid = trailing_grid(50).tolist()
    assert all(grid[grid.index(a) + 1] == b for a, b in zip(t.tolist(), s.tolist(), strict=True))
    assert len(set(t.tolist())) == 1 if shared else len(set(t.tolist())) > 1
    want_z_s, consistency, reconstruction = by_hand(batch, z_t.astype(np.float64), t, s, prediction)
    np.testing.assert_allclose(z_s, want_z_s, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["consistency"], consistency, rtol=1e-3)
    np.testing.assert_allclose(metrics["reconstruction"], reconstruction, rtol=1e-3)
    np.testing.assert_allclose(loss, consistency + 0.5 * reconstruction, rtol=1e-3)
    _, at_t, _ = by_hand(batch, z_t.astype(np.float64), t, t, prediction)
    assert abs(at_t / consistency - 1) > 1e-2, "the target's time would not show in this loss"


def test_the_papers_numbers(monkeypatch):
    """alpha, sigma = (.8, .6) at t, (.96, .28) at s; x = [1, -2], eps = [.5, 1], x_hat = [1.1, -2.3]."""
    table = jnp.asarray([[0.1, -0.2], [1.1 / 3, 1.4]])  # what the network says at timesteps 0 and 1

    def denoise(params, z, t, context, *, added_cond=None, residuals=None):
        return table[t][:, None, None, :]

    network = Recorder(denoise)
    method = CCD(model=make_model(network, "eps", np.asarray([0.9216, 0.64], np.float32)), adapter=Hint(), grid_steps=2)
    batch = {
        "image": jnp.asarray([1.0, -2.0]).reshape(1, 1, 1, 2),
        "condition": jnp.zeros((1, 1, 1, 2)),
        "context": jnp.zeros((1, 1, 1)),
    }
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray([0.5, 1.0]).reshape(shape))
    loss, metrics = method.loss(PARAMS, frozen(), batch, jax.random.key(1), jnp.asarray(0))
    (_, z_t, t, _), (_, z_s, s, _) = network.calls
    assert (t, s) == (1, 0)
    np.testing.assert_allclose(z_t.ravel(), [1.1, -1.0], rtol=1e-6)
    np.testing.assert_allclose(z_s.ravel(), [1.196, -1.928], rtol=1e-6)
    np.testing.assert_allclose(metrics["reconstruction"], (0.1**2 + 0.3**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["consistency"], ((1.1 / 3 - 0.1) ** 2 + 1.6**2) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss, metrics["consistency"] + metrics["reconstruction"], rtol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_oracle_has_no_loss(batch, prediction):
    method = CCD(model=make_model(oracle(prediction), prediction), adapter=Hint(), shared_time=False)
    exact = {**batch, "condition": batch["image"]}
    params = weights(0, 0)
    loss, _ = method.loss(params, {**frozen(), "target": params}, exact, jax.random.key(1), jnp.asarray(0))
    assert loss < 1e-5
    spoilt = {**exact, "condition": 1.1 * batch["image"]}
    assert method.loss(params, {**frozen(), "target": params}, spoilt, jax.random.key(1), jnp.asarray(0))[0] > 1e-3


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_neither_the_target_nor_z_s_is_differentiated(batch, prediction):
    network = Recorder(linear)
    method = CCD(model=make_model(network, prediction), adapter=Hint())
    rng, step = jax.random.key(1), jnp.asarray(0)
    method.loss(PARAMS, frozen(), batch, rng, step)
    (_, z_t, t, _), (_, z_s, s, target) = network.calls

    def constants(params):
        """Eq. 11 with the target's evaluation replaced by the numbers it gave."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (map(jnp.float32, levels(time)) for time in (t, s))
        out = linear(params["unet"], z_t, jnp.asarray(t), batch["context"],
                     residuals=Residuals((params["adapter"]["gain"] * batch["condition"],), None))  # fmt: skip
        if prediction == "eps":
            x_hat, eps_hat, eps_target = (z_t - sigma_t * out) / alpha_t, out, target
        else:
            x_hat, eps_hat = alpha_t * z_t - sigma_t * out, sigma_t * z_t + alpha_t * out
            eps_target = sigma_s * z_s + alpha_s * target
        return jnp.mean((eps_target - eps_hat) ** 2) + jnp.mean((batch["image"] - x_hat) ** 2)

    plain = CCD(model=make_model(linear, prediction), adapter=Hint())
    grads, frozen_grads = jax.grad(
        lambda p, target: plain.loss(p, {**frozen(), "target": target}, batch, rng, step)[0], argnums=(0, 1)
    )(PARAMS, TARGET)
    expected = jax.grad(constants)(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(frozen_grads))


def times(method, rng, step_rng, batch):
    network = Recorder(linear)
    seen = dataclasses.replace(method, model=make_model(network))
    readable = FROZEN if step_rng is None else frozen(step_rng)
    seen.loss(PARAMS, readable, batch, jax.random.key(rng), jnp.asarray(0))
    return network.calls[0][2].tolist()


def test_shared_time_comes_from_the_step_and_mixed_time_from_the_microbatch(batch):
    shared = CCD(model=make_model(), adapter=Hint(), grid_steps=1000)
    assert times(shared, 1, 3, batch) == times(shared, 2, 3, batch), "microbatches of one step share t"
    assert times(shared, 1, 3, batch) != times(shared, 1, 4, batch), "steps do not"
    mixed = dataclasses.replace(shared, shared_time=False)
    assert times(mixed, 1, None, batch) != times(mixed, 2, None, batch)


@pytest.mark.parametrize("count", [2, 20, 50, 1000])
def test_every_neighbouring_pair_is_drawn_and_s_is_never_clean(count):
    method = CCD(model=make_model(), adapter=Hint(), grid_steps=count, shared_time=False)
    t, s = method.draw_times(jax.random.key(0), 20_000)
    grid = trailing_grid(count)
    assert set(zip(t.tolist(), s.tolist(), strict=True)) == set(zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True))
    assert t.dtype == s.dtype == jnp.int32 and min(s.tolist()) == grid[-1] >= 0
    drawn = np.bincount(np.searchsorted(grid[::-1], t), minlength=count)[1:]
    assert drawn.max() < 2 * 20_000 / (count - 1) + 20, "all pairs are as likely"


def test_what_is_trained():
    frozen_weights = {"teacher": {"unet": {"a": jnp.asarray(2.0, jnp.bfloat16), "b": jnp.asarray(1.0, jnp.bfloat16)}}}
    full = CCD(model=make_model(), adapter=Hint()).init(jax.random.key(0), frozen_weights)
    assert set(full) == {"adapter", "unet"}
    assert full["unet"]["a"] == 2 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(full))
    alone = CCD(model=make_model(), adapter=Hint(), train_unet=False).init(jax.random.key(0), frozen_weights)
    assert set(alone) == {"adapter"}


def test_adapter_only_runs_on_the_teacher_in_both_evaluations(batch):
    network = Recorder(linear)
    method = CCD(model=make_model(network), adapter=Hint(), train_unet=False)
    target = {"adapter": TARGET["adapter"]}
    readable = {**frozen(), "target": target}
    method.loss({"adapter": PARAMS["adapter"]}, readable, batch, jax.random.key(1), jnp.asarray(0))
    assert [call[0] for call in network.calls] == [FROZEN["teacher"]["unet"]] * 2
    context = np.asarray(batch["context"]).mean((1, 2))[:, None, None, None]
    for (unet, z, t, out), params in zip(network.calls, (PARAMS, target), strict=True):
        condition = float(params["adapter"]["gain"]) * np.asarray(batch["condition"])
        want = float(unet["a"]) * z + float(unet["b"]) * t[:, None, None, None] / 1000 + condition + context
        np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4)


def papers_loss(monkeypatch, said, **options):
    """The loss at the paper's numbers; `said` maps a network's parameters to its answers at timesteps 0 and 1."""

    def denoise(params, z, t, context, *, added_cond=None, residuals=None):
        return jnp.asarray(said[round(float(params["a"]), 3)])[t][:, None, None, :]

    network = Recorder(denoise)
    model = make_model(network, "eps", np.asarray([0.9216, 0.64], np.float32))
    method = CCD(model=model, adapter=Hint(), grid_steps=2, **options)
    batch = {
        "image": jnp.asarray([1.0, -2.0]).reshape(1, 1, 1, 2),
        "condition": jnp.zeros((1, 1, 1, 2)),
        "context": jnp.zeros((1, 1, 1)),
    }
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray([0.5, 1.0]).reshape(shape))
    loss, metrics = method.loss(PARAMS, frozen(), batch, jax.random.key(1), jnp.asarray(0))
    return network.calls, metrics


X_HAT = [1.1 / 3, 1.4]  # the eps prediction at t whose x_hat is [1.1, -2.3]
EXACT = [0.5, 1.0]  # the one whose x_hat is the data
ONLINE, EMA, TEACHER = 0.3, 0.2, 9.0


@pytest.mark.parametrize(
    ("predictor", "ode_model", "z_s"),
    [
        ("prev", "online", [1.196, -1.928]),
        ("ddim", "online", [1.158667, -1.816]),
        ("prev", "target", [1.1, -1.64]),
        ("ddim", "target", [1.1, -1.64]),
        ("prev", "pretrained", [1.196, -1.928]),
        ("ddim", "pretrained", [1.158667, -1.816]),
    ],
)
def test_predictors_and_ode_models_give_the_papers_z_s(monkeypatch, predictor, ode_model, z_s):
    """Whose estimate is asked says X_HAT; all others are exact, or something else that must not be read."""
    zero = [0.0, 0.0]
    said = {ONLINE: [zero, EXACT], EMA: [zero, zero], TEACHER: [zero, zero]}
    asked = {"online": ONLINE, "target": EMA, "pretrained": TEACHER}[ode_model]
    said[asked] = [zero, EXACT if ode_model == "target" else X_HAT]
    calls, _ = papers_loss(monkeypatch, said, predictor=predictor, ode_model=ode_model)
    found = [round(float(call[0]["a"]), 3) for call in calls]
    assert found == [ONLINE, *([] if asked == ONLINE else [asked]), EMA]
    assert [call[2].tolist() for call in calls[:-1]] == [[1]] * (len(calls) - 1) and calls[-1][2] == [0]
    np.testing.assert_allclose(calls[-1][1].ravel(), z_s, rtol=1e-5)


def test_distances_by_hand(monkeypatch):
    """eps: [1.1/3, 1.4] against [.1, -.2] at s; x at s: z_s = [1.196, -1.928] less .28 eps, over .96."""
    said = {ONLINE: [[0, 0], X_HAT], EMA: [[0.1, -0.2], [0, 0]], TEACHER: [[0, 0], [0, 0]]}
    difference = np.array([1.1 / 3 - 0.1, 1.6])
    _, plain = papers_loss(monkeypatch, said)
    np.testing.assert_allclose(plain["consistency"], np.mean(difference**2), rtol=1e-5)
    _, huber = papers_loss(monkeypatch, said, eps_distance="pseudo_huber")
    np.testing.assert_allclose(huber["consistency"], np.mean(np.sqrt(difference**2 + 1e-6) - 1e-3), rtol=1e-5)
    _, in_x = papers_loss(monkeypatch, said, eps_space="x")
    x_s = (np.array([1.196, -1.928]) - 0.28 * np.array([0.1, -0.2])) / 0.96
    np.testing.assert_allclose(in_x["consistency"], np.mean((x_s - [1.1, -2.3]) ** 2), rtol=1e-5)
    _, none = papers_loss(monkeypatch, said, x_space="none")
    assert none["reconstruction"] == 0 and none["consistency"] == plain["consistency"]


def evaluate(batch, network=linear, **options):
    """(loss, metrics) at fixed keys; fields of the model that are options too go to it."""
    fields = {name: options.pop(name) for name in ("decode", "encode") if name in options}
    model = dataclasses.replace(make_model(network), **fields)
    method = CCD(model=model, adapter=Hint(), **options)
    return method.loss(PARAMS, frozen(), batch, jax.random.key(1), jnp.asarray(0))


def test_under_ddim_noise_consistency_is_snr_weighted_data_consistency(batch):
    """eps_t - eps_s = -(alpha_s / sigma_s) (x_t - x_s), so the two losses differ by SNR(s)."""
    network = Recorder(linear)
    _, in_eps = evaluate(batch, network, predictor="ddim")
    _, in_x = evaluate(batch, predictor="ddim", eps_space="x")
    alpha, sigma = levels(network.calls[-1][2])
    np.testing.assert_allclose(in_eps["consistency"], in_x["consistency"] * (alpha / sigma)[0] ** 2, rtol=1e-3)
    _, prev = evaluate(batch, eps_space="x")
    assert abs(prev["consistency"] / in_x["consistency"] - 1) > 1e-3, "under prev they are different losses"


def test_spaces_of_the_reconstruction(batch):
    """With D(z) = 3 z + 1 and E(y) = y / 2: pixels count 9 times, re-encoding compares x with (3 x_hat + 1) / 2."""
    network = Recorder(linear)
    _, latent = evaluate(batch, network)
    parts = {"decode": lambda vae, z: 3 * z + 1, "encode": lambda vae, y, rng=None: y if rng is not None else y / 2}
    _, pixel = evaluate(batch, x_space="pixel", **parts)
    np.testing.assert_allclose(pixel["reconstruction"], 9 * latent["reconstruction"], rtol=1e-4)
    _, reencoded = evaluate(batch, x_space="reencoded", **parts)
    _, z_t, t, out = network.calls[0]
    alpha, sigma = levels(t)
    x_hat = (z_t - sigma * out) / alpha
    want = np.mean((np.asarray(batch["image"]) - (3 * x_hat + 1) / 2) ** 2)
    np.testing.assert_allclose(reencoded["reconstruction"], want, rtol=1e-3)
    seen = {}

    def perceptual(params, a, b):
        seen.update(params=params, a=a)
        return jnp.abs(a - b).mean((1, 2, 3))

    model = dataclasses.replace(make_model(), **parts)
    method = CCD(model=model, adapter=Hint(), x_space="lpips", perceptual=perceptual)
    readable = {**frozen(), "lpips": "weights"}
    _, found = method.loss(PARAMS, readable, batch, jax.random.key(1), jnp.asarray(0))
    assert seen["params"] == "weights"
    np.testing.assert_allclose(seen["a"], 3 * batch["image"] + 1, rtol=1e-5)
    np.testing.assert_allclose(
        found["reconstruction"], 3 * np.abs(np.asarray(batch["image"]) - x_hat).mean(), rtol=1e-3
    )


@pytest.mark.parametrize("options", [{"ode_model": "target"}, {"ode_model": "pretrained", "predictor": "ddim"}])
def test_other_ode_models_are_not_differentiated(batch, options):
    """Only the online network's evaluation carries a gradient."""
    rng, step = jax.random.key(1), jnp.asarray(0)
    method = CCD(model=make_model(), adapter=Hint(), **options)

    def loss(params, others):
        return method.loss(params, {**frozen(), **others}, batch, rng, step)[0]

    grads, others = jax.grad(loss, argnums=(0, 1))(PARAMS, {name: FROZEN[name] for name in ("target", "teacher")})
    assert all(float(jnp.abs(leaf)) > 0 for leaf in jax.tree.leaves(grads))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))


def test_guidance_combines_both_predictions_with_one_w(batch):
    """Every prediction is uncond + w (cond - uncond), so the loss is that of the network guided by hand."""
    null = jnp.full((1, 3, 5), -0.7)
    rng, step = jax.random.key(1), jnp.asarray(0)
    network = Recorder(linear)
    method = CCD(model=make_model(network), adapter=Hint(), guidance=(3.0, 3.0))
    readable = {**frozen(), "null_context": null}
    loss, _ = method.loss(PARAMS, readable, batch, rng, step)
    assert [len(call[1]) for call in network.calls] == [2 * SHAPE[0]] * 2, "one forward of 2B samples each"

    def by_hand(params, z, t, context, **rest):
        cond = linear(params, z, t, context, **rest)
        uncond = linear(params, z, t, jnp.broadcast_to(null, context.shape), **rest)
        return uncond + 3.0 * (cond - uncond)

    split = jax.random.split
    patched = lambda key, num=2: split(key, 4)[:3] if num == 3 else split(key, num)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "split", patched)
        want, _ = CCD(model=make_model(by_hand), adapter=Hint()).loss(PARAMS, frozen(), batch, rng, step)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    scales = dataclasses.replace(method, guidance=(1.0, 5.0)).draw_scales(jax.random.key(0), 4000)
    assert 1 <= scales.min() and scales.max() <= 5 and abs(float(scales.mean()) - 3) < 0.1


def test_boundary_scalings_tie_the_lowest_times_to_the_data():
    """f(z, 0) = z whatever the network says; from t = 16 on they change nothing."""
    z = jax.random.normal(jax.random.key(0), SHAPE)
    hint, text = jnp.zeros(SHAPE), (jnp.zeros((SHAPE[0], 3, 5)), None)
    t = jnp.asarray([0, 0, 16, 19, 500, 999])
    tied = CCD(model=make_model(), adapter=Hint(), boundary_scaling=True)
    free = CCD(model=make_model(), adapter=Hint())
    assert (tied.prediction, free.prediction) == ("x0", "eps")
    found = tied.predict(PARAMS, FROZEN, hint, z, t, text)
    out = free.predict(PARAMS, FROZEN, hint, z, t, text)
    alpha, sigma = levels(np.asarray(t))
    np.testing.assert_allclose(found[:2], z[:2], atol=1e-6)
    np.testing.assert_allclose(found[2:], ((z - sigma * out) / alpha)[2:], rtol=1e-4, atol=1e-4)


def test_random_initialisation_reaches_the_unet_and_the_adapters_copy():
    class Copy(Hint):
        def init(self, rng, unet):
            return {"copy": unet["a"]}

    fresh = {"a": jnp.asarray(7.0), "b": jnp.asarray(8.0)}
    method = CCD(model=make_model(), adapter=Copy(), init_unet=lambda rng: fresh)
    params = method.init(jax.random.key(0), FROZEN)
    assert params["unet"] == fresh and params["adapter"]["copy"] == 7
    with pytest.raises(ValueError, match="would keep a random UNet"):
        dataclasses.replace(method, train_unet=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "euler"}, "predictor='euler' is not known; use prev, ddim"),
        ({"ode_model": "ema"}, "ode_model='ema' is not known; use online, target, pretrained"),
        ({"x_space": "rgb"}, "x_space='rgb' is not known; use latent, pixel, reencoded, lpips, none"),
        ({"eps_distance": "l1"}, "eps_distance='l1' is not known"),
        ({"eps_space": "v"}, "eps_space='v' is not known; use eps, x"),
        ({"guidance": (5.0, 1.0)}, "guidance=.5.0, 1.0. is no interval"),
        ({"x_space": "lpips"}, "needs weights: set config.lpips.backbone and config.lpips.linear"),
    ],
)
def test_unknown_choices_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        CCD(model=make_model(), adapter=Hint(), **options)
    assert "\n" not in str(error.value)


class Embedding(ControlNetAdapter):
    """A ControlNet whose embedding hands on its condition, times a gain."""

    def prepare(self, frozen, condition):
        return condition

    def embed(self, params, hint):
        return params["gain"] * hint

    def residuals(self, params, hint, z_t, t, context, added_cond=None):
        return None


@pytest.mark.parametrize(("gain", "error"), [(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)])
def test_hint_error_is_the_share_of_the_first_features_that_is_missed(batch, gain, error):
    kernel = np.random.default_rng(3).normal(size=(3, 3, 2, 5)).astype(np.float32)
    padded = np.pad(np.asarray(batch["image"]), ((0, 0), (1, 1), (1, 1), (0, 0)))
    features = sum(padded[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3))
    frozen = {**FROZEN, "teacher": {"unet": {**FROZEN["teacher"]["unet"], "conv_in": {"kernel": kernel}}}}
    seen = {**batch, "condition": jnp.asarray(features)}
    params = weights(0.3, 5.0, gain)
    losses = []
    for hint_weight in (0.0, 0.5):
        method = CCD(model=make_model(), adapter=Embedding(config={}), hint_weight=hint_weight)
        frozen["step_rng"] = jax.random.key(2)
        loss, metrics = method.loss(params, {**frozen, "target": TARGET}, seen, jax.random.key(1), jnp.asarray(0))
        losses.append(loss)
    np.testing.assert_allclose(metrics["hint"], error, atol=1e-6)
    np.testing.assert_allclose(losses[1] - losses[0], 0.5 * error, atol=1e-5)


def test_hints_are_a_controlnets():
    with pytest.raises(ValueError, match="hint_weight=1.0 trains a ControlNet's embedding"):
        CCD(model=make_model(), adapter=Hint(), hint_weight=1.0)
