"""SDD and CLIP guidance against their equations by hand, on a manipulator that is one number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_sdd import ACP, FROZEN, SLOPE, encode, make_model

from sdd_jax.models.towers import TowerConfig, unit
from sdd_jax.objectives.clip_guidance import CLIPGuidance
from sdd_jax.objectives.identity import TowerIdentity, identity_loss
from sdd_jax.objectives.sdd import SDD, draw_times, time_distribution
from sdd_jax.training.flops import count_flops

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEP = jnp.asarray(0)
PARAMS = {"gain": jnp.float32(1.4), "shift": jnp.float32(0.1)}


@dataclasses.dataclass(frozen=True)
class Affine:
    """z' = gain z + shift on latents, or on images (`pixels`), which the encoder then turns into latents."""

    pixels: bool = False

    def init(self, rng, frozen):
        return {"gain": jnp.ones(()), "shift": jnp.zeros(())}

    def source(self, frozen, batch, rng):
        return batch["image"] if self.pixels else encode({}, batch["image"])

    def apply(self, params, frozen, code):
        return params["gain"] * code + params["shift"]

    def latents(self, frozen, code, image=None):
        return encode({}, code) if self.pixels else code

    def image(self, frozen, code):
        return code if self.pixels else make_model().decode({}, code)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(3, 8, 8, 3)), jnp.float32),
        "input_ids": jnp.asarray([[1, 2], [3, 4], [5, 1]], jnp.int32),
    }


def method(**changes):
    settings = {"model": make_model(), "manipulator": Affine(), "guidance": 3.0, "l2_weight": 0.0}
    return SDD(**{**settings, **changes})


def by_hand(batch, t, key, guidance=3.0, params=PARAMS):
    """(z, z', g) in float64; the noise is that of the loss's third key."""
    z = np.asarray(encode({}, batch["image"]), np.float64)
    edited = float(params["gain"]) * z + float(params["shift"])
    eps = np.asarray(jax.random.normal(jax.random.split(key, 3)[2], z.shape), np.float64)
    acp = ACP[t].astype(np.float64)
    prompt = 0.1 * np.asarray(batch["input_ids"], np.float64).mean(1)[:, None, None, None]
    eps_hat = SLOPE * (np.sqrt(acp) * edited + np.sqrt(1 - acp) * eps) + guidance * prompt
    return z, edited, (1 - acp) * (eps_hat - eps)


def gradient_of(sdd, batch, key=0):
    return jax.jit(jax.grad(lambda p: sdd.loss(p, FROZEN, batch, jax.random.key(key), STEP)[0]))(PARAMS)


def test_the_surrogate_carries_g_to_the_manipulator(batch):
    z, _, g = by_hand(batch, 500, jax.random.key(0))
    found = gradient_of(method(sds_weight=2.0), batch)
    per_pixel = 2.0 * g / (3 * 4 * 4)
    assert float(found["gain"]) == pytest.approx((per_pixel * z).sum(), rel=1e-4)
    assert float(found["shift"]) == pytest.approx(per_pixel.sum(), rel=1e-4)


def test_an_image_manipulator_is_reached_through_the_encoder(batch):
    """E is linear and keeps constants times .5, so d z' / d gain = E(image) and d z' / d shift = .5."""
    pixels = dataclasses.replace(Affine(), pixels=True)
    key = jax.random.split(jax.random.key(0), 3)[2]
    z = np.asarray(encode({}, batch["image"]), np.float64)
    eps = np.asarray(jax.random.normal(key, z.shape), np.float64)
    acp, prompt = float(ACP[500]), 0.1 * np.asarray(batch["input_ids"]).mean(1)[:, None, None, None]
    z_t = np.sqrt(acp) * (1.4 * z + 0.5 * 0.1) + np.sqrt(1 - acp) * eps
    g = (1 - acp) * (SLOPE * z_t + 3.0 * prompt - eps) / (3 * 4 * 4)
    found = gradient_of(method(manipulator=pixels), batch)
    assert float(found["gain"]) == pytest.approx((g * z).sum(), rel=1e-4)
    assert float(found["shift"]) == pytest.approx(0.5 * g.sum(), rel=1e-4)


def test_top_k_is_of_each_samples_weighted_gradient(batch):
    z, _, g = by_hand(batch, 500, jax.random.key(0))
    flat = np.abs(g).reshape(3, -1)
    kept = g * (np.abs(g) >= np.sort(flat, 1)[:, -5][:, None, None, None])
    assert (kept != 0).sum() == 15
    found = gradient_of(method(top_k=5), batch)
    assert float(found["gain"]) == pytest.approx((kept * z).sum() / 48, rel=1e-4)


def test_l2_and_metrics(batch):
    key = jax.random.key(4)
    z, edited, g = by_hand(batch, 500, key)
    loss, metrics = method(sds_weight=0.0, l2_weight=5.0).loss(PARAMS, FROZEN, batch, key, STEP)
    assert float(loss) == pytest.approx(5 * np.mean((edited - z) ** 2), rel=1e-5)
    assert float(metrics["l2"]) == pytest.approx(np.mean((edited - z) ** 2), rel=1e-5)
    assert float(metrics["gradient"]) == pytest.approx(np.sqrt(np.mean(g**2)), rel=1e-4)


def test_timesteps_are_drawn_from_the_set_by_weight():
    uniform = time_distribution((100, 300, 900), 1000)
    t, count = np.unique(draw_times(uniform, jax.random.key(0), 6000), return_counts=True)
    assert t.tolist() == [100, 300, 900] and count.min() > 1800
    weighted = time_distribution((100, 300, 900), 1000, (0.0, 0.25, 0.75))
    t, count = np.unique(draw_times(weighted, jax.random.key(0), 6000), return_counts=True)
    assert t.tolist() == [300, 900] and 4300 < count[1] < 4700


def test_other_timesteps_are_the_same_program(batch):
    """What lets a table's trainings share one compilation."""
    sdd, key = method(), jax.random.key(0)
    of = {t: {**FROZEN, "timesteps": time_distribution((t,), 1000)} for t in (100, 900)}
    step = jax.jit(lambda frozen: sdd.loss(PARAMS, frozen, batch, key, STEP)[1]["gradient"])
    assert len({step.lower(frozen).as_text() for frozen in of.values()}) == 1
    for t, frozen in of.items():
        g = by_hand(batch, t, key)[2]
        assert float(step(frozen)) == pytest.approx(np.sqrt(np.mean(g**2)), rel=1e-4)


def test_no_gradient_flows_into_the_teacher(batch):
    """Its Jacobian is skipped, and what is differentiated costs the teacher's forward alone."""
    sdd = method()
    grads = jax.grad(lambda frozen: sdd.loss(PARAMS, frozen, batch, jax.random.key(0), STEP)[0])(FROZEN)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(grads))


TOWER = TowerConfig(widths=(4,), strides=(4,), groups=2, outputs=5, image_size=8)


def tower_params():
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "convs_0": {"kernel": draw(3, 3, 3, 4), "bias": draw(4)},
        "norms_0": {"scale": draw(4), "bias": draw(4)},
        "head": {"kernel": draw(16, 5), "bias": draw(5)},
    }


def test_identity_is_a_cosine_of_two_images_and_trains_one(batch):
    """The released code compared an image with itself."""
    identity, frozen = TowerIdentity(tower=TOWER), {**FROZEN, "identity": tower_params()}
    a, b = batch["image"][:2], batch["image"][1:]
    np.testing.assert_allclose(identity_loss(identity, frozen, a, a), 0, atol=1e-6)
    ea, eb = (np.asarray(identity.embed(frozen, x)) for x in (a, b))
    np.testing.assert_allclose(np.linalg.norm(ea, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(identity_loss(identity, frozen, a, b), 1 - (ea * eb).sum(1), rtol=1e-4, atol=1e-6)
    da, db = jax.grad(lambda a, b: identity_loss(identity, frozen, a, b).sum(), argnums=(0, 1))(a, b)
    assert float(jnp.abs(da).max()) > 1e-4 and float(jnp.abs(db).max()) == 0
    larger = jax.image.resize(a, (2, 16, 16, 3), "nearest")
    assert identity.embed(frozen, larger).shape == (2, 5)
    sdd = method(sds_weight=0.0, identity=identity, identity_weight=2.0)
    loss, metrics = sdd.loss(PARAMS, frozen, batch, jax.random.key(0), STEP)
    z = encode({}, batch["image"])
    decode = make_model().decode
    want = identity_loss(identity, frozen, decode({}, 1.4 * z + 0.1), decode({}, z)).mean()
    assert float(metrics["identity"]) == pytest.approx(float(want), rel=1e-4)
    assert float(loss) == pytest.approx(2 * float(want), rel=1e-4)


@dataclasses.dataclass(frozen=True)
class MeanCLIP:
    """Embeds an image as the means of its channels, a text as (id_0, id_1, 1)."""

    def images(self, frozen, image):
        return unit(image.mean((1, 2)))

    def texts(self, frozen, ids):
        return unit(jnp.concatenate([ids.astype(jnp.float32), jnp.ones((len(ids), 1))], 1))


def test_clip_guidance_by_hand(batch):
    clip = CLIPGuidance(manipulator=Affine(pixels=True), clip=MeanCLIP(), clip_weight=2.0, l2_weight=0.5)
    loss, metrics = clip.loss(PARAMS, FROZEN, batch, jax.random.key(0), STEP)
    image = np.asarray(batch["image"], np.float64)
    edited = 1.4 * image + 0.1
    means = edited.mean((1, 2))
    texts = np.concatenate([np.asarray(batch["input_ids"], np.float64), np.ones((3, 1))], 1)
    cosine = (means * texts).sum(1) / np.linalg.norm(means, axis=1) / np.linalg.norm(texts, axis=1)
    l2 = np.mean((edited - image) ** 2)
    assert float(metrics["clip"]) == pytest.approx(np.mean(1 - cosine), rel=1e-4)
    assert float(loss) == pytest.approx(2 * np.mean(1 - cosine) + 0.5 * l2, rel=1e-4)
    start, _ = clip.loss(clip.init(jax.random.key(0), FROZEN), FROZEN, batch, jax.random.key(0), STEP)
    assert float(start) == pytest.approx(2 * np.mean(1 - _cosine(image.mean((1, 2)), texts)), rel=1e-4)


def _cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_the_teacher_runs_forward_only(batch):
    """2F guided, 1F unguided, F a matrix product here; its gradient is never taken."""
    kernel = jnp.ones((2, 2))

    def product(params, z, t, context, *, added_cond=None):
        return z @ kernel

    model = make_model(denoise=product)
    forward = count_flops(lambda z: z @ kernel, jnp.zeros((3, 4, 4, 2))).total
    for guidance, passes in ((1.0, 1), (3.0, 2)):
        sdd = method(model=model, guidance=guidance)
        cost = count_flops(jax.grad(lambda p, m=sdd: m.loss(p, FROZEN, batch, jax.random.key(0), STEP)[0]), PARAMS)
        assert cost.total == passes * forward


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 0}, "top_k=0 keeps nothing"),
        ({"identity_weight": 1.0}, "set config.identity.kind"),
    ],
)
def test_impossible_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


@pytest.mark.parametrize("timesteps", [(), (1000,), (500, -1)])
def test_timesteps_that_the_model_lacks(timesteps):
    with pytest.raises(ValueError, match=r"give at least one, each in 0\.\.999"):
        time_distribution(timesteps, 1000)


def test_clip_guidance_needs_somebody_to_recognise():
    with pytest.raises(ValueError, match="set config.identity.kind"):
        CLIPGuidance(manipulator=Affine(), clip=MeanCLIP(), identity_weight=0.1)
