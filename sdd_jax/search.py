"""`python -m sdd_jax.search --model=NAME --prompt="..." --out=DIR`: HQS over timesteps, as hqs.json and hqs.png.

The prompt says what edited images show; it may be a template, `"a photo of a {species} with white {coat}"`
(`data/prompts.py`). Images are portraits, or files: `--data=FOLDER`, `--source=tar --data=SHARDS`, `--source=coco
--data=COCO --split=val2017` (docs/data_sources.md). `--rule` is threshold:XI, top:K, argmax, random:K or all. A run
reads the result with `--config.timesteps.path=DIR/hqs.json`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import jax.numpy as jnp

from sdd_jax.command import Parser, directory, run_command
from sdd_jax.config import defaults_of
from sdd_jax.data import portraits
from sdd_jax.data.pipeline import Source
from sdd_jax.data.prompts import FOLDER_FIELDS, PORTRAIT_FIELDS, check_template
from sdd_jax.data.records import PortraitSource
from sdd_jax.data.sources import ImageData, open_source
from sdd_jax.data.sources.images import SOURCES
from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.sdd.hqs import BATCH, DEFAULT_RULE, run_search, write_search
from sdd_jax.jobs.sdd.hqs_plot import plot_search
from sdd_jax.models.load import load
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.selection import check_rule

_log = logging.getLogger("sdd_jax")
_HELP = {
    "temperature": "divides the gradient before the softmax",
    "guidance": "guidance scale; 1 is off",
    "first": "first timestep",
    "last": "last timestep",
    "stride": "between timesteps",
    "images": "number of images",
    "draws": "noises per image",
    "seed": "of the noise and of which images",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_search, argv)


def _search(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.search", description=__doc__)
    parser.add_argument("--model", required=True, help='"portraits", a directory, or a hub id')
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--data", default="portraits", help='"portraits", or the path of images')
    parser.add_argument("--source", default="folder", choices=SOURCES, help="what --data is, if not portraits")
    parser.add_argument("--split", default="train", help="of tfds and coco")
    parser.add_argument("--size", type=int, help="side of images from files; default: the model's")
    parser.add_argument("--rule", default=DEFAULT_RULE)
    parser.add_argument("--batch", type=int, default=BATCH, help="images at a time")
    parser.add_argument("--form", default="jacobian", choices=("jacobian", "sds"), help="of the gradient")
    parser.add_argument("--space", default="pixel", choices=("pixel", "latent"), help="of the gradient")
    parser.add_argument("--absolute", action="store_true", help="score mean |d| over channels, not d")
    parser.add_argument("--weighted", action="store_true", help="multiply the gradient by sigma_t^2, as training does")
    parser.add_argument("--standardize", action="store_true", help="divide the gradient by its deviation")
    defaults = defaults_of(HQSOptions)
    for name, text in _HELP.items():
        parser.add_argument(f"--{name}", type=type(defaults[name]), default=defaults[name], help=text)
    parser.add_argument("--out", required=True, type=directory)
    flags = parser.parse_args(argv)
    options = HQSOptions(
        jacobian=flags.form == "jacobian",
        pixels=flags.space == "pixel",
        absolute=flags.absolute,
        weighted=flags.weighted,
        standardize=flags.standardize,
        **{name: getattr(flags, name) for name in _HELP},
    )
    check_rule(flags.rule, len(options.times()))
    if flags.batch < 1:
        raise ValueError(f"--batch={flags.batch}: give at least one image")
    check_template(flags.prompt, PORTRAIT_FIELDS if flags.data == "portraits" else FOLDER_FIELDS)

    source = _source(flags, flags.size or 64)  # wrong paths end here, not after the model
    bundle, params = load(flags.model, flags.revision, jnp.dtype(flags.dtype))
    if not flags.size:
        source = _source(flags, bundle.sample_size * bundle.downsampling)
    began = time.monotonic()
    frozen = frozen_of(bundle, params)
    search, maps = run_search(bundle, frozen, source, flags.prompt, options, "all", flags.batch)
    _log.info("%.0f s, %d F per image", time.monotonic() - began, options.evaluations * len(search.t))
    write_search(flags.out / "hqs.json", search)  # before a rule that may find nothing
    try:
        search = search.with_rule(flags.rule, options.seed)
    except ValueError as error:
        plot_search(flags.out / "hqs.png", search, maps)
        raise ValueError(f"{error}; the scores are in {flags.out / 'hqs.json'}, all timesteps selected") from None
    write_search(flags.out / "hqs.json", search)
    plot_search(flags.out / "hqs.png", search, maps)
    scores = ", ".join(f"{t}: {score:.3f}" for t, score in zip(search.t, search.hqs, strict=True))
    _log.info("HQS %s", scores)
    _log.info("selected by %s: %s", search.rule, ", ".join(map(str, search.selected)))
    _log.info("wrote %s and %s", flags.out / "hqs.json", flags.out / "hqs.png")


def _source(flags: argparse.Namespace, size: int) -> Source:
    if flags.data == "portraits":
        return PortraitSource("train", len(portraits.split_indices("train")), cached=False)
    return open_source(ImageData(source=flags.source, path=flags.data, split=flags.split, size=size))


if __name__ == "__main__":
    sys.exit(main())
