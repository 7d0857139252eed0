"""IR-SE50 against a PyTorch counterpart, its crop against PyTorch's pooling, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models import irse
from sdd_jax.models.irse import IRSE, IRSEConfig
from sdd_jax.objectives.identity import FaceIdentity

torch = pytest.importorskip("torch")
from torch_parity import nchw, relative_error  # noqa: E402
from torch_style import Recogniser, randomised  # noqa: E402

pytestmark = pytest.mark.usefixtures("compile_quickly")
TOLERANCE = 1e-4
SMALL = {"units": (2, 1, 2, 1), "widths": (8, 12, 16, 24), "reduction": 4}
SIDE, FEATURES = 48, 20


@pytest.fixture(scope="module")
def small():
    theirs = randomised(Recogniser(**SMALL, side=SIDE, features=FEATURES))
    return theirs, {name: value.numpy() for name, value in theirs.state_dict().items() if value.is_floating_point()}


def image(side, seed=0, batch=2):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


def convert(tensors, **changes):
    settings = {"side": SIDE, "source": "file.pth", "features": FEATURES, **changes}
    return irse.recogniser_params(tensors, IRSEConfig(**SMALL), **settings)


def test_embeddings_match_pytorch(small):
    """Every tensor is random: a skipped statistic, slope or gate, or a head flattened channels last, would show."""
    theirs, tensors = small
    x = image(SIDE)
    with torch.no_grad():
        want = theirs(nchw(x))
    got = jax.jit(IRSE(IRSEConfig(**SMALL), FEATURES).apply)({"params": convert(tensors)}, x)
    assert relative_error(got, want) < TOLERANCE
    wrong = dict(tensors)
    kernel = wrong["output_layer.3.weight"]
    wrong["output_layer.3.weight"] = kernel.reshape(FEATURES, 3, 3, -1).transpose(0, 3, 1, 2).reshape(kernel.shape)
    got = jax.jit(IRSE(IRSEConfig(**SMALL), FEATURES).apply)({"params": convert(wrong)}, x)
    assert relative_error(got, want) > 0.1


def test_the_published_file_has_343_tensors_and_54_counters():
    state = Recogniser().state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(state) == 397 and len(counters) == 54
    shapes = jax.eval_shape(IRSE().init, jax.random.key(0), jnp.zeros((1, 112, 112, 3)))["params"]
    assert len(jax.tree.leaves(shapes)) == 343
    tensors = {name: value.numpy() for name, value in state.items() if value.is_floating_point()}
    assert sum(value.size for value in tensors.values()) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    irse.recogniser_params(tensors, IRSEConfig(), source="model_ir_se50.pth")


@pytest.mark.slow
def test_the_full_size_matches_pytorch(tmp_path):
    theirs = randomised(Recogniser())
    torch.save(theirs.state_dict(), tmp_path / "model_ir_se50.pth")
    faces = image(256)
    with torch.no_grad():
        want = theirs(torch.nn.functional.adaptive_avg_pool2d(nchw(faces)[:, :, 35:223, 32:220], 112))
    got = jax.jit(irse.recognise)(irse.load_ir_se50(tmp_path / "model_ir_se50.pth"), faces)
    error = relative_error(got, want)
    print(f"IR-SE50: relative error {error:.2g}")
    assert error < TOLERANCE


@pytest.mark.parametrize("side", [64, 256, 512])
def test_the_crop_is_the_losss(side):
    x = image(side, batch=1)
    pool = torch.nn.functional.adaptive_avg_pool2d
    want = pool(pool(nchw(x), 256)[:, :, 35:223, 32:220], 112)
    got = irse.cropped_face(jnp.asarray(x))
    assert got.shape == (1, 112, 112, 3) and relative_error(got, want) < 1e-5


def test_random_recognisers_have_the_published_shape():
    params = irse.random_recogniser()
    embeddings = jax.eval_shape(FaceIdentity().embed, {"identity": params}, jnp.zeros((2, 64, 64, 3)))
    assert embeddings.shape == (2, 512) and len(jax.tree.leaves(params)) == 343
    unit = params["body_3"]
    assert np.all(unit["norm1"]["running_var"] == 1) and not np.any(unit["norm1"]["running_mean"])
    assert np.std(unit["conv1"]["kernel"]) == pytest.approx((9 * 64) ** -0.5, rel=0.02)


def test_statistics_are_not_trained(small):
    params = convert(small[1])
    module = IRSE(IRSEConfig(**SMALL), FEATURES)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, image(SIDE)) ** 3)))(params)
    norm = grads["body_0"]["norm1"]
    assert not np.any(norm["running_mean"]) and not np.any(norm["running_var"])
    assert np.any(norm["scale"]) and np.any(grads["body_0"]["prelu"]["scale"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("body.1.res_layer.4.running_var"), "file.pth.*1 missing: body.1.norm2.running_var"),
        (lambda t: t.update({"body.9.res_layer.0.bias": np.zeros(3, np.float32)}), "file.pth.*1 unexpected: body.9"),
        (lambda t: t.update({"output_layer.3.weight": np.zeros((20, 24), np.float32)}), "1 of the wrong shape: out"),
    ],
)
def test_other_tensors_are_one_line(small, change, message):
    tensors = dict(small[1])
    change(tensors)
    with pytest.raises(ValueError, match=message) as error:
        convert(tensors)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": (1, 1)}, "give both for each stage"),
        ({"reduction": 128}, "reduction=128 leaves nothing"),
        ({"groups": 24}, "groups=24 does not divide"),
    ],
)
def test_impossible_shapes(settings, message):
    with pytest.raises(ValueError, match=message):
        IRSEConfig(**settings)


def test_group_norm_has_no_statistics():
    config = IRSEConfig(**SMALL, groups=4)
    shapes = jax.eval_shape(IRSE(config, FEATURES).init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    assert set(shapes["body_0"]["norm1"]) == {"scale", "bias"}
