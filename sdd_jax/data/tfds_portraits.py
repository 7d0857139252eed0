"""The embedded world as a TensorFlow data set: `python -m sdd_jax.data.tfds_portraits --out=DIR --train=24000`.

Features: `image` (PNG, 64x64), `caption` (the canonical one, all attributes), `index` (of the portrait). Written as
array_record, without TensorFlow; read back by `ImageData(source="tfds", path="DIR/portraits/1.0.0", size=64)`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from sdd_jax.command import Parser, run_command
from sdd_jax.data import portraits


class Portraits(tfds.core.GeneratorBasedBuilder):
    """Portraits; `counts` says how many of each split."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would find this out through a package that it does not declare
    code_path = epath.Path(__file__)

    def __init__(self, *, counts: dict[str, int], **options: Any) -> None:
        self._counts = counts
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(portraits.SIZE, portraits.SIZE, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            "index": tfds.features.Scalar(dtype=np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural captioned portraits, 64x64.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "caption"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split, count) for split, count in self._counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in portraits.split_indices(split)[:count]:
            png = io.BytesIO()
            Image.fromarray(portraits.image(index)).save(png, format="PNG")
            caption = portraits.caption(portraits.portrait(index).attributes)
            yield index, {"image": png.getvalue(), "caption": caption, "index": index}


def write_portraits(out: str | Path, train: int, heldout: int) -> Path:
    """Writes the first portraits of both splits as array_record; returns the data set's directory.

    Raises:
        ValueError: counts that the splits do not have.
    """
    counts = {"train": train, "heldout": heldout}
    for split, count in counts.items():
        if not 0 < count <= len(portraits.split_indices(split)):
            raise ValueError(f"--{split}={count}: the split has 1..{len(portraits.split_indices(split))} portraits")
    builder = Portraits(counts=counts, data_dir=str(out), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_write, argv)


def _write(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.data.tfds_portraits", description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--train", type=int, default=24_000)
    parser.add_argument("--heldout", type=int, default=2_000)
    flags = parser.parse_args(argv)
    print(write_portraits(flags.out, flags.train, flags.heldout))


if __name__ == "__main__":
    sys.exit(main())
