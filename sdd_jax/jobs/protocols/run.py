"""A protocol's run: makes the pictures, measures them and reports; its command line is `flags`.

Pictures go to OUT/images, one line each to OUT/made.jsonl and OUT/scores-HASH.jsonl: the same command continues where
an interrupted one stopped; the summary is OUT/metrics.json. FID's statistics of a folder to compare with are kept in
OUT/reference.npz. Inversion is an editing method asked to change nothing, of iCD without attention control.

`--distributed` shares the batches out among the processes of a job, which all see OUT; the result is that of one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.data.decode import read_picture
from sdd_jax.evals.fid import fid, inception_network, statistics
from sdd_jax.evals.frechet import FeatureStats, frechet_distance, save_stats
from sdd_jax.evals.protocols.benchmarks import (
    Item,
    read_coco,
    read_editing,
    read_generation,
    read_inversion,
    read_pairs,
    read_pie_bench,
)
from sdd_jax.evals.protocols.log import SampleLog
from sdd_jax.evals.protocols.measures import (
    Embedder,
    Measure,
    dinov2_measure,
    fidelity,
    image_reward_measure,
    lpips_measure,
    text_image_measure,
)
from sdd_jax.evals.protocols.portraits import write_benchmark
from sdd_jax.evals.protocols.split import is_first, own, wait_for_all
from sdd_jax.evals.streaming import ShardedApply
from sdd_jax.images import write_png
from sdd_jax.jobs.protocols.conditions import restoration_folders
from sdd_jax.jobs.protocols.flags import parse
from sdd_jax.jobs.protocols.makers import Maker, make_maker
from sdd_jax.jobs.protocols.world import World, load_world
from sdd_jax.training.distributed import join_processes, last_word

WEIGHTS = ("clip", "dinov2", "lpips", "image_reward", "vocabulary", "world")
_log = logging.getLogger("sdd_jax")


def run_protocol(arguments: Sequence[str]) -> str:
    """Runs a protocol from its command line; returns a Markdown table of results, "" in all processes but the first.

    Raises:
        FileNotFoundError, ValueError: in one line, before anything is made, what is wrong with flags, files or weights.
    """
    flags = parse(arguments)
    if flags.distributed:
        join_processes(flags.heartbeat)
    with last_word():
        return _run(flags)


def _run(flags: argparse.Namespace) -> str:
    items, reference = _benchmark(flags)
    world = load_world(flags.world, flags.batch) if flags.world else None
    measures = _measures(flags, world)
    network = inception_network(flags.inception, batch=flags.batch) if flags.inception else None
    settings: dict[str, Any] = {}
    if flags.results:
        pictures = _found(items, flags.results)
    else:
        maker = make_maker(flags)
        pictures, settings = _made(items, flags, maker), maker.settings
    scores = _scores(items, pictures, measures, flags)
    summary = _summary(scores)
    if reference and len(items) > 1:
        files = [pictures[item.id] for item in items]
        if network is not None:
            truth = _statistics(reference, network, flags.out)
            summary["fid"] = frechet_distance(statistics(files, network), truth)
        if world is not None and Path(reference).is_dir():
            summary["world_frechet"] = 100 * fid(files, reference, world.network, world.prepare)
    elif reference and (network is not None or world is not None):
        _log.info("one sample has no distribution: its Frechet distance is left out, ask for two or more")
    return _report(flags, summary, settings, len(items)) if is_first() else ""


def _statistics(reference: str, network: ShardedApply, out: Path) -> FeatureStats:
    """The reference's, which are kept in OUT/reference.npz where it is a folder."""
    truth = statistics(reference, network)
    if Path(reference).is_dir() and is_first():
        scratch = out / "reference.partial.npz"
        save_stats(scratch, truth)
        scratch.replace(out / "reference.npz")
    return truth


def _benchmark(flags: argparse.Namespace) -> tuple[list[Item], str]:
    """The samples, and what their distribution is compared with ("" for nothing)."""
    csv, data, reference, home = flags.csv, flags.data, flags.reference, flags.out / "benchmark"
    restored = restoration_folders(flags, home) if flags.protocol == "restoration" else None
    if flags.benchmark:
        write_benchmark(home, flags.samples or 64)
        csv, data = str(home / f"{flags.protocol}.csv"), str(home / "images")
        reference = reference or str(home / "images")
    if restored is not None:
        data, reference = restored.data, restored.reference
    needed = {"generation": {"--csv": csv or data}, "restoration": {"--data": data, "--reference": reference}}
    for flag, value in needed.get(flags.protocol, {"--data": data}).items():
        if not value:
            raise ValueError(f"--protocol={flags.protocol} needs {flag}, or --benchmark=portraits")
    if flags.protocol == "generation":
        items = read_generation(csv) if csv else read_coco(data)
    elif restored is not None:
        items = read_pairs(*restored)
    elif flags.protocol == "inversion":
        if not csv:
            raise ValueError("--protocol=inversion needs --csv, of file_name and caption")
        items = read_inversion(csv, data)
    else:
        items = read_editing(csv, data) if csv else read_pie_bench(data)
    if flags.samples > len(items):
        raise ValueError(f"--samples={flags.samples}: the benchmark has {len(items)}")
    if jax.process_count() > (flags.samples or len(items)):
        raise ValueError(f"{flags.samples or len(items)} samples leave some of {jax.process_count()} processes idle")
    return items[: flags.samples or None], reference


def _measures(flags: argparse.Namespace, world: World | None) -> list[Measure]:
    measures: list[Measure] = [] if flags.protocol == "generation" else [fidelity]
    if flags.lpips:
        measures.append(lpips_measure(*flags.lpips.split(","), batch=flags.batch))
    if flags.dinov2:
        measures.append(dinov2_measure(flags.dinov2, batch=flags.batch))
    if flags.clip:
        from sdd_jax.evals.clip_score import CLIPScorer

        scorer = CLIPScorer.load(flags.clip, batch=flags.batch)
        measures.append(text_image_measure(Embedder(scorer.embed_images, scorer.embed_texts)))
    if world is not None and flags.protocol != "restoration":
        measures.append(text_image_measure(world.embedder, "world_clip"))
    if flags.image_reward:
        measures.append(image_reward_measure(flags.image_reward, flags.vocabulary, batch=flags.batch))
    if not measures and not flags.inception:
        raise ValueError("nothing to measure with: give --clip, --image-reward, --inception or --world=portraits")
    return measures


def _found(items: Sequence[Item], folder: Path) -> dict[str, Path]:
    """The pictures of a folder by sample: named as the sample's id, its image, or its position."""
    from sdd_jax.evals.preprocess import image_paths

    stems = {path.stem: path for path in image_paths(folder)}
    found = {}
    for number, item in enumerate(items):
        names = [item.id, item.image.stem if item.image else item.id, str(number)]
        match = next((stems[name] for name in names if name in stems), None)
        if match is None:
            raise FileNotFoundError(f"--results={folder} has no picture of sample {item.id} (tried {', '.join(names)})")
        found[item.id] = match
    return found


def _made(items: Sequence[Item], flags: argparse.Namespace, maker: Maker) -> dict[str, Path]:
    """Makes the pictures that are not made yet, in the same batches whatever is missing; returns all by sample."""
    asked = {name: getattr(flags, name) for name in ("protocol", "method", "option", "blend", "seed", "dtype")}
    asked |= {"items": _contents(items), "model": maker.name, "settings": maker.settings}
    log = SampleLog(flags.out / "made.jsonl", asked, jax.process_index())
    paths = {item.id: flags.out / "images" / f"{item.id}.png" for item in items}
    left = {item.id for item in items if item.id not in log.rows or not paths[item.id].is_file()}
    if len(left) < len(items):
        _log.info("%d of %d pictures are there already", len(items) - len(left), len(items))
    starts = [
        start
        for start in range(0, len(items), flags.batch)
        if not left.isdisjoint(item.id for item in items[start : start + flags.batch])
    ]
    wait_for_all("made before")
    began, done = time.monotonic(), 0
    for start in own(starts):
        part = items[start : start + flags.batch]
        numbers = [*range(start, start + len(part)), *[start + len(part) - 1] * (flags.batch - len(part))]
        images, evaluations = maker.make([items[number] for number in numbers], numbers)
        for item, image in zip(part, images, strict=False):
            write_png(paths[item.id], image)
        log.add(
            {"id": item.id, "target": item.target, "evaluations": evaluations}
            for item in part
            if item.id not in log.rows
        )
        done += len(part)
        _log.info("made %d of %d, %.2f s each", start + len(part), len(items), (time.monotonic() - began) / done)
    wait_for_all("made")
    if is_first():
        log.merge(item.id for item in items)
    return paths


def _scores(
    items: Sequence[Item], pictures: dict[str, Path], measures: Sequence[Measure], flags: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measures the samples that are not measured yet; returns the rows of all, to the first process."""
    asked = {name: getattr(flags, name) for name in (*WEIGHTS, "protocol")}
    asked |= {"items": _contents(items), "results": str(flags.results or "")}
    log = SampleLog(flags.out / f"scores-{_digest(asked)}.jsonl", asked, jax.process_index())
    left = [item for item in items if item.id not in log.rows]
    wait_for_all("measured before")
    for start in own(range(0, len(left), flags.batch)):
        part = left[start : start + flags.batch]
        shown = [np.asarray(read_picture(pictures[item.id])) for item in part]
        values: dict[str, np.ndarray] = {}
        for measure in measures:
            values |= measure(part, shown)
        log.add(
            {"id": item.id, **{name: _json(column[i]) for name, column in values.items()}}
            for i, item in enumerate(part)
        )
        _log.info("measured %d of %d", start + len(part), len(left))
    wait_for_all("measured")
    if not is_first():
        return []
    log.merge(item.id for item in items)
    return [log.rows[item.id] for item in items]


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of every column over the samples that have it."""
    names = dict.fromkeys(name for row in rows for name in row if name != "id")
    columns = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: float(np.mean(column)) for name, column in columns.items() if column}


def _report(flags: argparse.Namespace, summary: dict[str, float], settings: dict[str, Any], count: int) -> str:
    who = str(flags.exported or flags.model or flags.workdir or flags.results)
    report = {"protocol": flags.protocol, "of": who, "method": flags.method, "samples": count}
    report |= {"settings": settings, "metrics": summary}
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    names = [f"{name}-{count}" if name in ("fid", "world_frechet") else name for name in summary]
    lines = [f"| {flags.protocol}, {count} samples | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    values = " | ".join(f"{value:.4g}" for value in summary.values())
    return "\n".join([*lines, f"| {who}{', ' * bool(flags.method)}{flags.method} | {values} |"])


def _contents(items: Sequence[Item]) -> str:
    """What a benchmark asks for, wherever its files are."""
    names = [item.image.name if item.image else "" for item in items]
    asked = [(item.id, item.source, item.target, item.blend, item.mask) for item in items]
    return _digest([names, asked])


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
