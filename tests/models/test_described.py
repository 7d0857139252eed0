"""Models without weight files: the published sizes, shapes that stand in for weights, and random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdd_jax
from sdd_jax.models.bundle import expected_shapes
from sdd_jax.models.described import described, read_configs
from sdd_jax.models.published import PUBLISHED

SD15, SD21, SDXL = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-xl-base-1.0",
)
VAE = 83_653_863
COUNTS = {
    SD15: {"unet": 859_520_964, "vae": VAE, "text_encoder": 123_060_480},
    SD21: {"unet": 865_910_724, "vae": VAE, "text_encoder": 340_387_840},
    SDXL: {"unet": 2_567_463_684, "vae": VAE, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize(
    "name", [SD15, pytest.param(SD21, marks=pytest.mark.slow), pytest.param(SDXL, marks=pytest.mark.slow)]
)
def test_published_configs_have_the_published_parameter_counts(name):
    shapes = expected_shapes(PUBLISHED[name])
    assert {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()} == COUNTS[name]


def test_the_versions_differ_where_they_should():
    base, v = PUBLISHED["stabilityai/stable-diffusion-2-1-base"], PUBLISHED[SD21]
    assert base["unet"] == {**v["unet"], "sample_size": 64}
    assert "prediction_type" not in base["scheduler"] and v["scheduler"]["prediction_type"] == "v_prediction"


def test_shapes_stand_in_for_weights(tiny_world, tiny_model):
    bundle, shapes = sdd_jax.load(f"shapes:{tiny_world}", dtype=jnp.bfloat16)
    real, params = tiny_model
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
    ids = bundle.tokenize(["a smiling lion"])
    np.testing.assert_array_equal(ids, real.tokenize(["a smiling lion"]))
    context, pooled = bundle.embed_text(shapes, jnp.asarray(ids))
    assert (context.shape, pooled) == ((1, 40, 16), None) and isinstance(context, jax.ShapeDtypeStruct)
    image = jnp.zeros((2, 64, 64, 3))
    assert bundle.encode(shapes["vae"], image).shape == bundle.encode(shapes["vae"], image, jax.random.key(0)).shape
    z = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.float32)
    assert bundle.decode(shapes["vae"], z).shape == image.shape


def test_random_weights_run_and_repeat(tiny_world, compile_quickly):
    bundle, params = sdd_jax.load(f"random:{tiny_world}")
    again = sdd_jax.load(f"random:{tiny_world}")[1]
    jax.tree.map(np.testing.assert_array_equal, params, again)
    z, context = jnp.ones((1, 16, 16, 4)), jnp.ones((1, 3, 16))
    out = jax.jit(bundle.denoise)(params["unet"], z, jnp.ones((1,), jnp.int32), context)
    assert out.shape == z.shape and bool(jnp.isfinite(out).all())
    assert bundle.source == bundle.content_hash == f"random:{tiny_world}", "a run against them names them"


def test_a_unet_that_reads_the_guidance_scale(tiny_world):
    bundle, shapes = sdd_jax.load(f"shapes:{tiny_world}+w")
    assert bundle.configs["unet"]["time_cond_proj_dim"] == 512
    assert shapes["unet"]["time_embedding"]["cond_proj"]["kernel"].shape == (512, 8)


def test_names(tiny_world):
    assert described("shapes:a/b") == ("shapes", "a/b") and described("random:portraits") == ("random", "portraits")
    assert described("portraits") is None and described("other:x") is None
    assert read_configs("portraits").keys() >= {"unet", "vae", "text_encoder", "scheduler"}
    with pytest.raises(FileNotFoundError, match="no directory and not a published model"):
        sdd_jax.load("shapes:nobody/nothing")
