"""CLIP scores: geometry of the three cosines, and the whole path from PNG and text against transformers."""

import json

import numpy as np
import pytest
from PIL import Image

from sdd_jax.evals.clip_score import CLIPScorer, cosine, directional_similarity, unit
from sdd_jax.models.tokenizer import train_tokenizer

CORPUS = ["a photo of a smiling lion", "a cat's portrait in the sky", "an angry man with glasses"]


def test_cosine_ignores_length_and_counts_angles():
    a = np.array([[1.0, 0.0], [3.0, 4.0], [2.0, 0.0]])
    b = np.array([[0.0, 7.0], [0.6, 0.8], [-1.0, 0.0]])
    np.testing.assert_allclose(cosine(a, b), [0, 1, -1], atol=1e-12)
    assert np.isnan(cosine(np.zeros((1, 2)), np.ones((1, 2))))[0]
    with pytest.raises(ValueError, match="one shape"):
        cosine(a, b[:2])


def test_direction_is_of_unit_embeddings():
    rng = np.random.default_rng(0)
    source, step = unit(rng.standard_normal((4, 8))), 0.1 * rng.standard_normal((4, 8))
    edited = unit(source + step)
    text = unit(rng.standard_normal((4, 8)))
    along = directional_similarity(5 * source, 3 * edited, source, edited)
    np.testing.assert_allclose(along, 1, atol=1e-9)
    np.testing.assert_allclose(directional_similarity(source, edited, edited, source), -1, atol=1e-9)
    assert np.all(np.isnan(directional_similarity(source, source, text, source)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reduced CLIP as transformers saves it, with a tokenizer whose end-of-text id is its own."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer(CORPUS, 540, path, model_max_length=16)
    width = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.CLIPConfig(
        vision_config=width | dict(image_size=32, patch_size=16),
        text_config=width
        | dict(vocab_size=tokenizer.vocab_size, max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id),
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(path)
    return path


def test_scores_of_files_match_transformers(folder, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in [(40, 60), (33, 32), (50, 35)]]
    Image.fromarray(images[1]).save(tmp_path / "one.png")
    scorer = CLIPScorer.load(folder, batch=2)
    got = scorer.score([images[0], tmp_path / "one.png", Image.fromarray(images[2])], CORPUS)

    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(CORPUS, padding="max_length", max_length=16, return_tensors="pt")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(pixel_values=pixels, **ids)
    want = (out.image_embeds * out.text_embeds).sum(-1).numpy()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.ptp(want) > 1e-3


def test_no_images(folder):
    with pytest.raises(ValueError, match="got no images"):
        CLIPScorer.load(folder).embed_images([])
