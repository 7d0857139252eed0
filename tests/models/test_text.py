"""CLIP's text encoders against transformers on random weights, and the tokenizer against CLIPTokenizer."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch_parity import relative_error

from sdd_jax.models import convert
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.tokenizer import load_tokenizer, train_tokenizer

CORPUS = [
    "a photo of a smiling lion with white fur, snowing",
    "a cat's portrait in the sky",
    "an angry man with glasses",
]
WIDTH = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=60,
    max_position_embeddings=12,
    projection_dim=24,
)
# the end-of-text id, then padding by the same id (SD 1.x) and by id 0 (SD 2.x); 59 is the largest id
IDS = np.array([[58, 5, 7, 9, 59, 59, 59, 59], [58, 3, 59, 0, 0, 0, 0, 0]], np.int32)


def randomised(model, seed=0):
    """Every tensor random, norms and biases included, so that none can be swapped unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    "name,fields",
    [
        ("CLIPTextModel", dict(hidden_act="quick_gelu", eos_token_id=2)),
        ("CLIPTextModel", dict(hidden_act="gelu", eos_token_id=2)),
        ("CLIPTextModelWithProjection", dict(hidden_act="gelu", eos_token_id=59)),
        ("CLIPTextModelWithProjection", dict(hidden_act="gelu_new", eos_token_id=7)),
    ],
)
def test_states_match_transformers(name, fields):
    config = transformers.CLIPTextConfig(bos_token_id=58, pad_token_id=0, **WIDTH, **fields)
    model = randomised(getattr(transformers, name)(config))
    ours_config = TextConfig.from_json({**json.loads(config.to_json_string()), "architectures": [name]})
    ours = CLIPTextEncoder(ours_config)

    state = {k: v.numpy() for k, v in model.state_dict().items()}
    if name == "CLIPTextModel":  # transformers 5 drops the prefix that published files have
        state = {f"text_model.{k}": v for k, v in state.items()}
    shapes = jax.eval_shape(ours.init, jax.random.key(0), IDS)["params"]
    params = convert.match(convert.torch_to_flax(state), shapes, name)
    got = ours.apply({"params": params}, jnp.asarray(IDS))
    with torch.no_grad():
        want = model(torch.tensor(IDS, dtype=torch.long), output_hidden_states=True)
    assert relative_error(got.last, want.last_hidden_state) < 1e-5
    assert relative_error(got.penultimate, want.hidden_states[-2]) < 1e-5
    if name == "CLIPTextModel":
        assert got.projected is None
        assert relative_error(got.pooled, want.pooler_output) < 1e-5
    else:
        assert relative_error(got.projected, want.text_embeds) < 1e-5


@pytest.mark.parametrize(
    "fields,named",
    [
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"architectures": ["T5EncoderModel"]}, "architectures"),
        ({"model_type": "clip"}, "model_type"),
        ({"num_attention_heads": 5}, "hidden_size"),
    ],
)
def test_unsupported_config_is_named(fields, named):
    with pytest.raises(ValueError, match=named):
        TextConfig.from_json({**WIDTH, **fields}, "somewhere/config.json")


def test_too_many_ids_are_refused():
    model = CLIPTextEncoder(TextConfig(**WIDTH))
    with pytest.raises(ValueError, match="13 ids per text.*12 positions"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 13), jnp.int32))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CORPUS, 560, tmp_path_factory.mktemp("tokenizer"), model_max_length=16)


def test_trained_tokenizer_reads_back_its_words_and_any_other_text(tokenizer):
    assert tokenizer.vocab_size <= 560 and tokenizer.eos_token_id == tokenizer.vocab_size - 1
    for text in [*CORPUS, "ümläut zebra 42!"]:
        ids = tokenizer.backend(text)["input_ids"]
        assert tokenizer.eos_token_id not in ids[:-1]
        decoded = tokenizer.backend.decode(ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.replace(" ", "").lower()
    assert len(tokenizer.backend.tokenize("a photo")) < len("aphoto")


def test_ids_are_those_of_clip_tokenizer(tokenizer):
    ids = tokenizer(CORPUS[1:])
    want = tokenizer.backend(CORPUS[1:], padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, want)
    assert tokenizer([]).shape == (0, 16)
    with pytest.raises(ValueError, match="list of texts"):
        tokenizer("one text")


def test_long_texts_are_cut_with_one_warning(tokenizer, caplog):
    fresh = load_tokenizer(tokenizer.directory)
    text = "zebra " * 30
    with caplog.at_level(logging.WARNING):
        ids = fresh(["a", text])
        fresh([text])
    want = tokenizer.backend(text, truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(ids[1], want)
    assert len(caplog.records) == 1 and "was cut to 16" in caplog.text


def test_training_and_saving_are_deterministic(tokenizer, tmp_path):
    train_tokenizer(iter(CORPUS), 560, tmp_path / "again", model_max_length=16)
    tokenizer.save(tmp_path / "copy")
    names = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    for name in names:
        original = (tokenizer.directory / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == original
        assert (tmp_path / "copy" / name).read_bytes() == original


def test_tokenizer_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="514"):
        train_tokenizer(CORPUS, 500, tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="not a CLIP tokenizer"):
        load_tokenizer(tmp_path)
