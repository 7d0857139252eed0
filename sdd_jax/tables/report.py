"""A table's results: gathered from the cache, written as `TABLE.json`, `TABLE.md` and plots.

    {"rows": [{row, config, seeds, metrics, status, device}], "claims": [{claim, holds, evidence}]}

    config   the training's command line, the evaluation's options, and #KEY, a hash of all that the figures depend on
    seeds    {"training": [...], "sampling": [...]} of what is measured so far
    metrics  {"mean": {metric: x}, "spread": {metric: x}, "per_seed": [{training_seed, sampling_seed, metric: x, ...}]}
    status   "measured" or "not run"

A figure of a row is taken from the cache, else from the results file that is already there, if it was measured with the
same #KEY: results measured elsewhere stay until something they depend on changes. Claims are decided anew every time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdd_jax.tables.cache import Cache, read_json, write_atomically
from sdd_jax.tables.claims import judge
from sdd_jax.tables.plots import draw
from sdd_jax.tables.types import Have, Measured, Row, Seeds, Stat, Table, stat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A row as measured so far: metrics by (training seed, sampling seed), and on which devices."""

    row: Row
    config: str
    values: Mapping[Seeds, Mapping[str, float]]
    devices: tuple[str, ...] = ()

    @property
    def stats(self) -> dict[str, Stat]:
        """Every metric over the seeds that measured it."""
        names = dict.fromkeys(name for metrics in self.values.values() for name in metrics)
        return {
            name: stat({seeds: metrics[name] for seeds, metrics in self.values.items() if name in metrics})
            for name in names
        }

    def to_json(self) -> dict[str, Any]:
        """The row as the results file has it."""
        training = [seed for seed in dict.fromkeys(seed for seed, _ in self.values) if seed is not None]
        record: dict[str, Any] = {"row": self.row.name, "config": self.config}
        record["seeds"] = {"training": training, "sampling": list(dict.fromkeys(seed for _, seed in self.values))}
        record["metrics"] = {}
        if self.values:
            record["metrics"] = {
                "mean": {name: found.mean for name, found in self.stats.items()},
                "spread": {name: found.spread for name, found in self.stats.items()},
                "per_seed": [
                    {"training_seed": training, "sampling_seed": sampling, **metrics}
                    for (training, sampling), metrics in self.values.items()
                ],
            }
        status = "measured" if self.values else "not run"
        return {**record, "status": status, "device": ", ".join(self.devices)}


def gather(table: Table, cache: Cache, before: Mapping[str, Any]) -> list[Result]:
    """Returns what is known of every row; `before` is the content of the results file, or {}."""
    results = []
    for row in table.rows:
        known, devices = recorded(row, cache, before)
        values: dict[Seeds, Mapping[str, float]] = {}
        for training_seed in row.training_seeds:
            for sampling_seed in row.sampling_seeds:
                seeds = (training_seed, sampling_seed)
                found = cache.evaluation(row, *seeds)
                if found:
                    values[seeds] = {**found["metrics"], **_minutes(row, training_seed, found["seconds"], cache)}
                    devices = (*devices, found["device"])
                elif seeds in known:
                    values[seeds] = known[seeds]
        results.append(
            Result(row=row, config=_config(row, cache), values=values, devices=tuple(dict.fromkeys(devices)))
        )
    return results


def recorded(
    row: Row, cache: Cache, before: Mapping[str, Any]
) -> tuple[dict[Seeds, Mapping[str, float]], tuple[str, ...]]:
    """What the results file `before` has of a row, and its device, if it was measured with the row's #KEY of now."""
    for record in before.get("rows", ()):
        if record["row"] == row.name and record["metrics"] and record["config"] == _config(row, cache):
            values: dict[Seeds, Mapping[str, float]] = {
                (entry["training_seed"], entry["sampling_seed"]): {
                    name: value for name, value in entry.items() if name not in _SEED_KEYS
                }
                for entry in record["metrics"]["per_seed"]
            }
            return values, (record["device"],)
    return {}, ()


def measured_before(table: Table, cache: Cache, out: Path) -> Have:
    """The evaluations that OUT/TABLE.json has, as (row's name, seeds), wherever they were made."""
    before = read_json(out / f"{table.name}.json")
    return {(row.name, seeds) for row in table.rows for seeds in recorded(row, cache, before)[0]}


def _config(row: Row, cache: Cache) -> str:
    key = cache.fingerprint(row)
    return " ".join([row.config, f"#{key}"] if key else []).strip()


_SEED_KEYS = ("training_seed", "sampling_seed")


def _minutes(row: Row, seed: int | None, seconds: float, cache: Cache) -> dict[str, float]:
    minutes = {"evaluate_minutes": round(seconds / 60, 2)}
    if row.training is not None and seed is not None and cache.seconds(row.training, seed):
        minutes["train_minutes"] = round(sum(cache.seconds(stage, seed) for stage in row.training.stages) / 60, 2)
    return minutes


def write_results(table: Table, cache: Cache, out: Path, problems: Mapping[str, str]) -> None:
    """Writes OUT/TABLE.json, OUT/TABLE.md and the plots; `problems` says which rows failed in this run, and why."""
    path = out / f"{table.name}.json"
    results = gather(table, cache, read_json(path))
    measured: Measured = {result.row.name: result.stats for result in results if result.values}
    claims = []
    for claim in table.claims:
        verdict = judge(claim, measured)
        claims.append({"claim": claim.text, "holds": verdict.holds, "evidence": verdict.evidence})
    content = {"rows": [result.to_json() for result in results], "claims": claims}
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False))
    drawn = [plot.name for plot in table.plots if draw(plot, measured, out / f"{table.name}-{plot.name}.png")]
    write_atomically(out / f"{table.name}.md", markdown(table, results, claims, drawn, problems))


def markdown(
    table: Table,
    results: list[Result],
    claims: list[dict[str, Any]],
    plots: list[str],
    problems: Mapping[str, str],
) -> str:
    """The results as a page."""
    measured = [result for result in results if result.values]
    shown = [c for c in table.columns if any(c.metric in result.stats for result in measured)]
    timed = any("train_minutes" in result.stats for result in measured)
    head = ["row", *map(str, shown), *(["minutes to train, with its stages"] if timed else []), "runs", ""]
    lines = [f"# {table.title}", "", f"{table.paper}. {table.note}".strip(), ""]
    lines += [_line(head), _line(["---"] * len(head))]
    for result in results:
        stats, row = result.stats, result.row
        cells = [str(stats[column.metric]) if column.metric in stats else "" for column in shown]
        if timed:
            cells.append(f"{stats['train_minutes'].mean:.1f}" if "train_minutes" in stats else "")
        asked = 0 if row.not_run else len(row.training_seeds) * len(row.sampling_seeds)
        runs = f"{len(result.values)} of {asked}" if 0 < len(result.values) < asked else str(len(result.values) or "")
        why = f"not run: {row.not_run or problems.get(row.name, 'not yet')}" if not result.values else ""
        if result.values and row.name in problems:
            why = f"incomplete: {problems[row.name]}"
        lines.append(_line([row.name, *cells, runs, "; ".join(part for part in (why, row.note) if part)]))
    devices = sorted({device for result in measured for device in result.devices})
    lines += [
        "",
        f"Mean ± spread over seeds; ↑ higher is better, ↓ lower. Measured on: {'; '.join(devices) or '-'}.",
        "",
    ]
    if claims:
        verdicts = {True: "holds", False: "does not hold", None: "not decided"}
        lines += [_line(["claim", "", "evidence"]), _line(["---"] * 3)]
        lines += [_line([claim["claim"], verdicts[claim["holds"]], claim["evidence"]]) for claim in claims] + [""]
    lines += [f"![{name}]({table.name}-{name}.png)" for name in plots] + [""] * bool(plots)
    return "\n".join(
        [*lines, f"Made by `python -m sdd_jax.reproduce {table.name}`; figures per seed: {table.name}.json."]
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
