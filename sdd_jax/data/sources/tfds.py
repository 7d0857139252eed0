"""TensorFlow Datasets as raw records, without TensorFlow: array_record files through `tfds.data_source`, and tfrecord.

`path` is the directory of a prepared data set (the one with `dataset_info.json`), or a name of the catalogue, which is
downloaded and prepared as array_record first; many of the catalogue's builders need TensorFlow for that (`pip install
"sdd_jax[tf]"`). Sets that were prepared as tfrecord, TFDS's default, are read at random access by an index of their own
(`tfrecord`). Other formats have to be prepared again.

Every shard's number of records is compared with what `dataset_info.json` says: a truncated array_record file claims to
hold none, without an error. Images stay encoded until `decode.read_picture` has looked at their size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.data.sources.raw import RawRecord
from sdd_jax.data.sources.tfrecord import TfRecords

CAPTION_KEYS = ("caption", "captions", "text", "prompt")


class TfdsSource:
    """The records of a split, such as `train` or `train[:90%]`.

    Args:
        image_key, caption_key: the features; "" for the first of `caption`, `captions`, `text`, `prompt`, if any.

    Raises:
        FileNotFoundError: neither a prepared data set nor a name of the catalogue.
        ValueError: no such split or feature, neither array_record nor tfrecord, a shard of another length than it
            should have, feature classes from outside tensorflow_datasets, or a catalogue builder that needs TensorFlow.
    """

    def __init__(self, path: str, split: str, image_key: str = "image", caption_key: str = "") -> None:
        self.title = f"{path}, split {split}"
        self._where = path, split, image_key
        builder = _builder(path)
        features = list(builder.info.features or ())
        for key in (image_key, caption_key):
            if key and key not in features:
                raise ValueError(f"{path} has no feature {key!r}; it has {', '.join(features)}")
        self._caption_key = caption_key or next((key for key in CAPTION_KEYS if key in features), "")
        _check_shards(builder, split, path)
        self._records: Any = _open(builder, split, image_key, path)
        self._length = len(self._records)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> RawRecord:
        if self._records is None:
            path, split, image_key = self._where
            self._records = _open(_builder(path), split, image_key, path)
        name = f"{self.title}, record {index}"
        try:
            record = self._records[index]
        except Exception as error:  # array_record and protobuf raise types of their own on damaged records
            raise ValueError(f"{name} is damaged ({' '.join(str(error).split())})") from None
        texts = _texts(record[self._caption_key]) if self._caption_key else ()
        return RawRecord(name, bytes(record[self._where[2]]), texts)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}


def _builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    directory = Path(path)
    if (directory / "dataset_info.json").is_file():
        _check_features(directory / "features.json")
        return tfds.builder_from_directory(directory)
    if directory.is_dir():
        raise FileNotFoundError(f"{path} holds no dataset_info.json: give the version's directory, as NAME/1.0.0")
    try:
        builder = tfds.builder(path, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise FileNotFoundError(f"{path} is neither a prepared data set nor a name of the TFDS catalogue") from None
    except ImportError as error:
        raise ValueError(
            f"{path} cannot be prepared without a package that is missing ({error}); most of the catalogue needs "
            'TensorFlow: pip install "sdd_jax[tf]"'
        ) from None
    return builder


def _open(builder: Any, split: str, image_key: str, path: str) -> Any:
    import tensorflow_datasets as tfds

    decoders = {image_key: tfds.decode.SkipDecoding()}
    if _format(builder) == "tfrecord":
        return _TfRecordSplit(builder, split, decoders)
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError:
        raise ValueError(
            f"{path} is stored as {_format(builder)}, which has no random access: prepare it again with "
            "download_and_prepare(file_format='array_record')"
        ) from None


class _TfRecordSplit:
    """The records of a split on tfrecord files, parsed as `as_data_source` parses those of array_record."""

    def __init__(self, builder: Any, split: str, decoders: dict[str, Any]) -> None:
        from tensorflow_datasets.core.data_sources.base import file_instructions

        parts = file_instructions(builder.info, split)
        files = list(dict.fromkeys(Path(part.filename) for part in parts))
        self._records = TfRecords(files)
        firsts = dict(zip(files, np.cumsum([0, *self._records.counts]), strict=False))
        places = [np.arange(part.skip, part.skip + part.take) + firsts[Path(part.filename)] for part in parts]
        self._places = np.concatenate([np.zeros(0, np.int64), *places])
        self._parse, self._decoders = builder.info.features.deserialize_example_np, decoders

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        return self._parse(self._records[int(self._places[index])], decoders=self._decoders)


def _format(builder: Any) -> str:
    return getattr(builder.info.file_format, "value", "an unknown format")


def _check_shards(builder: Any, split: str, path: str) -> None:
    for part in split.split("+"):
        name = part.split("[")[0].strip()
        if name not in builder.info.splits:
            raise ValueError(f"{path} has no split {name!r}; it has {', '.join(builder.info.splits)}")
        if _format(builder) not in ("array_record", "tfrecord"):
            continue
        info = builder.info.splits[name]
        files = [Path(file) for file in info.filepaths]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: dataset_info.json lists it; copy or prepare it again")
        if _format(builder) == "tfrecord":
            counts: Sequence[int] = TfRecords(files).counts
        else:
            counts = [_count_array_records(file) for file in files]
        for file, expected, found in zip(files, info.shard_lengths, counts, strict=True):
            if found != expected:
                raise ValueError(f"{file} is cut off or damaged: {found} of {expected} records; prepare it again")


def _count_array_records(file: Path) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        found = reader.num_records()
        reader.close()
    except Exception as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}); prepare it again") from None
    return found


def _check_features(path: Path) -> None:
    """Refuses a features.json that names classes outside tensorflow_datasets: reading it would import their modules."""
    try:
        stack = [json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); prepare the data set again") from None
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            stack += node.values()
            for key in ("pythonClassName", "python_class_name", "type"):
                name = node.get(key)
                if isinstance(name, str) and "." in name and not name.startswith("tensorflow_datasets."):
                    raise ValueError(f"{path} names the class {name!r}, which is not TFDS's own: refused")


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        return _texts(value.get("text", ()))
    if isinstance(value, bytes):
        return (value.decode("utf-8").strip(),)
    if isinstance(value, str):
        return (value.strip(),)
    items: Sequence[Any] = list(np.atleast_1d(value)) if isinstance(value, np.ndarray) else list(value)
    return tuple(text for item in items for text in _texts(item.item() if isinstance(item, np.generic) else item))
