"""What each measure compares with what, on stand-ins for the networks, which have parity tests of their own."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdd_jax.evals.protocols import measures
from sdd_jax.evals.protocols.benchmarks import Item
from sdd_jax.evals.protocols.measures import Embedder
from sdd_jax.models.dinov2 import DINOv2Config

SIDE = 32


def draw(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def items(tmp_path):
    """Two samples; the second's reference has another size, the first's edit was allowed in the left half."""
    Image.fromarray(draw(0)).save(tmp_path / "0.png")
    Image.fromarray(draw(1)).resize((50, 40)).save(tmp_path / "1.png")
    runs = [value for row in range(512) for value in (512 * row, 256)]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    return [
        Item("a", "a dog", "a cat", paths[0], paths[0], None, tuple(runs)),
        Item("b", "two dogs", "two cats", paths[1], paths[1]),
    ]


def test_fidelity_and_its_mask(items):
    first, second = draw(0).copy(), draw(5)
    first[:, : SIDE // 2] = 0
    values = measures.fidelity(items, [first, second])
    difference = (first.astype(float) - draw(0)) / 127.5
    np.testing.assert_allclose(values["psnr"][0], 10 * np.log10(4 / np.mean(difference**2)), rtol=1e-4)
    assert np.isnan(values["psnr_outside"][0]), "equal where nothing should change"
    assert values["psnr_outside"][1] == pytest.approx(values["psnr"][1]), "no mask, no part left out"
    assert values["ssim"][0] > values["ssim"][1]


def test_lpips_hides_what_may_change(items, monkeypatch):
    monkeypatch.setattr(measures, "load_lpips", lambda *files: {})
    monkeypatch.setattr(measures, "lpips", lambda params, a, b, name: jnp.mean(jnp.abs(a - b), (1, 2, 3)))
    first = draw(0).copy()
    first[:, : SIDE // 2] = 255
    values = measures.lpips_measure("alex", "x", "y", batch=2)(items, [first, draw(5)])
    assert values["lpips"][0] > 0.1 and values["lpips_outside"][0] == pytest.approx(0, abs=1e-6)
    assert values["lpips_outside"][1] == pytest.approx(values["lpips"][1], rel=1e-5)


def test_lpips_of_pictures_of_several_sizes(items, monkeypatch):
    """Each as if it were alone, in its place."""
    monkeypatch.setattr(measures, "load_lpips", lambda *files: {})
    monkeypatch.setattr(measures, "lpips", lambda params, a, b, name: jnp.mean(jnp.abs(a - b), (1, 2, 3)))
    measure = measures.lpips_measure("alex", "x", "y", batch=2)
    three = [items[1], items[0], items[1]]
    shown = [np.zeros((20, 30, 3), np.uint8), draw(0), draw(5)[:20, :30]]
    values = measure(three, shown)
    alone = [measure([item], [picture]) for item, picture in zip(three, shown, strict=True)]
    np.testing.assert_allclose(values["lpips"], [one["lpips"][0] for one in alone], rtol=1e-6)
    assert values["lpips"][1] == 0 < values["lpips"][2] != values["lpips"][0]


def test_dinov2_compares_with_the_reference(items, monkeypatch):
    config = DINOv2Config(image_size=28, patch_size=14)
    monkeypatch.setattr(measures, "load_dinov2", lambda directory: (config, {}))
    monkeypatch.setattr(measures, "embed_image", lambda config, params, x: x.reshape(len(x), -1))
    values = measures.dinov2_measure("x", batch=2)(items, [draw(0), draw(5)])["dinov2"]
    assert values[0] == pytest.approx(1.0) and abs(values[1]) < 0.5


def test_text_and_image_scores(items):
    """Embeddings by table: texts on the axes, pictures by their first pixel."""
    axes = {"a cat": [1, 0, 0], "a dog": [0, 1, 0], "two cats": [0, 0, 1], "two dogs": [0, 1, 0]}
    embedder = Embedder(
        lambda pictures: np.array([[1.0, p[0, 0, 0] / 255, 0] for p in pictures]),
        lambda texts: np.array([axes[text] for text in texts], float),
    )
    values = measures.text_image_measure(embedder, "x")(items, [np.zeros_like(draw(0)), draw(5)])
    assert set(values) == {"x_t", "x_i", "x_d"}
    assert values["x_t"][0] == 0 and values["x_i"][0] == pytest.approx(1 / np.hypot(1, draw(0)[0, 0, 0] / 255))
    prompts = [item._replace(image=None, reference=None) for item in items]
    assert set(measures.text_image_measure(embedder)(prompts, [draw(0), draw(5)])) == {"clip_t"}
    same = [item._replace(target=item.source) for item in items]
    assert set(measures.text_image_measure(embedder)(same, [draw(0), draw(5)])) == {"clip_t", "clip_i"}
    with pytest.raises(ValueError, match="sample a has no picture to compare with"):
        measures.fidelity(prompts, [draw(0), draw(5)])
