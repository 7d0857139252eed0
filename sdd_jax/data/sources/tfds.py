"""TensorFlow Datasets as raw records, without TensorFlow: array_record files through `tfds.data_source`, and tfrecord.

`path` is the directory of a prepared data set (the one with `dataset_info.json`), or a name of the catalogue, which is
downloaded and prepared as array_record first; many of the catalogue's builders need TensorFlow for that (`pip install
"sdd_jax[tf]"`). Sets that were prepared as tfrecord, TFDS's default, are read at random access by an index of their own
(`tfrecord`). Other formats have to be prepared again.

Every shard's number of records is compared with what `dataset_info.json` says: a truncated array_record file claims to
hold none, without an error.

Of a record's features only the image's and the captions' bytes are looked at, and TFDS decodes neither: the image stays
encoded until `decode.read_picture` has looked at its size, and other images in it (masks) are never opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.command import is_ours
from sdd_jax.config import first_line, one_line
from sdd_jax.data.sources.raw import RawRecord, parse_json
from sdd_jax.data.sources.tfrecord import TfRecords

CAPTION_KEYS = ("caption", "captions", "text", "prompt")


class TfdsSource:
    """The records of a split, such as `train` or `train[:90%]`.

    Args:
        image_key, caption_key: the features; "" for the first of `caption`, `captions`, `text`, `prompt`, if any.

    Raises:
        FileNotFoundError: neither a prepared data set nor a name of the catalogue.
        ValueError: no such split or feature, or one of another kind; a split without records; neither array_record nor
            tfrecord; a shard of another length than it should have; feature classes from outside tensorflow_datasets; a
            catalogue builder that needs TensorFlow or fails; whatever else TFDS makes nothing of.
    """

    def __init__(self, path: str, split: str, image_key: str = "image", caption_key: str = "") -> None:
        self.title = f"{path}, split {split}"
        builder = _builder(path)
        with _told(f"{path} cannot be read", "copy or prepare it again"):
            self._directory, self._split = str(builder.data_dir), split
            self._image_key, self._caption_key = _keys(builder.info.features or {}, path, image_key, caption_key)
            _check_shards(builder, split, path)
            self._records: Any = _open(builder, split, path)
            self._length = len(self._records)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> RawRecord:
        if self._records is None:
            self._records = _open(_builder(self._directory), self._split, self._directory)
        name = f"{self.title}, record {index}"
        try:
            features = _parsed(self._records[index])
            images = _values(features, self._image_key)
            texts = [text.decode("utf-8").strip() for text in _values(features, self._caption_key)]
        except Exception as error:  # array_record and protobuf raise types of their own on damaged records
            raise ValueError(f"{name} is damaged ({one_line(error)})") from None
        if len(images) != 1:
            raise ValueError(f"{name} is damaged: {len(images)} values of its feature {self._image_key!r}, not one")
        return RawRecord(name, images[0], tuple(texts))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}


@contextlib.contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    """What TFDS, its parsers and its downloads raise, of whatever type, as one line; this package's own errors pass."""
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        raise ValueError(f"{what} ({first_line(error)}): {advice}") from None


def _builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    directory = Path(path)
    if (directory / "dataset_info.json").is_file():
        _check_features(directory / "features.json")
        with _told(f"{path} is not a data set that TFDS can read", "copy or prepare it again"):
            return tfds.builder_from_directory(directory)
    if directory.is_dir():
        raise FileNotFoundError(f"{path} holds no dataset_info.json: give the version's directory, as NAME/1.0.0")
    with _told(
        f"{path} is not a directory, and TFDS cannot prepare it as a name of its catalogue",
        "give a prepared data set's directory, or, where a download failed, try again",
    ):
        try:
            builder = tfds.builder(path, file_format="array_record")
            builder.download_and_prepare()
        except tfds.core.DatasetNotFoundError:
            raise FileNotFoundError(f"{path} is neither a prepared data set nor a name of the TFDS catalogue") from None
        except ImportError as error:
            raise ValueError(
                f"{path} cannot be prepared without a package that is missing ({first_line(error)}); most of the "
                'catalogue needs TensorFlow: pip install "sdd_jax[tf]"'
            ) from None
    return builder


def _keys(features: Mapping[str, Any], path: str, image_key: str, caption_key: str) -> tuple[str, str]:
    """The features of images and of captions ("" for none); ValueError for one that is missing or of another kind."""
    known = f"it has {', '.join(features)}"
    for key in (image_key, caption_key):
        if key and key not in features:
            raise ValueError(f"{path} has no feature {key!r}; {known}")
    stored = features[image_key].get_serialized_info()
    if isinstance(stored, dict) or stored.shape or not _is_bytes(stored):
        raise ValueError(f"{path}: image_key={image_key!r} is {_kind(features[image_key])}, not an image; {known}")
    if caption_key and not _is_text(features[caption_key]):
        raise ValueError(f"{path}: caption_key={caption_key!r} is {_kind(features[caption_key])}, not a text; {known}")
    usual = (key for key in CAPTION_KEYS if key in features and _is_text(features[key]))
    return image_key, caption_key or next(usual, "")


def _is_text(feature: Any) -> bool:
    info = feature.get_tensor_info()
    return _is_bytes(info.get("text") if isinstance(info, dict) else info)


def _is_bytes(info: Any) -> bool:
    return hasattr(info, "np_dtype") and np.dtype(info.np_dtype).kind in "OSU"


def _kind(feature: Any) -> str:
    return f"TFDS's {type(feature).__name__}"


def _open(builder: Any, split: str, path: str) -> Any:
    """The records of a split, as they are stored."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.data_sources.base import file_instructions

    with _told(f"{path}: split={split!r} is not one of its parts", "give one such as train[:90%]"):
        parts = file_instructions(builder.info, split)
    if not parts or min(part.take for part in parts) < 1:
        raise ValueError(f"{path}: split={split!r} holds no records, or a part of it: give one such as train[:90%]")
    if _format(builder) == "tfrecord":
        return _TfRecordSplit(parts)
    try:
        return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError:
        raise ValueError(
            f"{path} is stored as {_format(builder)}, which has no random access: prepare it again with "
            "download_and_prepare(file_format='array_record')"
        ) from None


class _TfRecordSplit:
    """The records of a split on tfrecord files; parts: TFDS's instructions which of which file."""

    def __init__(self, parts: Sequence[Any]) -> None:
        files = list(dict.fromkeys(Path(part.filename) for part in parts))
        self._records = TfRecords(files)
        firsts = dict(zip(files, np.cumsum([0, *self._records.counts]), strict=False))
        places = [np.arange(part.skip, part.skip + part.take) + firsts[Path(part.filename)] for part in parts]
        self._places = np.concatenate(places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        return self._records[int(self._places[index])]


def _format(builder: Any) -> str:
    return getattr(builder.info.file_format, "value", "an unknown format")


def _check_shards(builder: Any, split: str, path: str) -> None:
    for part in split.split("+"):
        name = part.split("[")[0].strip()
        if name not in builder.info.splits:
            raise ValueError(f"{path} has no split {name!r}; it has {', '.join(builder.info.splits) or 'none'}")
        if _format(builder) not in ("array_record", "tfrecord"):
            continue
        info = builder.info.splits[name]
        if not info.shard_lengths:
            raise ValueError(
                f"{path}: dataset_info.json says of no shard of {name!r} how many records it holds (shardLengths): "
                "prepare it again"
            )
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
        raise ValueError(f"{file} is damaged ({one_line(error)}); prepare it again") from None
    return found


def _check_features(path: Path) -> None:
    """Refuses a features.json that names classes outside tensorflow_datasets: reading it would import their modules."""
    try:
        stack = [parse_json(path.read_text(encoding="utf-8"))]
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


def _parsed(record: bytes) -> Mapping[str, Any]:
    """The features of a `tf.train.Example`."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _values(features: Mapping[str, Any], key: str) -> list[bytes]:
    """The bytes that a feature holds, or its `text`, where it is made of several; several in a row, nested or not."""
    names = (f"{name}{nested}" for name in (key, f"{key}/text") for nested in ("", "/ragged_flat_values"))
    return next((list(features[name].bytes_list.value) for name in names if name in features), [])
