"""`python -m sdd_jax.evaluate --protocol=NAME ...`: the papers' evaluations of a model, a run, or a folder of results.

    --protocol=generation  --model=DIR --csv=generation_coco.csv --samples=5000 --inception=W.pth --reference=coco.npz
    --protocol=generation  --model=DIR --data=COCO --samples=5000 --inception=W.pth --reference=COCO/val2017
    --protocol=inversion   --model=DIR --method=ddib --csv=FILE.csv --data=IMAGES --lpips=vgg,vgg16.pth,vgg_lin.pth
    --protocol=editing     --model=DIR --method=p2p --csv=editing_coco.csv --data=IMAGES --clip=DIR --dinov2=DIR
    --protocol=editing     --model=DIR --method=p2p --data=PIE_BENCH --blend --clip=DIR
    --protocol=restoration --workdir=RUN --data=DEGRADED --reference=ORIGINALS --inception=W.pth
    --protocol=restoration --workdir=DEPTH_RUN --data=IMAGES --condition=DEPTHS --inception=W.pth

`--exported=DIR` beside `--model=TEACHER` takes what `python -m sdd_jax.export` wrote of a run of CCD or its baselines,
of iCD, or of a mapper of a generator's codes. `--results=DIR` in place of a model measures pictures that something else
made: of the same names as the samples' ids or images. `--benchmark=portraits` in place of CSV and data takes held-out
portraits. Without weights for any measure, results are measured by PSNR and SSIM and, of the embedded world, by its own
CLIP.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import Parser, directory
from sdd_jax.jobs.ccd.conditional import SAMPLERS
from sdd_jax.training.distributed import add_process_flags

PROTOCOLS = ("generation", "inversion", "editing", "restoration")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns a protocol's flags; raises ValueError for those that do not go together."""
    parser = Parser(
        prog="python -m sdd_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help='"portraits", a directory or a hub id')
    which.add_argument("--workdir", type=Path, help="a run")
    which.add_argument("--results", type=Path, help="a folder of pictures made by something else")
    parser.add_argument("--exported", type=Path, help="the export of a run that has parts of --model, its teacher")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of a model; default float32")
    parser.add_argument("--csv", default="", help="the benchmark's prompts or edits")
    parser.add_argument(
        "--data", default="", help="images, of the benchmark or degraded; COCO's or PIE-bench's directory"
    )
    parser.add_argument("--condition", default="", help="depth maps, or images before the edit; default: the run's own")
    parser.add_argument("--reference", default="", help="folder, or .npz of statistics, for FID; originals")
    parser.add_argument("--benchmark", default="", choices=("", "portraits"), help="in place of --csv and --data")
    parser.add_argument("--samples", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--method", default="", help="of inversion and editing")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the method; repeatable")
    parser.add_argument("--blend", action="store_true", help="give the method each sample's blended words")
    parser.add_argument("--steps", type=int, help="of generation and restoration; default: see docs/metrics.md")
    parser.add_argument("--guidance", type=float, help="of the same, 1 is off; default: see docs/metrics.md")
    parser.add_argument("--solver", default="", choices=["", *SAMPLERS], help="of CCD's runs and its baselines'")
    parser.add_argument("--size", type=int, default=0, help="side of pictures; 0: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clip", default="", help="directory of a CLIP")
    parser.add_argument("--dinov2", default="", help="directory of a DINOv2")
    parser.add_argument("--lpips", default="", metavar="NAME,BACKBONE,LINEAR", help="alex or vgg and its two files")
    parser.add_argument("--inception", default="", help="pytorch-fid's weights")
    parser.add_argument("--image-reward", default="", help="ImageReward.pt; needs --vocabulary")
    parser.add_argument("--vocabulary", default="", help="vocab.txt of bert-base-uncased")
    parser.add_argument("--world", default="", help='the embedded world that measures: "portraits" or a directory')
    parser.add_argument("--out", required=True, type=directory)
    add_process_flags(parser)
    flags = parser.parse_args(arguments)
    _check(flags)
    _check_read(flags)
    flags.dtype = flags.dtype or "float32"
    return flags


def _check(flags: argparse.Namespace) -> None:
    if flags.batch < 1 or flags.samples < 0 or flags.size < 0:
        raise ValueError(f"--batch={flags.batch} --samples={flags.samples} --size={flags.size}: not such numbers")
    if flags.steps is not None and flags.steps < 1:
        raise ValueError(f"--steps={flags.steps}: at least 1")
    if bool(flags.image_reward) != bool(flags.vocabulary):
        raise ValueError("--image-reward and --vocabulary: ImageReward needs its weights and BERT's vocab.txt, both")
    if flags.lpips and (len(flags.lpips.split(",")) != 3 or flags.lpips.split(",")[0] not in ("alex", "vgg")):
        raise ValueError(
            f"--lpips={flags.lpips}: give alex or vgg, the backbone's file and the linear weights', by commas"
        )
    if flags.exported and not flags.model:
        raise ValueError(f"--exported={flags.exported} needs --model: the teacher that the run was distilled from")
    if flags.protocol in ("inversion", "editing") and not (flags.method or flags.results):
        raise ValueError(f"--protocol={flags.protocol} needs --method: one of python -m sdd_jax.edit's")
    if flags.benchmark and (flags.csv or flags.data or flags.condition):
        raise ValueError("--benchmark brings its own --csv, --data and --condition: leave them out")
    if flags.inception and not (flags.reference or flags.protocol == "restoration" or flags.benchmark):
        raise ValueError("--inception: FID needs --reference, a folder of real images or their statistics .npz")


def _check_read(flags: argparse.Namespace) -> None:
    """Raises ValueError for a flag that is given though nothing would read it."""
    makes, edits = not flags.results, flags.protocol in ("inversion", "editing")
    samples, prompted = makes and not edits, flags.protocol != "restoration"
    compared, pairs = flags.protocol != "generation", "of protocols with a picture to compare with, not of generation"
    steps = "of generation and restoration by a model: editing methods take --option KEY=VALUE"
    for flag, is_given, is_read, whose in (
        ("--dtype", flags.dtype, flags.model, "of --model: a run keeps its config.dtype"),
        ("--revision", flags.revision, flags.model, "of --model"),
        ("--method", flags.method, edits, "of inversion and editing"),
        ("--option", flags.option, makes, "of what makes pictures"),
        ("--blend", flags.blend, makes and flags.protocol == "editing", "of editing"),
        ("--csv", flags.csv, prompted, "of protocols with prompts to follow: restoration takes --data"),
        ("--data", flags.data, flags.protocol != "generation" or not flags.csv, "COCO's directory in place of --csv"),
        ("--size", flags.size, makes, "of what makes pictures"),
        ("--steps", flags.steps is not None, samples, steps),
        ("--guidance", flags.guidance is not None, samples, steps),
        ("--solver", flags.solver, samples, "of generation and restoration by a run"),
        ("--condition", flags.condition, makes and flags.protocol == "restoration", "of restoration by a run"),
        ("--clip", flags.clip, prompted, "of protocols with prompts to follow, not of restoration"),
        ("--image-reward", flags.image_reward, prompted, "of protocols with prompts to follow, not of restoration"),
        ("--lpips", flags.lpips, compared, pairs),
        ("--dinov2", flags.dinov2, compared, pairs),
    ):
        if is_given and not is_read:
            raise ValueError(f"{flag} is {whose}; leave it out")
