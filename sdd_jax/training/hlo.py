"""Collectives of a compiled program, read from its HLO text: how often each kind runs and how many bytes it makes.

A collective inside a loop counts as often as the loop runs: `known_trip_count`, or where a backend does not say, the
constant N of a condition `i < N`, as counted loops have it. One inside a branch counts once. Bytes are those of the
result on each device: of an all-gather the whole, of a reduce-scatter the part that a device keeps. The asynchronous
form (`-start`, `-done`) is one collective. TPU writes a reduce-scatter as a fusion `all-reduce-scatter` around an
all-reduce; it is counted as what it does. It also spreads an asynchronous collective over several fusions, start, what
runs beside it, and done, each of which holds it under the same `chain_id`: one collective too.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FUSED_REDUCE_SCATTER = "all-reduce-scatter"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> (.*) \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" constant\((\d+)\)")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


_Counts = collections.Counter[tuple[str, str]]


class Traffic(NamedTuple):
    """Collectives of one kind in one run of the program: how many, and the bytes of their results on each device."""

    runs: int
    bytes: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """Returns kind -> traffic of a compiled module's text (`compiled.as_text()`); kinds that do not occur are absent.

    Raises:
        ValueError: the text holds no entry computation.
    """
    entry, results, bodies = _computations(hlo)

    @functools.cache
    def total(name: str) -> tuple[_Counts, dict[str, tuple[str, int]]]:
        """What a computation sends, and by chain_id (kind, bytes) of what it holds a piece of."""
        found, pieces = _Counts(), dict[str, tuple[str, int]]()
        if name.startswith(FUSED_REDUCE_SCATTER):
            found.update({("reduce-scatter", "runs"): 1, ("reduce-scatter", "bytes"): sum(_array_bytes(results[name]))})
            return found, pieces
        for line in bodies[name]:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            result, operation = match.groups()
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                sent, chain = _result_bytes(result, operation), _CHAIN.search(line)
                if chain:
                    pieces[chain[1]] = kind, sent
                else:
                    found.update({(kind, "runs"): 1, (kind, "bytes"): sent})
                continue
            times = _trip_count(line, bodies) if operation == "while" else 1
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for callee in called:
                inside, parts = total(callee) if callee in bodies else (_Counts(), {})
                if operation == "fusion":
                    pieces |= parts
                else:
                    inside = inside + _whole(parts)
                found.update({key: times * value for key, value in inside.items()})
        return found, pieces

    counts, pieces = total(entry)
    counted = counts + _whole(pieces)
    return {kind: Traffic(counted[kind, "runs"], counted[kind, "bytes"]) for kind in KINDS if counted[kind, "runs"]}


def _whole(pieces: Mapping[str, tuple[str, int]]) -> _Counts:
    """Each chain of pieces as the one collective that it is."""
    found = _Counts()
    for kind, sent in pieces.values():
        found.update({(kind, "runs"): 1, (kind, "bytes"): sent})
    return found


def _computations(hlo: str) -> tuple[str, dict[str, str], dict[str, list[str]]]:
    """Returns the entry's name, each computation's result type, and its lines."""
    entry, lines = "", list[str]()
    results: dict[str, str] = {}
    bodies: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            is_entry, name, results[header[2]] = header.groups()
            lines = bodies[name] = []
            entry = name if is_entry else entry
        else:
            lines.append(line)
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return entry, results, bodies


def _trip_count(loop: str, bodies: Mapping[str, Sequence[str]]) -> int:
    """How often a `while` instruction runs its body; 1 where neither it nor its condition says."""
    known = _TRIPS.search(loop)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = bodies.get(condition[1], ()) if condition else ()
    bounds = [int(match[1]) for line in lines for match in [_CONSTANT.search(line)] if match]
    counted = any("ROOT" in line and "direction=LT" in line for line in lines)
    return bounds[0] if counted and len(bounds) == 1 else 1


def _result_bytes(result: str, operation: str) -> int:
    """The bytes of a collective's result; a `-start` of all but all-reduce returns its operands first."""
    arrays = _array_bytes(result)
    if operation.endswith("-start") and result.startswith("(") and not operation.startswith("all-reduce"):
        arrays = [size for size, context in zip(arrays, _contexts(result), strict=True) if not context]
        arrays = arrays[len(arrays) // 2 :]
    return sum(arrays)


def _contexts(result: str) -> list[bool]:
    return [dtype == "u32" and not dimensions for dtype, dimensions in _ARRAY.findall(result)]


def _array_bytes(result: str) -> list[int]:
    sizes = []
    for dtype, dimensions in _ARRAY.findall(result):
        bits = 8 if dtype == "pred" else int("".join(re.findall(r"\d+", dtype)[:1]) or 0)
        count = 1
        for dimension in dimensions.split(","):
            count *= int(dimension) if dimension else 1
        sizes.append(count * bits // 8)
    return sizes
