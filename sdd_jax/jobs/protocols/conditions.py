"""What a run of CCD or of its baselines is conditioned on, and the folders that restoration reads that from.

| condition | --data | --condition | --reference |
| --- | --- | --- | --- |
| superres | degraded images | - | the originals |
| canny, inpaint | the originals: edges and masks are made of them | - | --data |
| depth | the originals | their depth maps | --data |
| edit | the images after the edit, captioned by the instruction | the images before it | --data |

Conditions are made as training makes them of images on disk (`data.conditions`), but of images stretched to the model's
square, as references are. A sample's mask depends on its place in the benchmark alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.config import to_plain, validate
from sdd_jax.data.conditions import read_depth
from sdd_jax.data.records import to_float
from sdd_jax.evals.protocols.benchmarks import Item
from sdd_jax.evals.protocols.measures import read_stretched
from sdd_jax.jobs.ccd.data import PAIRED, ConditionConfig, file_condition, heldout_rng
from sdd_jax.jobs.ccd.heldout import condition_of
from sdd_jax.jobs.protocols.exported import NETWORKS, exported_condition
from sdd_jax.models.card import Record, read_record
from sdd_jax.runs import read_config


class Folders(NamedTuple):
    """Names of directories; condition: of the second images of pairs, "" for none."""

    data: str
    reference: str
    condition: str = ""


PORTRAITS = {
    "superres": Folders("degraded", "images"),
    "depth": Folders("images", "images", "depth"),
    "edit": Folders("counterfactuals", "counterfactuals", "images"),
    "inpaint": Folders("images", "images"),
    "canny": Folders("images", "images"),
}
"""Of the portraits' benchmark."""


def record_of(flags: argparse.Namespace) -> Record:
    """The config of a run, and of what was exported of one its origins too; nothing of a model."""
    if flags.exported:
        return read_record(flags.exported)
    return Record({} if flags.workdir is None else to_plain(read_config(flags.workdir)), {})


def trained_condition(flags: argparse.Namespace, record: Record) -> ConditionConfig:
    """The condition of the run or the export that a protocol is asked to take.

    Raises:
        ValueError: a run or a model of another kind, or with a condition that the protocol does not take.
    """
    if record.config.get("task", "") not in NETWORKS:
        raise ValueError(
            f"--protocol={flags.protocol} takes runs of {', '.join(NETWORKS)} (--workdir), what was exported of such "
            "(--exported), or pictures made before (--results)"
        )
    section = exported_condition(record) if flags.exported else condition_of(flags.workdir)
    condition = validate(section, ConditionConfig, "config.condition")
    if (condition.task == "none") != (flags.protocol == "generation"):
        where = f"--exported={flags.exported}" if flags.exported else f"--workdir={flags.workdir}"
        takes = "'none' runs" if flags.protocol == "generation" else "all others, --protocol=generation those"
        raise ValueError(f"{where} has the condition {condition.task!r}: {flags.protocol} takes {takes}")
    return condition


def restoration_folders(flags: argparse.Namespace, benchmark: Path) -> Folders:
    """Where restoration's samples are; benchmark: the directory of the portraits', where they are asked for.

    Raises:
        ValueError: as `trained_condition`, or --condition of a run that reads one picture.
        FileNotFoundError: no directory of the second images of pairs.
    """
    condition = ConditionConfig() if flags.results else trained_condition(flags, record_of(flags))
    if flags.benchmark:
        data, reference, second = (str(benchmark / name) if name else "" for name in PORTRAITS[condition.task])
        return Folders(data, flags.reference or reference, second)
    if condition.task in PAIRED:
        condition = dataclasses.replace(condition, path=flags.condition or condition.path)
        if not condition.path or not Path(condition.path).is_dir():
            found = f"config.condition.path={condition.path!r}" if not flags.condition else repr(flags.condition)
            raise FileNotFoundError(
                f"{condition.task} reads pairs of images and {found} is no directory: give --condition, with files "
                "named as those of --data"
            )
        return Folders(flags.data, flags.reference or flags.data, condition.path)
    if flags.condition:
        raise ValueError(f"--condition={flags.condition}: {condition.task} reads no second images, leave it out")
    return Folders(flags.data, flags.reference or ("" if condition.task == "superres" else flags.data))


def read_condition(item: Item, number: int, condition: ConditionConfig, size: int) -> np.ndarray | None:
    """A sample's condition f32[size,size,c] in [-1, 1], None for none; number: its place in the benchmark."""
    if condition.task == "none":
        return None
    if condition.task == "superres":
        return read_square(item, size)
    record: dict[str, Any] = {}
    if condition.task not in PAIRED:
        record["image"] = read_stretched(_required(item.image, item), (size, size))
    elif condition.task == "depth":
        record["partner"] = read_depth(_required(item.condition, item), size, stretched=True)
    else:
        record["partner"] = read_stretched(_required(item.condition, item), (size, size))
    return file_condition(condition)(record, heldout_rng(number)).condition


def read_square(item: Item, size: int) -> np.ndarray:
    """A sample's image stretched to [size, size], f32 in [-1, 1], as iCD's evaluation reads its benchmarks."""
    return to_float(read_stretched(_required(item.image, item), (size, size)))


def _required(path: Path | None, item: Item) -> Path:
    if path is None:
        raise ValueError(f"sample {item.id} has no image")
    return path
