"""The model card of exported weights: what they are, from what they were made, and how well they do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdd_jax.models.hub import HUB_ID

CARD = "README.md"


class Record(NamedTuple):
    """What a card keeps for programs: the run's config, and sources and hashes of what it was made from."""

    config: dict[str, Any]
    made_from: dict[str, Any]


def model_card(
    *,
    title: str,
    task: str,
    step: int,
    config: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    measured_by: str,
    directory: Path,
) -> str:
    """A card in Markdown with the hub's header.

    Args:
      title: the job's own line: method, data and teacher.
      fingerprint: sources and hashes of the frozen weights.
      metrics: the run's `evaluation/metrics.json`, or None.
      measured_by: the command that writes them.
      directory: what was exported; every file is listed with its sha256.
    """
    base, record = config.get("model"), {"config": config, "made_from": fingerprint}
    header = ["---", "library_name: diffusers", "tags:", "- sdd_jax", f"- {task}"]
    if isinstance(base, str) and HUB_ID.fullmatch(base) and not Path(base).exists():
        header.append(f"base_model: {base}")
    parts = [
        "\n".join([*header, "---"]),
        f"# {title}",
        f"Task `{task}`, step {step}, trained and exported with sdd_jax.",
        _section("Made from", _pairs(fingerprint) or "Nothing frozen: trained from scratch."),
        _section("Data", _pairs(config.get("data") or {}) or "None."),
        _section("Metrics", _metrics(metrics, measured_by)),
        _section("Files", _files(directory)),
        _section("Record", f"```json\n{json.dumps(record, indent=1, sort_keys=True)}\n```"),
    ]
    return "\n\n".join(parts) + "\n"


def read_record(directory: Path) -> Record:
    """The record in the card of an export.

    Raises:
      FileNotFoundError: no card.
      ValueError: a card without a record.
    """
    path = directory / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such card; python -m sdd_jax.export writes it beside the weights")
    _, found, text = path.read_text(encoding="utf-8").rpartition(f"{_section('Record', '```json')}\n")
    try:
        return Record(**json.loads(text.removesuffix("\n```\n") if found else ""))
    except (TypeError, ValueError):
        raise ValueError(f"{path} holds no record of the run: export it again") from None


def _section(name: str, body: str) -> str:
    return f"## {name}\n\n{body}"


def _pairs(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | `{value}` |" for key, value in sorted(values.items()))])


def _metrics(metrics: Mapping[str, Any] | None, measured_by: str) -> str:
    """A report's single facts in one line, its rows as a table, and a table of each other group that it has."""
    places = ("workdir", "of")
    known = {key: value for key, value in (metrics or {}).items() if value not in (None, {}, "") and key not in places}
    if not known:
        return f"Not measured: `{measured_by}`, then export again."
    groups = {key: value for key, value in known.items() if isinstance(value, Mapping)}
    parts = [", ".join(f"{key} {value}" for key, value in sorted(known.items()) if key not in groups)]
    rows = groups.get("rows", {})
    if rows and all(isinstance(row, Mapping) for row in rows.values()):
        del groups["rows"]
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
        for name, row in rows.items():
            lines.append(f"| {name} | {' | '.join(_number(row.get(column)) for column in columns)} |")
        parts.append("\n".join(lines))
    for name, group in groups.items():
        cells = [f"| {key} | {_number(value)} |" for key, value in _leaves(group)]
        parts.append("\n".join([f"| {name} | |", "| --- | --- |", *cells]))
    return "\n\n".join(filter(None, parts))


def _leaves(group: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """What a group holds, the names of groups inside it before their own: "editors: SDEdit, 50 steps"."""
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}: ")
        else:
            yield f"{above}{key}", value


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str("" if value is None else value)


def _files(directory: Path) -> str:
    lines = ["| file | bytes | sha256 |", "| --- | --- | --- |"]
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != CARD:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"| `{path.relative_to(directory).as_posix()}` | {path.stat().st_size} | `{digest}` |")
    return "\n".join(lines)
