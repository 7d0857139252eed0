"""What bounds a step: a profiler trace's device time by kind of kernel."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from pathlib import Path

import jax

# In this order: a fused attention kernel's name may also speak of products, a convolution's of gemm.
_KINDS = (
    ("attention", re.compile(r"fmha|flash|sdpa|attention", re.I)),
    ("convolution", re.compile(r"conv|fprop|dgrad|wgrad|cudnn", re.I)),
    ("product", re.compile(r"gemm|nvjet|cublas|cutlass|matmul|^dot", re.I)),
    ("copy", re.compile(r"memcpy|memset|copy|transpose", re.I)),
)


def device_time(directory: Path) -> dict[str, float]:
    """Returns kind -> share of the devices' busy time of the newest trace below `directory`; {} where none ran there.

    Kinds: attention, convolution, product, copy, and `other`, which is mostly fused elementwise work.
    """
    traces = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        return {}
    data = jax.profiler.ProfileData.from_file(str(traces[-1]))
    return shares(
        (event.name, event.duration_ns)
        for plane in data.planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith(("Stream", "XLA Ops"))
        for event in line.events
    )


def shares(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns kind -> share of the total time of (kernel name, duration) pairs, the largest first."""
    totals: dict[str, float] = collections.defaultdict(float)
    for name, duration in events:
        totals[kind_of(name)] += duration
    whole = sum(totals.values())
    return {kind: totals[kind] / whole for kind in sorted(totals, key=totals.__getitem__, reverse=True)}


def kind_of(kernel: str) -> str:
    """Returns a kernel's kind by its name."""
    return next((kind for kind, pattern in _KINDS if pattern.search(kernel)), "other")
