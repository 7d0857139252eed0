"""What TFDS cannot read, prepare or find is one line that names the place and says what to do."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from test_tfds_source import refused

from sdd_jax.data.tfds_portraits import write_portraits


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_portraits(tmp_path_factory.mktemp("tfds"), train=12, heldout=3)


def without(info, key):
    return json.dumps({**info, "splits": [{k: v for k, v in split.items() if k != key} for split in info["splits"]]})


def test_what_tfds_makes_nothing_of_is_one_line(prepared, tmp_path):
    copy = Path(shutil.copytree(prepared, tmp_path / "1.0.0"))
    info, features = ((prepared / name).read_text() for name in ("dataset_info.json", "features.json"))
    unreadable = "1.0.0 is not a data set that TFDS can read .*: copy or prepare it again"
    for name, text, message in [
        ("dataset_info.json", info[:200], unreadable),
        ("dataset_info.json", "{}", unreadable),
        (
            "dataset_info.json",
            without(json.loads(info), "shardLengths"),
            "says of no shard of 'train' how many records",
        ),
        ("features.json", "", "features.json cannot be read"),
        ("features.json", "[" * 10**5, "features.json cannot be read .nested too deep"),
        ("features.json", "{}", unreadable),
        ("features.json", features.replace("image_feature.Image", "image_feature.Other"), unreadable),
    ]:
        (copy / name).write_text(text)
        refused(copy, message)
        shutil.copy(prepared / name, copy)
    for split in ("train[:x]", "train[5:900]", "train[:200%]", "train["):
        refused(copy, r"split='train\[.*' is not one of its parts .*: give one such as train\[:90%\]", split=split)
    for split in ("train[3:3]", "train[5:2]", "train[:4]+train[5:2]"):
        refused(copy, "split='train.*' holds no records, or a part of it", split=split)
    refused(copy, "caption_key='index' is TFDS's Scalar, not a text; it has", caption_key="index")
    refused(copy, "caption_key='image' is TFDS's Image, not a text", caption_key="image")
    refused(copy, "image_key='index' is TFDS's Scalar, not an image", image_key="index")


def test_other_formats_and_foreign_features_are_refused(prepared, tmp_path):
    copy = Path(shutil.copytree(prepared, tmp_path / "1.0.0"))
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "riegeli"}))
    refused(copy, "stored as riegeli, which has no random access")
    shutil.copy(prepared / "dataset_info.json", copy)
    text = (copy / "features.json").read_text()
    assert "tensorflow_datasets.core.features" in text
    (copy / "features.json").write_text(text.replace("tensorflow_datasets.core.features", "antigravity.features", 1))
    refused(copy, "names the class 'antigravity.*refused")
    assert "antigravity" not in sys.modules


def test_the_catalogue_needs_tensorflow_and_says_so(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    refused(
        "/no/such/directory", "^/no/such/directory is not a directory, and TFDS cannot .*: give a prepared data set's"
    )

    class Builder:
        def download_and_prepare(self):
            raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", lambda name, **options: Builder())
    refused("some_catalogue_name", r'No module named .tensorflow.*pip install "sdd_jax\[tf\]"')

    def unknown(name, **options):
        raise tfds.core.DatasetNotFoundError(name)

    monkeypatch.setattr(
        Builder, "download_and_prepare", lambda self: (_ for _ in ()).throw(TransportError("no\nroute"))
    )
    monkeypatch.setattr(tfds, "builder", lambda name, **options: Builder())
    refused("some_catalogue_name", r"TFDS cannot prepare it .* \(no\): .* where a download failed, try again")
    monkeypatch.setattr(tfds, "builder", unknown)
    refused("no_such_name", "neither a prepared data set nor a name of the TFDS catalogue")


class TransportError(Exception):
    """As transports raise them: neither OSError nor ValueError."""
