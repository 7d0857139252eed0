"""Super-resolution rows: the degraded picture beside its own original, with the prompts that were asked for."""

import dataclasses

import numpy as np
import pytest

from sdd_jax.data import portraits
from sdd_jax.data.degrade import condition, degrade
from sdd_jax.data.degrade_spec import PORTRAITS, preset
from sdd_jax.data.records import PortraitSource
from sdd_jax.data.restoration import caption_of, degraded_images, degraded_portraits


def tokenize(texts):
    return np.asarray([[len(text)] for text in texts], np.int32)


@pytest.fixture(scope="module")
def record():
    return PortraitSource("heldout", 3, cached=False)[2]


def test_rows_pair_a_picture_with_its_degradation(record):
    row = degraded_portraits(tokenize, PORTRAITS, "full")(record, np.random.default_rng(3))
    truth, low = degrade(record["image"], np.random.default_rng(3), PORTRAITS)
    np.testing.assert_array_equal(row["image"], truth)
    np.testing.assert_array_equal(row["condition"], condition(low, 64))
    np.testing.assert_allclose(row["image"], record["image"] / 127.5 - 1, atol=1e-5)
    assert row["condition"].shape == (64, 64, 3) and row["condition"].dtype == row["image"].dtype == np.float32
    attributes = portraits.portrait(record["index"]).attributes
    assert row["input_ids"].tolist() == [len(portraits.caption(attributes))]
    assert set(row) == {"image", "condition", "input_ids"}
    # bicubic is a poor restorer, and still the same picture
    assert 0.02 < np.abs(row["condition"] - truth).mean() < 0.4


def test_moments_stand_in_for_the_picture(record):
    moments = np.random.default_rng(0).normal(size=(3, 2, 2, 4)).astype(np.float16)
    row = degraded_portraits(tokenize, PORTRAITS, "none", moments)(record, np.random.default_rng(3))
    assert set(row) == {"moments", "condition", "input_ids"} and row["moments"].dtype == np.float32
    np.testing.assert_array_equal(row["moments"], moments[2])
    plain = degraded_portraits(tokenize, PORTRAITS, "none")(record, np.random.default_rng(3))
    np.testing.assert_array_equal(row["condition"], plain["condition"])


def test_moments_of_originals_do_not_go_with_sharpening():
    sharpening = dataclasses.replace(PORTRAITS, sharpen_weight=0.5)
    with pytest.raises(ValueError, match="sharpens them first: use no moments") as error:
        degraded_portraits(tokenize, sharpening, "full", np.zeros((1, 2, 2, 4)))
    assert "\n" not in str(error.value)


def test_captions_are_full_random_or_none(record):
    rng = np.random.default_rng(0)
    index = record["index"]
    full = portraits.caption(portraits.portrait(index).attributes)
    assert caption_of(index, "none", rng) == "" and caption_of(index, "full", rng) == full
    drawn = {caption_of(index, "random", rng) for _ in range(20)}
    assert len(drawn) > 5
    said = portraits.parse_caption(full)
    assert all(portraits.parse_caption(text).items() <= said.items() for text in drawn)


def test_a_folders_images_are_sharpened_and_keep_their_captions():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    spec = preset("real_esrgan", 64)
    row = degraded_images(tokenize, spec)({"image": image, "caption": "five!"}, np.random.default_rng(1))
    assert row["input_ids"].tolist() == [5]
    assert row["image"].shape == row["condition"].shape == (64, 64, 3)
    assert np.abs(row["image"] - (image / 127.5 - 1)).max() > 0.01, "the truth is sharpened"
