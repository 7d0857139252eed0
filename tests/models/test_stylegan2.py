"""StyleGAN2's generator against a PyTorch counterpart written for these tests, and what it is on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_stylegan2 as reference  # noqa: E402
from torch_parity import relative_error  # noqa: E402

from sdd_jax.models.stylegan2 import (  # noqa: E402
    Noises,
    StyleGAN2Config,
    broadcast_codes,
    init_generator,
    make_generator,
    mean_code,
    truncate,
)
from sdd_jax.models.stylegan2_layers import blur_kernel, filter_taps, modulated_conv, upfirdn  # noqa: E402
from sdd_jax.models.stylegan_convert import params_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("compile_quickly")
TOLERANCE = 1e-4
CONFIG = StyleGAN2Config(
    size=32, style_dim=12, mapping_layers=3, channel_multiplier=1, channel_base=256, max_channels=20
)


@pytest.fixture(scope="module")
def network():
    """(PyTorch state dict, functions, parameters) of random weights: no tensor is zero or one."""
    state = reference.random_state(CONFIG.size, CONFIG.style_dim, CONFIG.mapping_layers, CONFIG.channels)
    assert all(value.abs().min() > 0 for value in state.values())
    return state, make_generator(CONFIG), params_of(reference.numpy_state(state), CONFIG, "random")


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(1).standard_normal((2, CONFIG.num_ws, CONFIG.style_dim)).astype(np.float32)


@pytest.fixture(scope="module")
def images(network, codes):
    """{noise: (image, styles of the codes, image of those styles)}, from one compiled program."""
    _, generator, params = network

    @jax.jit
    def run(params, ws):
        styles = generator.styles(params, ws)
        ways = {}
        for noise in (None, "const"):
            ways[noise or "none"] = (
                generator.synthesis(params, ws, noise),
                generator.synthesis_from_styles(params, styles, noise),
            )
        return styles, ways

    return run(params, codes)


def test_mapping(network):
    state, generator, params = network
    z = np.random.default_rng(0).standard_normal((3, CONFIG.style_dim)).astype(np.float32)
    with torch.no_grad():
        want = reference.mapping(state, torch.from_numpy(z))
    run = jax.jit(generator.mapping)
    assert relative_error(run(params, z), want) < TOLERANCE
    draws = jax.random.normal(jax.random.key(0), (3, CONFIG.style_dim))
    np.testing.assert_allclose(
        mean_code(generator, params, jax.random.key(0), 3), run(params, draws).mean(0), rtol=1e-4
    )


@pytest.mark.parametrize("noise", ["none", "const"])
def test_synthesis(network, codes, images, noise):
    state, (_, ways) = network[0], images
    with torch.no_grad():
        want, _ = reference.synthesis(
            state, torch.from_numpy(codes), reference.buffers(state) if noise == "const" else None
        )
    assert relative_error(ways[noise][0], want) < TOLERANCE


def test_noise_matters(images):
    none, const = (images[1][noise][0] for noise in ("none", "const"))
    assert float(jnp.abs(none - const).max()) > 0.05


def test_style_space(network, codes, images):
    """Styles are the counterpart's, in order; the image of styles is that of the codes they came from."""
    styles, ways = images
    with torch.no_grad():
        _, want = reference.synthesis(network[0], torch.from_numpy(codes))
    assert [s.shape[1] for s in styles] == list(CONFIG.style_widths) and len(styles) == len(want)
    assert all(relative_error(a, b) < TOLERANCE for a, b in zip(styles, want, strict=True))
    for image, from_styles in ways.values():
        np.testing.assert_array_equal(image, from_styles)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution(demodulate, up):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 5, 6, 7)), rng.standard_normal((3, 3, 7, 4))
    style = 1 + rng.standard_normal((2, 7))
    x, kernel, style = (a.astype(np.float32) for a in (x, kernel, style))
    taps = (1.0, 2.0, 4.0, 1.0)  # not a palindrome: the filter's direction shows
    got = modulated_conv(x, kernel, style, demodulate=demodulate, up_taps=filter_taps(taps, up=2) if up else None)
    as_torch = [
        torch.from_numpy(np.ascontiguousarray(a)) for a in (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1))
    ]
    blur = torch.from_numpy(blur_kernel(taps, up=2)) if up else None
    want = reference.modulated(*as_torch, torch.from_numpy(style), demodulate, blur)
    assert relative_error(got, want) < TOLERANCE


def test_demodulated_outputs_have_unit_deviation():
    """Equation 3's purpose, for unit normal inputs and any style."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 48, 48, 32)).astype(np.float32)
    kernel = 5 * rng.standard_normal((3, 3, 32, 8)).astype(np.float32)
    y = modulated_conv(x, kernel, np.exp(rng.standard_normal((2, 32))).astype(np.float32))
    np.testing.assert_allclose(np.asarray(y)[:, 1:-1, 1:-1].std((1, 2)), 1.0, rtol=0.1)


def test_upsampling_by_hand():
    """[1, 3, 3, 1] / 4 after zero-stuffing: each pixel is 3/4 of the nearest and 1/4 of the next."""
    x = jnp.asarray([[1.0, 3.0]]).reshape(1, 1, 2, 1)
    out = upfirdn(x, filter_taps((1, 3, 3, 1), up=2), up=2, pad=(2, 1))
    across = np.asarray([0.75, 0.75 * 1 + 0.25 * 3, 0.25 * 1 + 0.75 * 3, 0.75 * 3])
    np.testing.assert_allclose(out[0, :, :, 0], 0.75 * across[None].repeat(2, 0), rtol=1e-6)
    assert blur_kernel((1, 3, 3, 1), up=2).sum() == 4.0


def test_numbers_of_the_published_sizes():
    """18 codes, 26 layers of StyleSpace with 9088 elements, (Wu et al. 2021) and 30.37M trained parameters at 1024
    px; sizes are traced only."""
    full = StyleGAN2Config(size=1024)
    assert full.num_ws == 18 and [full.channels(r) for r in full.resolutions] == [512] * 4 + [512, 256, 128, 64, 32]
    assert len(full.style_widths) == 26 and sum(full.style_widths) == 9088
    assert full.code_of_style[:8] == (0, 1, 1, 2, 3, 3, 4, 5) and full.code_of_style[-1] == 17
    params = jax.eval_shape(lambda key: init_generator(key, full), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves({k: v for k, v in params.items() if k != "noises"}))
    assert round(count / 1e6, 2) == 30.37
    ws = jax.ShapeDtypeStruct((2, 18, 512), jnp.float32)
    image = jax.eval_shape(lambda p, w: make_generator(full, jnp.bfloat16).synthesis(p, w, "const"), params, ws)
    assert image.shape == (2, 1024, 1024, 3) and image.dtype == jnp.float32
    assert [StyleGAN2Config(size=s).num_ws for s in (512, 256, 64)] == [16, 14, 10]


def test_fresh_noise_differs_and_constant_noise_is_not_trained(network, codes):
    _, generator, params = network
    buffers = params["noises"]
    module = Noises(CONFIG.noise_sizes)
    value, gradient = jax.value_and_grad(lambda p: sum(map(jnp.sum, module.apply({"params": p}))))(buffers)
    np.testing.assert_allclose(value, sum(np.sum(noise) for noise in buffers.values()), rtol=1e-4)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in gradient.values())
    draw = jax.jit(lambda key: generator.synthesis(params, codes[:1], key))
    assert float(jnp.abs(draw(jax.random.key(0)) - draw(jax.random.key(1))).max()) > 0.05


def test_truncation():
    w, mean = jnp.asarray([[1.0, 3.0]]), jnp.asarray([2.0, 1.0])
    np.testing.assert_allclose(truncate(w, mean, 0.5), [[1.5, 2.0]])
    ws = broadcast_codes(w, 3)
    np.testing.assert_array_equal(truncate(ws, mean, 1.0), ws)
    np.testing.assert_array_equal(truncate(ws, jnp.tile(mean, (3, 1)), 0.0)[0], jnp.tile(mean, (3, 1)))


def test_wrong_arguments_are_named(network, codes):
    _, generator, params = network
    with pytest.raises(ValueError, match="8, 16, 32"):
        StyleGAN2Config(size=48)
    with pytest.raises(ValueError, match=r"\[b, 8, 12\], not \(2, 7, 12\)"):
        generator.styles(params, codes[:, :7])
    with pytest.raises(ValueError, match="11 layers"):
        generator.synthesis_from_styles(params, [codes[:, 0]])
    with pytest.raises(ValueError, match="use None, 'const' or a key"):
        generator.synthesis(params, codes, "random")
