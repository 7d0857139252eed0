"""Adapters on the tiny teacher: bit-equal to the UNet at the start, and who gets the first gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.jobs.ccd.conditional import AdapterConfig, controlnet_config, make_adapter
from sdd_jax.models.controlnet import init_controlnet, make_controlnet
from sdd_jax.models.t2i_adapter import T2IAdapterModel, init_t2i_adapter, t2i_config
from sdd_jax.models.unet import apply_residuals, init_unet, make_unet
from sdd_jax.types import Residuals

KINDS = ("controlnet", "mu", "t2i")
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def inputs(tiny_model):
    bundle, _ = tiny_model
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "z": draw(2, 16, 16, 4),
        "t": jnp.asarray([20, 900]),
        "context": draw(2, 5, 16),
        "condition": jnp.tanh(draw(2, 64, 64, 3)),
        "frozen": {"vae": tiny_model[1]["vae"]},
    }


def build(kind, bundle):
    return make_adapter(AdapterConfig(kind=kind, embedding_channels=(4, 4, 8)), bundle)


@pytest.fixture(scope="module")
def runs(tiny_model, inputs):
    """Per kind: initial parameters, residuals, output, and the gradient of a loss on the output."""
    bundle, params = tiny_model
    unet = params["unet"]
    results = {}
    for kind in KINDS:
        adapter = build(kind, bundle)
        start = jax.jit(adapter.init)(jax.random.key(0), unet)

        def loss(start, inputs, adapter=adapter):
            z, t, context = inputs["z"], inputs["t"], inputs["context"]
            hint = adapter.prepare(inputs["frozen"], inputs["condition"])
            residuals = adapter.residuals(start, hint, z, t, context)
            out = bundle.denoise(unet, z, t, context, residuals=residuals)
            return jnp.mean((out - z) ** 2), (residuals, out)

        (_, (residuals, out)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(start, inputs)
        results[kind] = start, residuals, out, grads
    return results


@pytest.fixture(scope="module")
def plain(tiny_model, inputs):
    """The teacher's encoder features, without an adapter."""
    bundle, params = tiny_model
    network = make_unet(bundle.configs["unet"])

    @jax.jit
    def run(unet, z, t, context):
        return network.apply({"params": unet}, z, t, context, method="encode")

    return run(params["unet"], inputs["z"], inputs["t"], inputs["context"])


def test_zero_inner_features_change_no_bit(tiny_model, inputs, runs):
    """One program, with what a fresh T2I-Adapter says and with nothing at all in its place."""
    bundle, params = tiny_model
    inner = runs["t2i"][1].inner
    assert not any(bool(jnp.any(x)) for x in inner)
    run = jax.jit(
        lambda inner, z: bundle.denoise(
            params["unet"], z, inputs["t"], inputs["context"], residuals=Residuals((), None, inner=inner)
        )
    )
    silent, minus = run(inner, inputs["z"]), run(jax.tree.map(lambda x: -0.0 * x, inner), inputs["z"])
    np.testing.assert_array_equal(silent, minus)
    assert bool(jnp.any(run(jax.tree.map(jnp.ones_like, inner), inputs["z"]) != silent))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_no_bit_of_the_encoders_features(runs, plain, kind):
    """The decoder then receives the teacher's features."""
    _, residuals, _, _ = runs[kind]
    features = plain
    skips, mid = apply_residuals(features.down, features.mid, residuals)
    for found, want in zip((*skips, mid), (*features.down, features.mid), strict=True):
        np.testing.assert_array_equal(found, want)
    if kind == "t2i":
        return
    ones = residuals._replace(
        down=jax.tree.map(jnp.ones_like, residuals.down), mix=None if residuals.mix is None else jnp.ones(())
    )
    assert bool(jnp.any(apply_residuals(features.down, features.mid, ones)[0][0] != features.down[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_no_bit_of_the_output(tiny_model, inputs, runs, kind):
    """One program answers with it and without: two programs may round differently."""
    bundle, params = tiny_model
    adapter = build(kind, bundle)

    @jax.jit
    def both(start, unet, inputs):
        asked = inputs["z"], inputs["t"], inputs["context"]
        hint = adapter.prepare(inputs["frozen"], inputs["condition"])
        residuals = adapter.residuals(start, hint, *asked)
        return bundle.denoise(unet, *asked, residuals=residuals), bundle.denoise(unet, *asked)

    found, teacher = both(runs[kind][0], params["unet"], inputs)
    assert float(jnp.abs(teacher).max()) > 0.1
    np.testing.assert_array_equal(found, teacher)


def test_at_mu_zero_only_mu_has_a_gradient(runs):
    grads = runs["mu"][3]
    assert float(jnp.abs(grads["mu"])) > 1e-6
    assert all(not bool(jnp.any(leaf)) for leaf in jax.tree.leaves(grads["encoder"]))


def test_only_the_zero_convolutions_of_a_fresh_controlnet_have_a_gradient(runs):
    grads = runs["controlnet"][3]["controlnet"]
    for name, subtree in grads.items():
        moved = any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(subtree))
        assert moved == name.startswith(("controlnet_down_blocks", "controlnet_mid_block")), name


def test_the_encoders_start_from_the_unet(runs, tiny_model):
    unet = tiny_model[1]["unet"]
    encoder = runs["mu"][0]["encoder"]
    assert not any(name.startswith(("up_blocks", "conv_out", "conv_norm_out")) for name in encoder)
    for copy in (encoder, runs["controlnet"][0]["controlnet"]):
        for name in ("conv_in", "time_embedding", "down_blocks_0", "down_blocks_1", "mid_block"):
            jax.tree.map(np.testing.assert_array_equal, copy[name], unet[name])


@pytest.mark.parametrize("kind", KINDS)
def test_trained_parameters_are_float32_whatever_the_teachers(tiny_model, kind):
    bundle, params = tiny_model
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["unet"])
    shapes = jax.eval_shape(build(kind, bundle).init, jax.random.key(0), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_conditions_are_prepared_once_as_each_network_reads_them(tiny_model, inputs):
    bundle, params = tiny_model
    image = build("controlnet", bundle).prepare(inputs["frozen"], jnp.asarray([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(image, [0.0, 0.5, 1.0])
    prepare = jax.jit(build("mu", bundle).prepare)
    np.testing.assert_allclose(
        prepare(inputs["frozen"], inputs["condition"]),
        jax.jit(bundle.encode)(params["vae"], inputs["condition"]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_mu_mixes_the_two_encoders(tiny_model, inputs):
    """At mu = 1 the decoder hears the copy alone, at mu = .5 the mean of both encoders' features."""
    bundle, params = tiny_model
    adapter = build("mu", bundle)
    start = jax.jit(adapter.init)(jax.random.key(0), params["unet"])
    z, t, context = inputs["z"], inputs["t"], inputs["context"]
    hint = jax.random.normal(jax.random.key(1), z.shape)

    @jax.jit
    def features(mu, z, hint):
        return adapter.residuals({**start, "mu": mu}, hint, z, t, context)

    of_hint = features(jnp.asarray(1.0), z, hint)
    of_z = features(jnp.asarray(1.0), z, z)
    assert float(of_hint.mix) == 1.0
    run = jax.jit(lambda residuals: bundle.denoise(params["unet"], z, t, context, residuals=residuals))
    halves = jax.tree.map(lambda a, b: 0.5 * (a + b), of_hint._replace(mix=None), of_z._replace(mix=None))
    want = run(halves._replace(mix=jnp.asarray(1.0)))
    np.testing.assert_allclose(run(of_hint._replace(mix=jnp.asarray(0.5))), want, rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(run(of_hint) - want).max()) > 1e-3


def test_an_embedding_of_another_scale_is_refused_in_one_line(tiny_model):
    with pytest.raises(ValueError, match=r"embedding_channels=\(4, 8\) scales by 2, the latents of .* by 4") as error:
        controlnet_config(AdapterConfig(embedding_channels=(4, 8)), tiny_model[0])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="kind='lora' is not an adapter; use controlnet, mu, t2i, none"):
        AdapterConfig(kind="lora")


def test_the_sizes_on_stable_diffusion_15():
    """The paper: 364M trainable of 1.22B with a frozen UNet. 12 skips and the middle; a T2I-Adapter is far smaller."""
    sd15 = {
        "cross_attention_dim": 768,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "attention_head_dim": 8,
        "layers_per_block": 2,
    }
    encoder = {name: value for name, value in sd15.items() if name != "up_block_types"}

    def millions(init, module):
        shapes = jax.eval_shape(lambda key: init(module, key), jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6

    control = make_controlnet(encoder)
    trained, unet = millions(init_controlnet, control), millions(init_unet, make_unet(sd15))
    assert trained == pytest.approx(364, rel=0.01) and trained + unet == pytest.approx(1220, rel=0.01)
    inputs = {"z": (1, 8, 8, 4), "t": (1,), "context": (1, 2, 768), "condition": (1, 64, 64, 3)}
    said = jax.eval_shape(
        lambda key: control.init_with_output(key, **{name: jnp.zeros(shape) for name, shape in inputs.items()})[0],
        jax.random.key(0),
    )
    assert len(said.down) == 12 and said.mid.shape == (1, 1, 1, 1280)
    assert 70 < millions(init_t2i_adapter, T2IAdapterModel(t2i_config(sd15, 8))) < 80
