"""`python -m sdd_jax.bench_data`: how many samples a second one core makes of the streams that jobs train on.

| stream | a sample is |
| --- | --- |
| portraits, drawn | a picture drawn by the renderer |
| portraits, cached | a picture rendered once, its caption drawn and tokenised |
| super-resolution | a cached picture degraded, its caption, its precomputed moments |
| latents, 64 px | a record of precomputed moments and text states of the embedded model |
| latents, SD 1.5 | the same at 512 px: 65 KB + 118 KB on disk |
| latents with picture, SD 1.5 | the same with the picture, not yet degraded: 970 KB on disk |

Each goes through the jobs' own stream (`pipeline.make_stream`, threads, batches of 16). What is divided by is the
processor time of the whole process, so that a core shared with other work does not count as slower. Pictures from
folders, tar shards and TensorFlow data sets have a command of their own: `python -m sdd_jax.data.throughput`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sdd_jax.command import Parser, run_command
from sdd_jax.data.degrade_spec import preset
from sdd_jax.data.latent_records import LatentRecords, Manifest
from sdd_jax.data.latent_rows import text_to_image
from sdd_jax.data.latent_writer import LatentWriter
from sdd_jax.data.pipeline import HostBatch, Source, make_stream
from sdd_jax.data.portraits import SIZE
from sdd_jax.data.records import PortraitSource, Transform, captioned, plain
from sdd_jax.data.restoration import degraded_portraits
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.models.tokenizer import load_tokenizer

BATCH = 16
COUNT = 512


def samples_per_core_second(stream: Iterator[HostBatch], seconds: float, warm_up: int = 4) -> float:
    """Samples that a stream makes per second of this process's processor time, all threads together.

    Args:
        stream: batches of arrays whose first axis is the sample.
        seconds: processor time to measure for, after `warm_up` batches.
    """
    for _ in range(warm_up):
        next(stream)
    began, samples = time.process_time(), 0
    while True:
        samples += len(next(iter(next(stream).values())))
        spent = time.process_time() - began
        if spent >= seconds:
            return samples / spent


def streams(scratch: Path) -> dict[str, Iterator[HostBatch]]:
    """The streams of the table, by name; `scratch` takes the records that some of them read."""
    tokenize = load_tokenizer(PORTRAITS / "tokenizer")
    drawn, cached = (PortraitSource("train", COUNT, cached=kept) for kept in (False, True))
    moments = np.random.default_rng(0).normal(size=(COUNT, SIZE // 4, SIZE // 4, 8)).astype(np.float16)
    degraded = degraded_portraits(tokenize, preset("portraits", SIZE), "random", moments)
    small = {"moments": (SIZE // 4, SIZE // 4, 8), "context": (40, 128)}
    large = {"moments": (64, 64, 8), "context": (77, 768)}
    pictured = {"moments": large["moments"], "image": (512, 512, 3), "context": large["context"]}
    sources: dict[str, tuple[Source, Transform]] = {
        "portraits, drawn": (drawn, plain),
        "portraits, cached": (cached, captioned(tokenize)),
        "super-resolution": (cached, degraded),
        "latents, 64 px": (random_latents(scratch / "small", small), text_to_image),
        "latents, SD 1.5": (random_latents(scratch / "large", large), text_to_image),
        "latents with picture, SD 1.5": (
            random_latents(scratch / "pictured", pictured),
            lambda record, rng: {"image": record["image"], **text_to_image(record, rng)},
        ),
    }
    return {
        name: make_stream(source, transform, batch_size=BATCH, seed=0) for name, (source, transform) in sources.items()
    }


def random_latents(directory: Path, shapes: dict[str, tuple[int, ...]], count: int = COUNT) -> LatentRecords:
    """Writes and opens `count` records of random content, `image` as u8 and the rest as f16."""
    dtypes = {name: "uint8" if name == "image" else "float16" for name in shapes}
    manifest = Manifest(
        model="random", model_hash="random", data={}, count=count, shard_size=count,
        arrays={name: (shape, dtypes[name]) for name, shape in shapes.items()},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    row = {name: (50 * rng.random(shape)).astype(dtypes[name]) for name, shape in shapes.items()}
    writer = LatentWriter(directory, manifest)
    writer.write_shard(0, (row for _ in range(count)))
    writer.finish({"context": np.zeros((1, *shapes["context"]), np.float32)})
    return LatentRecords(directory, "random")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_bench_data, argv)


def _bench_data(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.bench_data", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="processor time for each stream")
    flags = parser.parse_args(argv)
    print("| stream | samples/s per core | KB a sample |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name, stream in streams(Path(scratch)).items():
            size = sum(value.nbytes for value in next(stream).values()) / BATCH / 1e3
            print(f"| {name} | {samples_per_core_second(stream, flags.seconds):.0f} | {size:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
