"""Published generators' files: every name and layout, both ways, and what is refused."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_stylegan2 as reference  # noqa: E402
import torch_stylegan2_ada as ada  # noqa: E402
from torch_parity import relative_error  # noqa: E402

from sdd_jax.models import stylegan_convert  # noqa: E402
from sdd_jax.models.stylegan2 import StyleGAN2Config, broadcast_codes, generator_config_of, make_generator  # noqa: E402
from sdd_jax.models.stylegan_convert import (  # noqa: E402
    LoadedGenerator,
    load_generator,
    params_of,
    rename_ada,
    save_generator,
    state_dict_of,
)

CONFIG = StyleGAN2Config(size=16, style_dim=6, mapping_layers=2, channel_multiplier=1, channel_base=64, max_channels=7)


@pytest.fixture(scope="module")
def state():
    """A 16-px generator of random weights with rosinality's names; 7 channels at 4 and 8 px, 4 at 16."""
    return reference.random_state(CONFIG.size, CONFIG.style_dim, CONFIG.mapping_layers, CONFIG.channels)


@pytest.fixture(scope="module")
def latent_avg():
    return torch.linspace(-1, 1, CONFIG.style_dim)


def assert_loads(loaded, state, latent_avg):
    assert loaded.config == CONFIG
    np.testing.assert_array_equal(loaded.latent_avg, latent_avg)
    back = state_dict_of(loaded.params, loaded.config)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize("kind", ["rosinality", "e4e", "safetensors"])
def test_every_file_gives_the_same_generator(kind, state, latent_avg, tmp_path):
    """What is read is written back bit by bit under rosinality's names, resampling kernels included."""
    path = tmp_path / "generator.pt"
    others = {"encoder.input_layer.0.weight": torch.zeros(2), "opts": {"size": 16, "name": "text"}}
    match kind:
        case "rosinality":
            torch.save({"g_ema": state, "g": {k: v + 1 for k, v in state.items()}, "latent_avg": latent_avg}, path)
        case "e4e":
            decoder = {f"decoder.{key}": value for key, value in state.items()}
            torch.save(
                {"state_dict": decoder | {"encoder.x": torch.zeros(2)}, "latent_avg": latent_avg, **others}, path
            )
        case "safetensors":
            from safetensors.torch import save_file

            path = path.with_suffix(".safetensors")
            save_file({**{k: v.contiguous() for k, v in state.items()}, "latent_avg": latent_avg}, path)
    assert_loads(load_generator(path), state, latent_avg)


@pytest.mark.usefixtures("compile_quickly")
def test_adas_state_dict_draws_its_images(tmp_path):
    """Of random weights under NVIDIA's names, by the layers as NVIDIA's program computes them, kernels fused or not."""
    config = dataclasses.replace(CONFIG, size=32, channel_base=128)
    state = ada.random_state(config.size, config.style_dim, config.mapping_layers, config.channels)
    torch.save(state, tmp_path / "ada.pt")
    loaded = load_generator(tmp_path / "ada.pt")
    assert loaded.config == config
    np.testing.assert_array_equal(loaded.latent_avg, state["mapping.w_avg"])
    z = np.random.default_rng(0).standard_normal((2, config.style_dim), np.float32)
    offsets = np.random.default_rng(1).standard_normal((2, config.num_ws, config.style_dim), np.float32)
    generator = make_generator(config)

    @jax.jit
    def draw(params):
        w = generator.mapping(params, z)
        return w, generator.synthesis(params, broadcast_codes(w, config.num_ws) + offsets, "const")

    w, image = draw(loaded.params)
    with torch.no_grad():
        their_w = ada.mapping(state, torch.from_numpy(z))
        ws = their_w[:, None] + torch.from_numpy(offsets)
        fused, unfused = (ada.synthesis(state, ws, fused) for fused in (True, False))
        turned = {k: v.flip(2, 3) if k.endswith("conv0.weight") else v for k, v in state.items()}
        correlated = ada.synthesis(turned, ws)
    errors = [relative_error(w, their_w), relative_error(image, fused), relative_error(image, unfused)]
    print("ADA's mapping, fused and unfused synthesis: relative errors", *(f"{error:.2g}" for error in errors))
    assert max(errors) < 1e-4
    assert relative_error(image, correlated) > 0.1, "the doubling layers' kernels have a direction"


def test_a_saved_directory_is_half_precision(state, latent_avg, tmp_path):
    params = params_of(reference.numpy_state(state), CONFIG, "memory")
    save_generator(LoadedGenerator(CONFIG, params, latent_avg.numpy()), tmp_path / "style")
    loaded = load_generator(tmp_path / "style")
    halves = {key: value.half().float() for key, value in state.items()}
    assert_loads(loaded, halves, latent_avg.half().float())
    assert (tmp_path / "style" / "model.safetensors").stat().st_size < 2.2 * sum(
        v.numel() for v in state.values()
    ) + 9999


@pytest.mark.parametrize(("size", "count"), [(1024, 171), (512, 153), (256, 135)])
def test_number_of_tensors(size, count):
    """As published; counted from names alone."""
    config = StyleGAN2Config(size=size)
    keys = [e.key for e in stylegan_convert._entries(config)] + list(stylegan_convert._filters(config))
    assert len(keys) == len(set(keys)) == count


@pytest.mark.parametrize(
    ("size", "multiplier", "last"), [(1024, 2, 32), (1024, 1, 16), (512, 2, 64), (256, 2, 128), (256, 1, 64)]
)
def test_widths_are_read_off_the_published_shapes(size, multiplier, last):
    want = StyleGAN2Config(size=size, channel_multiplier=multiplier)
    assert want.channels(size) == last
    shapes = {f"to_rgbs.{j}.conv.weight": (1, 3, want.channels(8 * 2**j), 1, 1) for j in range(size.bit_length() - 3)}
    shapes |= {f"style.{i}.weight": (512, 512) for i in range(1, 9)}
    shapes |= {"input.input": (1, 512, 4, 4), "conv1.conv.modulation.weight": (512, 512)}
    assert generator_config_of({key: np.empty(shape, np.int8) for key, shape in shapes.items()}) == want


class Hostile:
    """Unpickling this would write a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize(
    ("name", "message"), [("network.pkl", "holds pickled classes"), ("network.pt", "may run code and is refused")]
)
def test_code_is_refused_unread(tmp_path, name, message):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"G_ema": Hostile(tmp_path / "ran")}, protocol=2))
    with pytest.raises(ValueError, match=message) as error:
        load_generator(path)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def changed(state, **changes):
    copy = {key: np.asarray(value) for key, value in state.items()}
    for key, value in changes.items():
        copy.pop(key) if value is None else copy.update({key: value})
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convs.1.noise.weight": None}, "tensors 1 missing: convs.1.noise.weight$"),
        ({"skip.weight": np.ones(2)}, "tensors 1 unexpected: skip.weight$"),
        ({"convs.1.activate.bias": np.ones(3)}, r"convs.1.activate.bias is \(3,\)"),
        ({"to_rgbs.0.upsample.kernel": np.ones((4, 4))}, "to_rgbs.0.upsample.kernel is not the resampling filter"),
        ({"convs.0.conv.blur.kernel": np.ones((2, 2))}, "convs.0.conv.blur.kernel is not the resampling filter"),
    ],
)
def test_a_file_that_does_not_fit_is_named(state, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        params_of(changed(state, **changes), CONFIG, "file.pt")
    assert str(error.value).startswith("file.pt") and "\n" not in str(error.value)


def test_other_networks_are_named(state, tmp_path):
    with pytest.raises(ValueError, match="no tensor 'input.input'"):
        generator_config_of({"conv_in.weight": np.ones((4, 4))})
    with pytest.raises(ValueError, match="class-conditional"):
        rename_ada({"mapping.embed.weight": np.ones((4, 4))}, "file.pt")
    with pytest.raises(ValueError, match="synthesis.b8.skip.weight is not a tensor"):
        rename_ada({"synthesis.b8.skip.weight": np.ones((4, 4, 1, 1))}, "file.pt")
    with pytest.raises(ValueError, match="'backbone.0' is not a tensor"):
        rename_ada({"backbone.0": np.ones(4)}, "file.pt")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_generator(tmp_path / "none.pt")
