"""The StyleGAN manipulator: what it makes of codes, what its gradients reach, its place in SDD and CLIP guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_style import ENCODER, GENERATOR, draw_encoder, draw_generator
from toy_sdd import FROZEN, encode, make_model

from sdd_jax.models import e4e
from sdd_jax.models.style_mappers import MapperConfig, apply_mapper
from sdd_jax.models.stylegan2 import make_generator
from sdd_jax.objectives.clip_guidance import CLIPGuidance
from sdd_jax.objectives.manipulators import LatentManipulator, StyleManipulator, code_distance
from sdd_jax.objectives.sdd import SDD

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEP = jnp.asarray(0)


@pytest.fixture(scope="module")
def frozen():
    networks = {"generator": draw_generator(), "encoder": draw_encoder(), "latent_avg": np.ones((6, 6), np.float32)}
    return {**FROZEN, **networks}


@pytest.fixture(scope="module")
def batch():
    codes = np.random.default_rng(0).normal(size=(2, GENERATOR.num_ws, GENERATOR.style_dim)).astype(np.float32)
    return {"codes": jnp.asarray(codes), "input_ids": jnp.asarray([[1, 2], [3, 4]], jnp.int32)}


def make(kind="levels", **changes):
    settings = {"model": make_model(), "generator": make_generator(GENERATOR), "mapper": MapperConfig(kind=kind)}
    return StyleManipulator(**{**settings, **changes})


def mapper(manipulator, seed=3):
    """A random mapper whose output is of order one."""
    shapes = jax.eval_shape(lambda key: manipulator.init(key, {}), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(100 * rng.standard_normal(x.shape), jnp.float32), shapes)


@pytest.mark.parametrize("kind", ["levels", "single", "styles", "styles_without_rgb"])
def test_without_a_change_the_picture_is_the_generators(frozen, batch, kind):
    manipulator = make(kind, delta_scale=0.0)

    @jax.jit
    def run(params, frozen, batch):
        code = manipulator.source(frozen, batch, None)
        edited = manipulator.apply(params, frozen, code)
        return manipulator.image(frozen, edited), manipulator.generator.synthesis(
            frozen["generator"], batch["codes"], "const"
        )

    image, want = run(mapper(manipulator), frozen, batch)
    assert image.shape == (2, 16, 16, 3) and float(jnp.std(want)) > 0.1
    np.testing.assert_allclose(image, want, rtol=1e-5, atol=1e-5)


def test_the_edit_is_a_tenth_of_the_mapper(frozen, batch):
    manipulator = make(mapper=MapperConfig(levels=("medium",)))
    params = mapper(manipulator)
    assert set(params) == {"medium"}
    edited = manipulator.apply(params, frozen, batch["codes"])
    np.testing.assert_array_equal(edited[:, :4], batch["codes"][:, :4])
    change = apply_mapper(manipulator.mapper, params, batch["codes"])
    np.testing.assert_allclose(edited, batch["codes"] + 0.1 * change, rtol=1e-6)
    assert float(jnp.abs(change[:, 4:]).max()) > 0.1
    other = dataclasses.replace(manipulator, delta_scale=1.5).apply(params, frozen, batch["codes"])
    np.testing.assert_allclose(other - batch["codes"], 15 * (edited - batch["codes"]), rtol=1e-3, atol=1e-5)


def test_style_space_without_rgb_leaves_rgb(frozen, batch):
    manipulator = make("styles_without_rgb")
    code = manipulator.source(frozen, batch, None)
    assert [style.shape[1] for style in code] == list(GENERATOR.style_widths)
    edited = manipulator.apply(mapper(manipulator), frozen, code)
    same = [bool(jnp.all(a == b)) for a, b in zip(edited, code, strict=True)]
    assert same == [i % 3 == 1 for i in range(len(code))]


def test_latents_are_of_the_picture_at_the_teachers_side(frozen, batch):
    """16 px to 8 by bilinear interpolation without antialiasing: means of 2x2."""
    manipulator = make()
    image = np.asarray(manipulator.image(frozen, batch["codes"]))
    halved = image.reshape(2, 8, 2, 8, 2, 3).mean((2, 4))
    want = encode({}, halved)
    np.testing.assert_allclose(manipulator.latents(frozen, batch["codes"]), want, rtol=1e-4, atol=1e-5)
    given = manipulator.latents(frozen, batch["codes"], jnp.asarray(image))
    np.testing.assert_allclose(given, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["levels", "styles_without_rgb"])
def test_gradients_reach_the_mapper_through_encoder_and_generator(frozen, batch, kind):
    """g per latent pixel, pulled back by hand: J^T g / (h w b), and nothing but the mapper is differentiated."""
    manipulator = make(kind)
    sdd = SDD(model=make_model(), manipulator=manipulator, guidance=3.0, l2_weight=0.0)
    params, rng = mapper(manipulator), jax.random.key(5)

    @jax.jit
    def both(params, frozen, batch):
        found = jax.grad(lambda p: sdd.loss(p, frozen, batch, rng, STEP)[0])(params)
        code = manipulator.source(frozen, batch, None)
        z, pull = jax.vjp(lambda p: manipulator.latents(frozen, manipulator.apply(p, frozen, code)), params)
        noise_rng = jax.random.split(rng, 3)[2]
        g = sdd.gradient(frozen, batch, z, jnp.full((2,), 500), noise_rng)
        return found, pull(g / (4 * 4 * 2))[0]

    found, want = both(params, frozen, batch)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert float(jnp.abs(a).max()) > 0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


@dataclasses.dataclass(frozen=True)
class Mean:
    """R and CLIP's image tower: the mean colour. Texts are their ids."""

    def embed(self, frozen, image):
        return image.mean((1, 2))

    images = embed

    def texts(self, frozen, ids):
        return jnp.concatenate([ids.astype(jnp.float32), jnp.ones((len(ids), 1))], 1)


@pytest.mark.parametrize("objective", ["sdd", "clip"])
def test_a_step_makes_each_picture_once(frozen, batch, objective):
    """Latents and identity loss look at the same edited picture; the original is the other."""
    made, functions = [], make_generator(GENERATOR)

    def synthesis(params, ws, noise):
        made.append(noise)
        return functions.synthesis(params, ws, noise)

    manipulator = make(generator=functions._replace(synthesis=synthesis))
    identity = {"identity": Mean(), "identity_weight": 1.0}
    method = (
        SDD(model=make_model(), manipulator=manipulator, **identity)
        if objective == "sdd"
        else CLIPGuidance(manipulator=manipulator, clip=Mean(), **identity)
    )
    params = mapper(manipulator)
    loss, metrics = jax.eval_shape(lambda p: method.loss(p, frozen, batch, jax.random.key(0), STEP), params)
    assert loss.shape == () and {"l2", "identity"} < set(metrics)
    assert made == ["const", "const"]


def test_images_are_encoded(frozen):
    manipulator = make(encoder=ENCODER)
    image = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    found = jax.jit(lambda frozen, image: manipulator.source(frozen, {"image": image}, None))(frozen, image)
    want = jax.jit(lambda params, image: e4e.encode(ENCODER, params, frozen["latent_avg"], image))(
        frozen["encoder"], image
    )
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"no encoder for images: set config\.manipulator\.encoder"):
        make().source(frozen, {"image": image}, None)


def test_training_starts_from_a_given_mapper(frozen):
    manipulator = make()
    params = mapper(manipulator)
    jax.tree.map(np.testing.assert_array_equal, manipulator.init(jax.random.key(0), {"mapper": params}), params)


def test_distance_by_hand():
    a, b = jnp.asarray([[1.0, 3.0]]), jnp.asarray([[0.0, 1.0]])
    assert float(code_distance(a, b)) == pytest.approx(2.5)
    assert float(code_distance([a, 2 * a], [b, 2 * b])) == pytest.approx(2.5 + 10)


@pytest.mark.parametrize("reencode", [False, True])
def test_latents_are_the_code_or_what_the_encoder_makes_of_its_picture(reencode):
    """The toy's E(D(z)) is z / 2."""
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    manipulator = LatentManipulator(model=make_model(), translator=None, reencode=reencode)
    np.testing.assert_allclose(manipulator.latents({"vae": {}}, z), 0.5 * z if reencode else z, rtol=1e-6)
