"""Portraits as a TensorFlow data set: written and read without TensorFlow; truncation and missing pieces are errors."""

import itertools
import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from sdd_jax.command import is_ours
from sdd_jax.data import decode, portraits
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.sources import ImageData, open_source
from sdd_jax.data.sources.tfds import TfdsSource, _parsed, _values
from sdd_jax.data.sources.tfrecord import TfRecords, crc32c, masked
from sdd_jax.data.tfds_portraits import write_portraits
from sdd_jax.data.throughput import framed, write_tfrecord


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_portraits(tmp_path_factory.mktemp("tfds"), train=12, heldout=3)


def test_portraits_go_out_and_come_back(prepared):
    assert "tensorflow" not in sys.modules
    source = open_source(ImageData(source="tfds", path=str(prepared), size=64, count=12))
    found = {portraits_index(source[i]): source[i] for i in range(12)}
    assert sorted(found) == list(portraits.split_indices("train")[:12])
    for index, record in found.items():
        np.testing.assert_array_equal(record["image"], portraits.image(index))
        assert record["caption"] == portraits.caption(portraits.portrait(index).attributes)
    assert len(open_source(ImageData(source="tfds", path=str(prepared), size=64, split="heldout"))) == 3
    assert len(open_source(ImageData(source="tfds", path=str(prepared), size=64, split="train[:50%]"))) == 6


def portraits_index(record):
    for index in portraits.split_indices("train")[:12]:
        if np.array_equal(record["image"], portraits.image(index)):
            return index
    raise AssertionError(f"{record['name']} is no portrait of the split")


@pytest.fixture
def place(request, prepared, tmp_path, array_cache):
    """The data set in the form that the test asks for: as it was prepared, or a copy that may be damaged."""
    copy = tmp_path / "1.0.0"
    return write_tfrecord(copy, prepared, shards=3) if request.param == "tfrecord" else shutil.copytree(prepared, copy)


FORMS = pytest.mark.parametrize("place", ["array_record", "tfrecord"], indirect=True)


@FORMS
def test_the_stream_reads_it(place):
    source = open_source(ImageData(source="tfds", path=str(place), size=16))

    def batches(source, **options):
        return list(itertools.islice(make_stream(source, pictures, batch_size=4, seed=1, **options), 3))

    copy = pickle.loads(pickle.dumps(source))
    for count in (2, 4):
        parts = [batches(copy, process_index=p, process_count=count) for p in range(count)]
        for step, want in enumerate(batches(source)):
            np.testing.assert_array_equal(np.concatenate([part[step]["image"] for part in parts]), want["image"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
@FORMS
def test_workers_see_the_same_batches(place, workers):
    source = open_source(ImageData(source="tfds", path=str(place), size=16))
    one, several = (make_stream(source, pictures, batch_size=4, seed=1, workers=n) for n in (0, workers))
    for want, batch in itertools.islice(zip(one, several, strict=False), 3):
        np.testing.assert_array_equal(batch["image"], want["image"])


@FORMS
def test_a_damaged_record_is_skipped_counted_and_named(place):
    (shard,) = [*place.glob("*train.array_record*"), *place.glob("*train.tfrecord-00001*")]
    data = bytearray(shard.read_bytes())
    data[1000:1100] = bytes(100)
    shard.write_bytes(bytes(data))
    source = open_source(ImageData(source="tfds", path=str(place), size=16, max_bad_share=0.2))
    assert len(source.bad) == 1 and "train, record " in source.bad[0]
    position = int(source.bad[0].partition("record ")[2].split()[0])
    assert source[position]["position"] == (position + 1) % 12
    assert [source[i]["position"] for i in range(12)].count((position + 1) % 12) == 2, "the others are themselves"
    with pytest.raises(ValueError, match="1 of 12 records cannot be read, more than .*max_bad_share=0.05"):
        open_source(ImageData(source="tfds", path=str(place), size=16, max_bad_share=0.05))


def pictures(record, rng):
    return {"image": record["image"]}


def refused(path, message, **options):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        TfdsSource(str(path), options.pop("split", "train"), **options)
    assert "\n" not in str(error.value) and is_ours(error.value)


def test_what_is_wrong_is_one_line(prepared, tmp_path):
    copy = Path(shutil.copytree(prepared, tmp_path / "1.0.0"))
    (shard,) = copy.glob("*train*.array_record*")
    refused(prepared.parent, "holds no dataset_info.json")
    refused(copy, "has no split 'test'; it has", split="test")
    refused(copy, "has no feature 'picture'; it has", image_key="picture")
    whole = shard.read_bytes()
    os.truncate(shard, len(whole) * 2 // 3)
    refused(copy, "train.*is (cut off or )?damaged")
    os.truncate(shard, 0)
    refused(copy, "train.*is (cut off or )?damaged")
    shard.unlink()
    refused(copy, "train.* is missing: dataset_info.json lists it")
    data = bytearray(whole)
    data[len(data) // 3 : len(data) // 3 + 2000] = bytes(2000)
    shard.write_bytes(bytes(data))
    try:
        source = TfdsSource(str(copy), "train")
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        with pytest.raises(ValueError, match="record [0-9]+ is damaged"):
            for i in range(12):
                source[i]


def test_tfrecord_is_read_at_random_without_tensorflow(prepared, tmp_path, array_cache):
    assert crc32c(b"123456789") == 0xE3069283 and masked(0) == 0xA282EAD8, "as published"
    copy = write_tfrecord(tmp_path / "1.0.0", prepared, shards=3)
    for split in ("train", "heldout", "train[2:7]", "train[:4]+heldout"):
        one, two = (
            open_source(ImageData(source="tfds", path=str(where), size=64, split=split)) for where in (prepared, copy)
        )
        assert len(one) == len(two) > 0
        two = pickle.loads(pickle.dumps(two))
        for i in range(len(one)):
            np.testing.assert_array_equal(one[i]["image"], two[i]["image"])
            assert one[i]["caption"] == two[i]["caption"]
    assert "tensorflow" not in sys.modules
    shard = copy / "portraits-train.tfrecord-00001-of-00003"
    whole = shard.read_bytes()
    for length in (5, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:length])
        refused(copy, "00001-of-00003 is cut off or damaged after byte")
    shard.write_bytes(whole[: len(framed(b"")) + struct.unpack("<Q", whole[:8])[0]])
    refused(copy, "00001-of-00003 is cut off or damaged: 1 of 4 records")
    shard.write_bytes(whole[:7] + b"\x01" + whole[8:])
    refused(copy, "damaged after byte 0")
    data = bytearray(whole)
    data[200:400] = bytes(200)
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="more than config.data.max_bad_share|records cannot be read"):
        open_source(ImageData(source="tfds", path=str(copy), size=64))
    shard.unlink()
    refused(copy, "00001-of-00003 is missing")


def test_captions_of_every_form():
    from tensorflow_datasets import features as kinds
    from tensorflow_datasets.proto import tf_example_pb2

    text, several = kinds.Text(), {"text": ["a", "b"], "id": [1, 2]}
    for feature, value, found in [
        (text, "é", ["é"]),
        (kinds.Sequence(text), ["a", "b"], ["a", "b"]),
        (kinds.Sequence(text), [], []),
        (kinds.Sequence({"text": text, "id": np.int64}), several, ["a", "b"]),
        (kinds.FeaturesDict({"text": text, "id": np.int64}), {"text": "a", "id": 1}, ["a"]),
    ]:
        record = kinds.FeaturesDict({"caption": feature, "caption2": text}).serialize_example(
            {"caption": value, "caption2": "other"}
        )
        assert [one.decode() for one in _values(_parsed(record), "caption")] == found
    example = tf_example_pb2.Example()
    example.features.feature["caption/ragged_flat_values"].bytes_list.value.extend([b"a", b"b"])
    assert _values(_parsed(example.SerializeToString()), "caption") == [b"a", b"b"]


def rewritten(prepared, root, change):
    """A tfrecord copy of the data set whose records `change(number, features)` has been at."""
    from tensorflow_datasets.proto import tf_example_pb2

    copy = write_tfrecord(root / "1.0.0", prepared)
    (shard,) = copy.glob("*train.tfrecord*")
    examples = [tf_example_pb2.Example.FromString(record) for record in TfRecords([shard])]
    for number, example in enumerate(examples):
        change(number, example.features.feature)
    shard.write_bytes(b"".join(framed(example.SerializeToString()) for example in examples))
    return copy


def test_images_that_are_not_asked_for_are_not_decoded(prepared, tmp_path, array_cache, monkeypatch):
    """Masks of 8000x8000 in every record, cut off, which TFDS would decode."""
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 8000, 8000, 8, 2, 0, 0, 0)
    bomb += struct.pack(">I", zlib.crc32(bomb[12:])) + struct.pack(">I4s", 10**6, b"IDAT")

    def masked_too(number, features):
        features["mask"].bytes_list.value.append(bomb)

    copy = rewritten(prepared, tmp_path, masked_too)
    content = json.loads((copy / "features.json").read_text())
    features = content["featuresDict"]["features"]
    features["mask"] = features["image"]
    (copy / "features.json").write_text(json.dumps(content))
    source = open_source(ImageData(source="tfds", path=str(copy), size=64, max_bad_share=0.0))
    first = open_source(ImageData(source="tfds", path=str(prepared), size=64))[0]
    np.testing.assert_array_equal(source[0]["image"], first["image"])
    with pytest.raises(ValueError, match="record 0: 8000x8000 pixels are more than 50000000"):
        open_source(ImageData(source="tfds", path=str(copy), size=64, image_key="mask"))
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="record 0: 64x64 pixels are more than 100"):
        open_source(ImageData(source="tfds", path=str(prepared), size=64))


def test_a_caption_that_is_not_utf8_is_a_damaged_record_by_name(prepared, tmp_path, array_cache):
    def spoiled(number, features):
        if number == 3:
            features["caption"].bytes_list.value[:] = [b"caf\xe9"]
        elif number == 5:
            del features["image"]

    source = TfdsSource(str(rewritten(prepared, tmp_path, spoiled)), "train")
    with pytest.raises(ValueError, match="1.0.0, split train, record 3 is damaged .*utf-8"):
        source[3]
    with pytest.raises(ValueError, match="record 5 is damaged: 0 values of its feature 'image', not one"):
        source[5]
    assert source[4].captions


def test_counts_are_checked(tmp_path):
    with pytest.raises(ValueError, match="--heldout=0: the split has 1"):
        write_portraits(tmp_path, train=1, heldout=0)
