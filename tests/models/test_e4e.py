"""e4e against a PyTorch counterpart: its codes, aligned corners, its checkpoints, and what is refused."""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdd_jax.models import e4e
from sdd_jax.models.e4e import E4E, E4EConfig
from sdd_jax.models.irse import IRSEConfig

torch = pytest.importorskip("torch")
from torch_parity import nchw, relative_error  # noqa: E402
from torch_style import Editor, randomised  # noqa: E402

pytestmark = pytest.mark.usefixtures("compile_quickly")
TOLERANCE = 1e-4
BODY = {"units": (1, 2, 1, 2), "widths": (4, 6, 8, 12), "reduction": 2}
CONFIG = E4EConfig(num_ws=9, style_dim=12, side=64, body=IRSEConfig(**BODY))


@pytest.fixture(scope="module")
def small():
    """(their network, its float tensors under the checkpoint's names, images, its codes)."""
    theirs = randomised(Editor(9, 12, 64, **BODY))
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items() if value.is_floating_point()}
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        return theirs, tensors, images, theirs(nchw(images))


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda params, average, image: e4e.encode(CONFIG, params, average, image))


def checkpoint(theirs, average):
    """As the published file is laid out."""
    state = {f"encoder.{name}": value for name, value in theirs.state_dict().items()}
    state["decoder.input.input"] = torch.zeros(1, 8, 4, 4)
    return {"state_dict": state, "latent_avg": average, "opts": {"encoder_type": "Encoder4Editing", "lr": 1e-4}}


def test_codes_match_pytorch_from_the_published_layout(small, run, tmp_path):
    theirs, _, images, want = small
    average = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    torch.save(checkpoint(theirs, average), tmp_path / "e4e.pt")
    loaded = e4e.load_e4e(tmp_path / "e4e.pt")
    assert loaded.config == CONFIG, "which the shapes of the tensors say"
    got = run(loaded.params, loaded.latent_avg, images)
    assert relative_error(got, want + average) < TOLERANCE
    assert relative_error(got, want) > 0.1, "latent_avg matters"


def test_corners_are_aligned(small, run):
    theirs, tensors, images, _ = small
    with torch.no_grad():
        wrong = theirs(nchw(images), align_corners=False)
    got = run(e4e.encoder_params(tensors, CONFIG, source="file"), np.zeros((9, 12), np.float32), images)
    assert relative_error(got, wrong) > 100 * TOLERANCE
    x = np.random.default_rng(1).standard_normal((1, 3, 3, 2)).astype(np.float32)
    want = torch.nn.functional.interpolate(nchw(x), (6, 6), mode="bilinear", align_corners=True)
    assert relative_error(e4e.upsampled(jnp.asarray(x), 6), want) < 1e-6
    line = jnp.asarray([0.0, 3.0])[None, :, None, None] * jnp.ones((1, 2, 2, 1))
    np.testing.assert_allclose(e4e.upsampled(line, 4)[0, :, 0, 0], [0, 1, 2, 3], atol=1e-6)


def test_the_first_code_and_offsets(small):
    """Codes of a level read the level's map: an offset of code 8 moves code 8 alone, the first style moves all."""
    tensors = small[1]
    moved = {}
    for name in ("styles.0.linear.bias", "styles.8.linear.bias"):
        moved[name] = {**tensors, name: tensors[name] + 1}
    module, image = E4E(CONFIG), jnp.asarray(small[2][:1])
    apply = jax.jit(lambda params: module.apply({"params": params}, image))
    base = apply(e4e.encoder_params(tensors, CONFIG, source="file"))
    first, last = (apply(e4e.encoder_params(t, CONFIG, source="file")) - base for t in moved.values())
    np.testing.assert_allclose(first, 1.0, atol=1e-4)
    np.testing.assert_allclose(last[:, :8], 0.0, atol=1e-6)
    np.testing.assert_allclose(last[:, 8], 1.0, atol=1e-4)


def test_the_published_encoder_has_569_tensors():
    with torch.device("meta"):
        state = {k: v for k, v in Editor().state_dict().items() if v.is_floating_point()}
    assert len(state) == 569
    shapes = jax.eval_shape(E4E().init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))["params"]
    leaves = jax.tree.leaves(shapes)
    assert len(leaves) == 569 and sum(x.size for x in leaves) == sum(v.numel() for v in state.values())
    empty = {name: np.broadcast_to(np.float32(0), value.shape) for name, value in state.items()}
    assert e4e.encoder_config_of(empty) == E4EConfig()


@pytest.mark.slow
def test_the_full_size_matches_pytorch():
    theirs = randomised(Editor())
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items() if value.is_floating_point()}
    config, image = E4EConfig(), np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(nchw(image))
    params = e4e.encoder_params(tensors, config, source="file")
    got = jax.jit(lambda params, image: E4E(config).apply({"params": params}, image))(params, image)
    error = relative_error(got, want)
    print(f"e4e at 256 px, 18 codes: relative error {error:.2g}")
    assert got.shape == (1, 18, 512) and error < TOLERANCE


def test_a_directory_round_trip(tmp_path, small):
    params = e4e.encoder_params(small[1], CONFIG, source="file")
    average = np.arange(12, dtype=np.float32)[None].repeat(9, 0)
    e4e.save_e4e(e4e.Encoder(CONFIG, params, average), tmp_path / "encoder")
    loaded = e4e.load_e4e(tmp_path / "encoder")
    assert loaded.config == CONFIG
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), loaded.params, params)
    larger = np.repeat(np.repeat(small[2], 2, 1), 2, 2)
    shape = jax.eval_shape(lambda image: e4e.encode(CONFIG, loaded.params, loaded.latent_avg, image), larger).shape
    assert shape == (2, 9, 12)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            {"encoder_type": "GradualStyleEncoder"},
            r"psp.pt: a GradualStyleEncoder \(opts.encoder_type\), .* give an Encoder4Editing, such as e4e_ffhq",
        ),
        ({"encoder_type": "Encoder4Editing", "dataset_type": "cars_encode"}, "'cars_encode'.* reads 192x256.*give one"),
        (argparse.Namespace(encoder_type="Encoder4Editing"), "psp.pt holds an argparse.Namespace.*give .*psp_plain.pt"),
    ],
)
def test_encoders_of_the_same_names_are_told_by_their_opts(tmp_path, small, opts, message):
    torch.save({**checkpoint(small[0], torch.zeros(12)), "opts": opts}, tmp_path / "psp.pt")
    with pytest.raises(ValueError, match=message) as error:
        e4e.load_e4e(tmp_path / "psp.pt")
    assert "\n" not in str(error.value)


def test_without_opts_a_file_is_e4es(tmp_path, small):
    whole = checkpoint(small[0], torch.zeros(12))
    torch.save({key: value for key, value in whole.items() if key != "opts"}, tmp_path / "e4e.pt")
    assert e4e.load_e4e(tmp_path / "e4e.pt").config == CONFIG


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_wrong_files_are_one_line(tmp_path, small):
    theirs, tensors = small[:2]
    average = torch.zeros(12)
    torch.save({**checkpoint(theirs, average), "opts": Malicious(tmp_path / "made")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="code.pt.*refused"):
        e4e.load_e4e(tmp_path / "code.pt")
    assert not (tmp_path / "made").exists()
    named = {f"encoder.{name}": value for name, value in tensors.items()}
    cases = {
        "other.safetensors": (
            {"decoder.x": np.zeros(2, np.float32)},
            "holds no e4e encoder: it has no tensor 'encoder",
        ),
        "bare.safetensors": (named, "has no 'latent_avg'"),
        "average.safetensors": ({**named, "latent_avg": np.zeros((3, 12), np.float32)}, r"latent_avg is \(3, 12\)"),
        "less.safetensors": (
            {k: v for k, v in {**named, "latent_avg": average.numpy()}.items() if "latlayer2.bias" not in k},
            "less.safetensors.*1 missing: latlayer2.bias",
        ),
        "more.safetensors": (
            {**named, "latent_avg": average.numpy(), "encoder.body.0.extra.bias": np.zeros(1, np.float32)},
            "1 unexpected: body.0.extra.bias",
        ),
    }
    for name, (content, message) in cases.items():
        save_file(content, tmp_path / name)
        with pytest.raises(ValueError, match=message) as error:
            e4e.load_e4e(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.pt: no such weights file"):
        e4e.load_e4e(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 48}, "side=48: the encoder reads"),
        ({"body": IRSEConfig(units=(1,), widths=(16,))}, "four stages"),
        ({"num_ws": 0}, "num_ws=0"),
    ],
)
def test_impossible_shapes(settings, message):
    with pytest.raises(ValueError, match=message):
        E4EConfig(**settings)
