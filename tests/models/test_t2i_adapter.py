"""T2I-Adapter against PyTorch diffusers, adapter and UNet; zero at the start; compositions of several adapters."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from sdd_jax.models.adapters import Composition, ControlNetAdapter, MuMixing, NoAdapter, T2IAdapter
from sdd_jax.models.convert import flax_to_torch, torch_to_flax
from sdd_jax.models.save import save_component
from sdd_jax.models.t2i_adapter import T2IAdapterConfig, T2IAdapterModel, init_t2i_adapter, t2i_config
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.types import Residuals

pytestmark = pytest.mark.usefixtures("compile_quickly")
# as Stable Diffusion's: attention at every level but the last
UNET = {
    **tiny.UNET,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
rng = np.random.default_rng(0)


def random_like(tree):
    draw = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: draw.normal(scale=0.3, size=leaf.shape).astype(np.float32), tree)


def shapes(function, *args):
    return jax.eval_shape(lambda key: function(*args, key), jax.random.key(0))


def nchw(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


CONFIG = t2i_config(UNET, 4, in_channels=4)


@pytest.fixture(scope="module")
def params():
    return random_like(shapes(init_t2i_adapter, T2IAdapterModel(CONFIG)))


@pytest.fixture(scope="module")
def features(params):
    """(condition, its features), at a size whose lower level is odd."""
    condition = np.random.default_rng(1).uniform(size=(2, 24, 40, 4)).astype(np.float32)
    run = jax.jit(lambda params, x: T2IAdapterModel(CONFIG).apply({"params": params}, x))
    return condition, run(params, condition)


def test_features_are_diffusers(params, features, tmp_path):
    save_component(params, CONFIG.to_json(), tmp_path / "t2i", "T2IAdapter")
    theirs = diffusers.T2IAdapter.from_pretrained(tmp_path / "t2i").eval()
    condition, found = features
    with torch.no_grad():
        want = theirs(nchw(condition))
    assert [x.shape for x in found] == [(2, 6, 10, 8), (2, 3, 5, 16)]
    for ours, other in zip(found, want, strict=True):
        assert float(jnp.abs(ours).max()) > 0.1
        np.testing.assert_allclose(ours, nhwc(other), rtol=1e-4, atol=1e-4)


def test_the_unet_adds_them_where_diffusers_does(features):
    theirs = diffusers.UNet2DConditionModel(**UNET).eval()
    unet = torch_to_flax({name: value.numpy() for name, value in theirs.state_dict().items()})
    draw = np.random.default_rng(2)
    z, context = (draw.normal(size=size).astype(np.float32) for size in ((2, 6, 10, 4), (2, 5, 16)))
    t = np.asarray([19, 979])
    inner = features[1]
    run = jax.jit(lambda unet, inner: make_unet(UNET).apply(
        {"params": unet}, z, t, context, residuals=Residuals((), None, inner=inner)
    ))  # fmt: skip
    found = run(unet, inner)
    with torch.no_grad():
        out = theirs(
            nchw(z), torch.from_numpy(t), torch.from_numpy(context),
            down_intrablock_additional_residuals=[nchw(x) for x in inner],
        ).sample  # fmt: skip
    np.testing.assert_allclose(found, nhwc(out), rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(found - run(unet, jax.tree.map(jnp.zeros_like, inner))).max()) > 1e-2


def test_a_fresh_adapter_is_silent_and_can_learn():
    adapter = T2IAdapter(config=CONFIG)
    start = jax.jit(adapter.init)(jax.random.key(0), {})
    condition = jnp.asarray(rng.uniform(-1, 1, (1, 16, 16, 4)), jnp.float32)

    def total(start):
        residuals = adapter.residuals(start, adapter.prepare({}, condition), None, None, None)
        return sum(jnp.sum(x * (1 + jnp.arange(x.shape[-1])[None, None, None])) for x in residuals.inner), residuals

    (_, residuals), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(start)
    assert residuals.down == () and residuals.mid is None and len(residuals.inner) == 2
    assert not any(bool(jnp.any(x)) for x in residuals.inner)
    assert float(jnp.abs(grads["t2i"]["adapter"]["conv_in"]["kernel"]).max()) > 1e-3


def test_levels_without_attention_are_reached_after_their_halving():
    """The tiny world's first level has none: both features have the size of its output."""
    config = t2i_config(tiny.UNET, 4)
    assert (config.unshuffle, config.halves) == (8, (False, False))
    features = jax.eval_shape(
        lambda x: T2IAdapterModel(config).init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, 64, 64, 3))
    )
    assert [x.shape for x in features] == [(1, 8, 8, 8), (1, 8, 8, 16)]
    unet = make_unet(tiny.UNET)
    weights = shapes(init_unet, unet)
    inputs = jnp.zeros((1, 16, 16, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 5, 16))

    def run(weights, inner):
        return unet.apply({"params": weights}, *inputs, residuals=Residuals((), None, inner=inner))

    assert jax.eval_shape(run, weights, features).shape == (1, 16, 16, 4)
    with pytest.raises(ValueError, match="1 inner features, the UNet 2 levels"):
        jax.eval_shape(run, weights, features[:1])
    with pytest.raises(ValueError, match=r"feature has shape \(1, 8, 8, 16\); this level of the UNet has"):
        jax.eval_shape(run, weights, features[::-1])
    with pytest.raises(ValueError, match="has no published format"):
        config.to_json()
    sd = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768}
    assert t2i_config(sd, 8) == T2IAdapterConfig((320, 640, 1280, 1280), (False, True, True, True), 8)


def test_a_condition_of_the_wrong_size_is_named(params):
    for shape in ((1, 22, 24, 4), (1, 24, 22, 4), (1, 24, 24, 3)):
        with pytest.raises(ValueError, match="sides that are multiples of 4 and 4 channels"):
            jax.eval_shape(lambda x: T2IAdapterModel(CONFIG).apply({"params": params}, x), jnp.zeros(shape))


class Fixed:
    """An adapter that says what it was given."""

    def __init__(self, *residuals):
        self.said = Residuals(*residuals)

    def init(self, rng, unet):
        return {}

    def prepare(self, frozen, condition):
        return condition

    def residuals(self, params, hint, z_t, t, context, added_cond=None):
        return jax.tree.map(lambda x: x * hint, self.said)


def test_a_composition_is_the_weighted_sum():
    """Two ControlNets and a T2I-Adapter: skips, middle and inner features each from those that speak there."""
    one, two = jnp.ones(3), jnp.full(3, 2.0)
    both = Composition(
        adapters=(Fixed((one, two), one), Fixed((two, two), two), Fixed((), None, None, (one,)), NoAdapter()),
        weights=(0.5, 2.0, 3.0, 1.0),
    )
    params = both.init(jax.random.key(0), {})
    hint = both.prepare({}, (1.0, 10.0, 100.0, None))
    found = both.residuals(params, hint, None, None, None)
    np.testing.assert_allclose(found.down, [[0.5 + 40] * 3, [1.0 + 40] * 3])
    np.testing.assert_allclose(found.mid, [0.5 + 40] * 3)
    np.testing.assert_allclose(found.inner, [[300.0] * 3])
    assert found.mix is None


def test_compositions_that_make_no_sense_are_refused(tiny_model):
    control = ControlNetAdapter(config={})
    with pytest.raises(ValueError, match="1 weights for 2 adapters"):
        Composition(adapters=(control, control), weights=(1.0,))
    mu = MuMixing(model=tiny_model[0], module=make_unet(tiny.UNET))
    with pytest.raises(ValueError, match="cannot be summed"):
        Composition(adapters=(control, mu), weights=(1.0, 1.0))


def test_names_are_diffusers_names(params):
    names = flax_to_torch(params)
    assert {"adapter.conv_in.weight", "adapter.body.1.in_conv.bias", "adapter.body.0.resnets.1.block2.weight"} <= set(
        names
    )
