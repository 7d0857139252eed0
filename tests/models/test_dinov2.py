"""DINOv2 against transformers, reduced, at its own image size and at another, where positions are interpolated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.dinov2 import DINOv2, DINOv2Config, bicubic_matrix, embed_image, load_dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
REDUCED = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=40, patch_size=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(transformers' model with random weights, gains away from 1, the directory it was saved to)."""
    model = transformers.Dinov2Model(transformers.Dinov2Config(**REDUCED)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") or "lambda1" in name else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_states_match_transformers(saved, size, record_property):
    model, folder = saved
    config, params = load_dinov2(folder)
    pixels = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        want = model(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
    got = np.asarray(jax.jit(DINOv2(config).apply)({"params": params}, pixels))
    theirs = want.last_hidden_state.numpy()
    error = float(np.linalg.norm(got - theirs) / np.linalg.norm(theirs))
    record_property("relative error", error)
    print(f"dinov2 at {size}: relative error {error:.2g}")
    assert got.shape == theirs.shape and error < TOLERANCE
    if size == (40, 40):
        pooled = embed_image(config, params, jnp.asarray(pixels))
        np.testing.assert_allclose(pooled, want.pooler_output.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("target,source", [(16, 37), (37, 16), (5, 5)])
def test_bicubic_matrix_is_torchs(target, source):
    x = torch.eye(source)[None, :, None]
    want = torch.nn.functional.interpolate(x, size=(1, target), mode="bicubic", align_corners=False)[0, :, 0].T
    np.testing.assert_allclose(bicubic_matrix(target, source), want.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "fields", [{"use_swiglu_ffn": True}, {"model_type": "dinov2_with_registers"}, {"hidden_act": "relu"}]
)
def test_unsupported_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        DINOv2Config.from_json(fields)


def test_sides_must_be_whole_patches(saved):
    config, params = load_dinov2(saved[1])
    with pytest.raises(ValueError, match="sides that 8 divides"):
        DINOv2(config).apply({"params": params}, jnp.zeros((1, 40, 41, 3)))
