"""`python -m sdd_jax.edit --method=p2p --model=portraits --image=in.png --source="..." --target="..." --out=out.png`.

Every editing method that the papers use or compare with, on a model (`--model`: "portraits", a directory, a hub id) or
on a run (`--workdir`). `--image` takes several, and directories of them, edited `--batch` at once: as many `--source`
and `--target` prompts, or one for all. `--option key=value` sets what the method takes; a wrong one is answered with
the list. `--out` is one PNG with all answers, or a directory for a PNG each, with `--beside` the source before each
edit; `--frames` draws the way there, of methods that have one, as a strip or a GIF.

    python -m sdd_jax.edit --method=p2p,npi,sdedit --benchmark=portraits --samples=16 --out=DIR

instead measures methods on edits of portraits with known answers: a table, `editing.json` and `editing.png` in DIR (see
docs/editing.md; for real images `python -m sdd_jax.evaluate --protocol=editing`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdd_jax.command import Parser, run_command
from sdd_jax.data.edit_pairs import EDITS, parse_edit
from sdd_jax.images import make_grid, to_uint8, write_grid
from sdd_jax.jobs.editing.methods import METHODS, WITH_FRAMES, side_unit
from sdd_jax.jobs.editing.models import open_model
from sdd_jax.jobs.editing.options import check_options, options_of, parse_options
from sdd_jax.jobs.editing.pictures import answer_files, edit_pictures, find_pictures, is_grid
from sdd_jax.jobs.editing.report import Editor, report_pairs
from sdd_jax.types import ModelBundle

FRAMES = 10
_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_edit, argv)


def _edit(argv: Sequence[str]) -> None:
    flags = _parser().parse_args(argv)
    methods = flags.method.split(",")
    options = parse_options(flags.option)
    for method in methods:
        check_options(method, options_of(method, methods, options))
    if flags.batch < 1:
        raise ValueError(f"--batch={flags.batch}: edit at least one picture at once")
    if flags.benchmark:
        print(_measure(flags, tuple(methods), options))
        return
    if len(methods) > 1:
        raise ValueError(f"--method={flags.method}: one image is edited by one method; several need --benchmark")
    if not flags.image or not flags.target:
        raise ValueError("--image and --target: say what to edit, and what it should show")
    pictures = find_pictures(flags.image)
    source, target = (_prompts(name, getattr(flags, name), len(pictures)) for name in ("source", "target"))
    files = answer_files(flags.out, pictures)
    options = options_of(flags.method, methods, options)
    if flags.frames is not None:
        options = _with_frames(flags, options)
    model, frozen = open_model(flags)
    asked = {"size": parse_size(flags.size, model), "batch": flags.batch, "seed": flags.seed, "options": options}
    began, unwritten, evaluations, shown, frames = time.monotonic(), iter(files), [], [], []
    for images, result in edit_pictures(flags.method, model, frozen, pictures, (source, target), **asked):
        for row in np.stack([images, result.image], 1) if flags.beside else result.image[:, None]:
            if is_grid(flags.out):
                shown.append(row)
            else:
                write_grid(next(unwritten), [row])
        frames += [] if result.frames is None else [result.frames]
        evaluations += [result.evaluations] * len(images)
    _log.info(
        "%s: %g evaluations an image, %.1f s with compilation",
        flags.method, np.mean(evaluations), time.monotonic() - began,
    )  # fmt: skip
    if shown:
        write_grid(flags.out, [np.concatenate(shown)])
    if flags.frames is not None:
        write_frames(flags.frames, np.concatenate(frames, axis=1))
    _log.info("wrote %s", flags.out)


def _with_frames(flags: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a method that leaves frames, as `--frames` asks; ValueError where there will be none."""
    if flags.frames.suffix not in (".png", ".gif"):
        raise ValueError(f"--frames={flags.frames}: name a .png strip or a .gif")
    if flags.method not in WITH_FRAMES:
        raise ValueError(f"--frames: {flags.method} has no way to show, as {', '.join(WITH_FRAMES)} have; leave it out")
    if not options.get("frames", FRAMES):
        raise ValueError("--frames shows what --option frames=0 leaves out: give one of the two")
    return {"frames": FRAMES, **options}


def _measure(flags: argparse.Namespace, methods: tuple[str, ...], options: dict[str, Any]) -> str:
    """Measures methods on portraits, as `--benchmark` asks; returns the table."""
    if flags.image or flags.target or flags.frames or flags.beside:
        raise ValueError("--benchmark has its own images and prompts: leave --image, --target, --frames, --beside out")
    if flags.samples < 1:
        raise ValueError(f"--samples={flags.samples}: ask for at least one")
    edits = tuple(flags.edits.split(",")) if flags.edits else EDITS
    for one in edits:
        parse_edit(one)
    model, frozen = open_model(flags)
    editor = Editor(model=model, frozen=frozen, methods=methods, options=options, seed=flags.seed, batch=flags.batch)
    return report_pairs(editor, flags.out, flags.samples, edits, flags.world)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m sdd_jax.edit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", required=True, help=", ".join(METHODS))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="portraits", help='"portraits", a directory or a hub id')
    which.add_argument("--workdir", type=Path, help="a run to edit with")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of a model")
    parser.add_argument("--image", nargs="+", type=Path, help="pictures to edit, and directories of them")
    parser.add_argument("--batch", type=int, default=16, help="pictures edited at once")
    parser.add_argument("--source", nargs="+", default=[""], help="what each shows")
    parser.add_argument("--target", nargs="+", help="what each should show")
    parser.add_argument("--size", default="", help="side in pixels, or WIDTHxHEIGHT; by default the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the method; repeatable")
    parser.add_argument("--beside", action="store_true", help="put each source before its edit")
    parser.add_argument("--frames", type=Path, help="a .png strip or a .gif of the way")
    parser.add_argument("--out", required=True, type=Path, help="a PNG, or a directory; of a benchmark a directory")
    benchmark = parser.add_argument_group("measuring methods")
    benchmark.add_argument("--benchmark", choices=("portraits",), help="measure on these in place of editing --image")
    benchmark.add_argument("--samples", type=int, default=16, help="portraits of each edit")
    benchmark.add_argument("--edits", default="", help="as accessory=hat,weather=snowing; by default nine")
    benchmark.add_argument("--world", default="portraits", help="whose instruments measure")
    return parser


def parse_size(text: str, model: ModelBundle) -> tuple[int, int]:
    """(height, width) in pixels of `--size`; ValueError for what is none, or does not fit the model.

    By default the model's own, of a run that edits a generator's codes the generator's.
    """
    if not text:
        side = model.configs.get("manipulator", {}).get("side") or model.sample_size * model.downsampling
        return side, side
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    unit = side_unit(model)
    if len(sides) not in (1, 2) or any(side < unit or side % unit for side in sides):
        raise ValueError(f"--size={text}: give a side, or WIDTHxHEIGHT, in multiples of {unit} for {model.source}")
    return sides[-1], sides[0]


def write_frames(path: Path, frames: np.ndarray) -> None:
    """Writes f32[n,b,H,W,3] as a PNG, one row an image, or as a GIF."""
    if path.suffix == ".png":
        write_grid(path, list(frames.swapaxes(0, 1)))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(make_grid([to_uint8(frame)])) for frame in frames]
    partial = path.with_name(f"{path.name}.partial")
    pages[0].save(partial, format="GIF", save_all=True, append_images=pages[1:], duration=80, loop=0)
    partial.rename(path)


def _prompts(name: str, given: list[str], count: int) -> tuple[str, ...]:
    if len(given) not in (1, count):
        raise ValueError(f"--{name}: {len(given)} prompts for {count} images; give one of each, or one for all")
    return tuple(given * count if len(given) == 1 else given)


if __name__ == "__main__":
    sys.exit(main())
