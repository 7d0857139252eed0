"""Training records of portraits: labels, targets and captions of the right picture, negatives of one changed word."""

import numpy as np
import pytest

from sdd_jax.data import portraits
from sdd_jax.data.portraits_text import PHRASES
from sdd_jax.data.records import PortraitSource, captioned, contrasted, labelled, latents, measured, plain, to_float


class Words:
    """A tokenizer that remembers its texts and gives every word a number."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts = list(texts)
        numbers = {word: i + 1 for i, word in enumerate(portraits.all_words())}
        rows = [[numbers[w] for w in text.replace(",", " ").split()] for text in texts]
        return np.asarray([row + [0] * (40 - len(row)) for row in rows], np.int32)


@pytest.fixture(scope="module")
def source():
    return PortraitSource("heldout", 6, cached=False)


def test_the_source_is_the_split_in_order(source):
    assert len(source) == 6
    record = source[4]
    assert record["index"] == portraits.split_indices("heldout")[4] and record["position"] == 4
    np.testing.assert_array_equal(record["image"], portraits.image(record["index"]))


def test_a_cached_source_gives_the_same_pictures(source, array_cache):
    cached = PortraitSource("heldout", 6)
    for i in (0, 5):
        assert cached[i]["index"] == source[i]["index"]
        np.testing.assert_array_equal(cached[i]["image"], source[i]["image"])
    assert list(array_cache.glob("portraits-heldout-*.npy"))


def test_rows_say_what_the_picture_shows(source):
    rng = np.random.default_rng(0)
    record = source[1]
    attributes = portraits.portrait(record["index"]).attributes
    row = labelled(record, rng)
    assert [v[i] for i, v in zip(row["labels"], portraits.VOCABULARY.values(), strict=True)] == [
        getattr(attributes, name) for name in portraits.VOCABULARY
    ]
    assert row["image"].dtype == np.float32 and row["image"].min() >= -1 and row["image"].max() <= 1
    np.testing.assert_allclose(to_float(np.asarray([0, 255], np.uint8)), [-1, 1])
    np.testing.assert_array_equal(plain(record, rng)["image"], row["image"])
    words = Words()
    ids = captioned(words)(record, rng)["input_ids"]
    said = portraits.parse_caption(words.texts[0])
    assert "species" in said and all(getattr(attributes, name) == value for name, value in said.items())
    np.testing.assert_array_equal(ids, words(words.texts)[0])


def test_nuisance_targets_are_standardised():
    blank = np.zeros((1, 1, 3), np.uint8)
    rows = np.stack([measured({"index": i, "image": blank}, None)["targets"] for i in range(2000)])
    assert rows.shape == (2000, len(portraits.RANGES))
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.08)
    np.testing.assert_allclose(rows.var(0), 1, atol=0.08)
    # the first value is x, from -3 to 3 pixels
    x = portraits.portrait(7).nuisance.x
    np.testing.assert_allclose(rows[7, 0], x / 3 * 3**0.5, rtol=1e-5)


def test_negatives_change_one_attribute_and_no_other_word(source):
    words = Words()
    transform = contrasted(words, 3)
    names = set()
    records = [source[i] for i in range(6)]
    for k in range(150):
        record = records[k % 6]
        row = transform(record, np.random.default_rng(k))
        positive, *negatives = words.texts
        said = portraits.parse_caption(positive)
        assert row["negative_ids"].shape == (3, 40)
        for text, ids in zip(negatives, row["negative_ids"], strict=True):
            if np.array_equal(ids, row["input_ids"]):
                continue  # the loss masks it
            changed = portraits.parse_caption(text)
            (name,) = [n for n in said if changed.get(n) != said[n]]
            assert changed.keys() == said.keys()
            names.add(name)
            # the rest of the words, the changed attribute's own phrases (and what they govern) aside
            assert strip(positive, name, said[name]) == strip(text, name, changed[name])
    assert names == set(portraits.VOCABULARY)


def strip(text, name, value):
    """The words of a caption without the phrase of one attribute, and without articles."""
    for phrase in sorted(PHRASES[name][value], key=len, reverse=True):
        if phrase in text:
            text = text.replace(phrase, "", 1)
            break
    words = [word for word in text.replace(",", " ").split() if word not in ("a", "an")]
    return [{"hair": "coat", "fur": "coat"}.get(word, word) for word in words] if name == "species" else words


def test_latents_are_those_of_the_position(source):
    moments = np.arange(6 * 8, dtype=np.float16).reshape(6, 2, 2, 2)
    row = latents(moments, Words())(source[3], np.random.default_rng(0))
    np.testing.assert_array_equal(row["moments"], moments[3])
    assert row["moments"].dtype == np.float32 and row["input_ids"].shape == (40,)


def test_the_same_generator_gives_the_same_row(source):
    rows = [contrasted(Words(), 2)(source[0], np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(rows[0]["negative_ids"], rows[1]["negative_ids"])
