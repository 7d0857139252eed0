"""Accelerators' published rates, in one table, by the name that JAX gives a device (`jax.devices()[0].device_kind`).

Operations are dense bfloat16 products. Memory is what a program may use: of a v5e's 16 GiB the compiler leaves 15.75.
Interconnect is the sum over a chip's links in one direction: TPUs' inter-chip links, NVLink. Sources: Google Cloud's
TPU pages (v4, v5e, v5p, v6e), NVIDIA's data sheets (A100 80 GB SXM, H100 SXM, H200 SXM).
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Operations a second, bytes of memory, and bytes a second of memory and interconnect."""

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


CHIPS = {
    "TPU v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, 1640e9, 448e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
}
SLICES = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
"""Names of TPU slices, as in `v5e:4x4` -> the chip."""
DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""The axes of a slice's shape."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns a device's published rates; None where the table has none, as for a CPU."""
    return CHIPS.get(device_kind)
