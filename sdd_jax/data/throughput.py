"""How many samples a source gives per second and core: `python -m sdd_jax.data.throughput --size=512`.

Writes a set of pictures (JPEG, quality 90, smooth colours with noise, as large as `--side` says) as a folder, as COCO,
as tar shards and, with `--tfds`, as a TensorFlow data set on array_record and on tfrecord; reads each in the stream's
shuffled order, decodes, scales, crops; and prints samples per second of CPU time, which is per core and does not depend
on what else the machine does. `--source` and `--path` measure a data set of one's own instead.
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdd_jax.command import Parser, run_command
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.records import Record
from sdd_jax.data.sources import ImageData, augmented, open_source
from sdd_jax.data.sources.tfrecord import crc32c, masked

BATCH = 8


def measure(data: ImageData, samples: int) -> float:
    """Samples per second of CPU time of all threads, of the stream at batches of 8, after one batch to warm up."""
    stream = make_stream(open_source(data), augmented(data, _image), batch_size=BATCH, seed=0)
    next(stream)
    began, count = time.process_time(), 0
    for batch in itertools.islice(stream, -(-samples // BATCH)):
        count += len(batch["image"])
    return count / (time.process_time() - began)


def _image(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"image": record["image"]}


def write_folder(root: Path, count: int, side: int) -> Path:
    """A folder of `count` JPEGs of side x side/1.5 pixels with captions."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, round(side / 1.5)), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{number:06d}.jpg", quality=90)
        (root / f"{number:06d}.txt").write_text(f"picture {number}")
    return root


def write_coco(folder: Path) -> Path:
    """COCO's annotations beside the files of a folder, as the split `train`."""
    stems = sorted(path.stem for path in folder.glob("*.jpg"))
    content = {
        "images": [{"id": i, "file_name": f"{stem}.jpg"} for i, stem in enumerate(stems)],
        "annotations": [{"id": i, "image_id": i, "caption": f"picture {i}"} for i in range(len(stems))],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions_train.json").write_text(json.dumps(content))
    return folder


def write_shards(root: Path, folder: Path, shards: int = 4) -> Path:
    """The files of a folder as tar shards."""
    root.mkdir(parents=True)
    stems = sorted(path.stem for path in folder.glob("*.jpg"))
    for shard in range(shards):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for stem in stems[shard::shards]:
                for suffix in (".jpg", ".txt"):
                    tar.add(folder / f"{stem}{suffix}", f"{stem}{suffix}")
    return root


def write_tfds(root: Path, folder: Path) -> Path:
    """The files of a folder as a TensorFlow data set on array_record."""
    import tensorflow_datasets as tfds
    from etils import epath

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """JPEGs with captions."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = epath.Path(__file__)

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(encoding_format="jpeg"), "caption": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            for path in sorted(folder.glob("*.jpg")):
                yield path.stem, {"image": path.read_bytes(), "caption": path.with_suffix(".txt").read_text()}

    builder = Pictures(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def write_tfrecord(root: Path, prepared: Path, shards: int = 1) -> Path:
    """A copy of an array_record data set as TFDS writes it unless told otherwise; `shards` of the split `train`."""
    from array_record.python.array_record_module import ArrayRecordReader

    shutil.copytree(prepared, root)
    info = json.loads((root / "dataset_info.json").read_text())
    for split in info["splits"]:
        (file,) = root.glob(f"*{split['name']}.array_record*")
        reader = ArrayRecordReader(str(file))
        records = reader.read_all()
        reader.close()
        file.unlink()
        count = shards if split["name"] == "train" else 1
        parts = [records[i * len(records) // count : (i + 1) * len(records) // count] for i in range(count)]
        for number, part in enumerate(parts):
            name = f"{info['name']}-{split['name']}.tfrecord-{number:05d}-of-{count:05d}"
            (root / name).write_bytes(b"".join(framed(record) for record in part))
        split["shardLengths"] = [str(len(part)) for part in parts]
    (root / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    return root


def framed(record: bytes) -> bytes:
    """A record as it stands in a TFRecord file, its own sum left out: nothing here reads it."""
    size = struct.pack("<Q", len(record))
    return size + struct.pack("<I", masked(crc32c(size))) + record + bytes(4)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_throughput, argv)


def _throughput(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.data.throughput", description=__doc__)
    parser.add_argument("--source", default="", help="folder, tar, tfds or coco, of --path; default: a set of its own")
    parser.add_argument("--path", default="")
    parser.add_argument("--size", type=int, default=512, help="side of the samples")
    parser.add_argument("--side", type=int, default=768, help="longer side of the set's own pictures")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--tfds", action="store_true", help="measure tfds too, on array_record and on tfrecord")
    flags = parser.parse_args(argv)
    if flags.source:
        print(
            f"{measure(ImageData(source=flags.source, path=flags.path, size=flags.size), flags.samples):.1f} samples/s"
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_folder(Path(scratch, "folder"), flags.samples, flags.side)
        places = {"folder": folder, "tar": write_shards(Path(scratch, "tar"), folder), "coco": write_coco(folder)}
        if flags.tfds:
            places["tfds"] = write_tfds(Path(scratch, "tfds"), folder)
            places["tfds, tfrecord"] = write_tfrecord(Path(scratch, "tfrecord", "1.0.0"), places["tfds"])
        size = np.mean([path.stat().st_size for path in folder.glob("*.jpg")]) / 1024
        print(f"{flags.samples} JPEGs of {flags.side}x{round(flags.side / 1.5)}, {size:.0f} KiB, to {flags.size} px")
        for name, path in places.items():
            for crop, flip in (("center", False), ("random", True)):
                source = name.partition(",")[0]
                data = ImageData(source=source, path=str(path), size=flags.size, crop=crop, flip=flip)
                what = "random crop, flip" if flip else "centre crop"
                print(f"| {name} | {what} | {measure(data, flags.samples):.1f} samples/s per core |")


if __name__ == "__main__":
    sys.exit(main())
