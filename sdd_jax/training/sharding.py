"""Where arrays live: a mesh `('data', 'fsdp')` and two rules.

    batch                              split along its first axis over both mesh axes
    params, optimiser, EMA, frozen     each leaf of at least `min_shard_size` elements split along its largest
                                       dimension that `fsdp` divides; smaller or indivisible leaves replicated

The second rule reads shapes only, so a parameter, its moments, its EMA and its teacher's twin always land alike. A
split kernel comes together where a product or a convolution reads it (`make_gather`), layer by layer and in the compute
dtype, and so does its gradient. Left alone, the partitioner for TPU also moves activations and cuts products into as
many pieces as there are devices: less memory, and more bytes in many more messages (docs/scale.md has figures). All
else is the partitioner's: the same program runs on one device and on a pod.

Islands of fast network (a TPU slice, GPUs that share one, else a process's devices) decide the order of devices:
`fsdp`, whose gathers are heavy, stays inside an island, and `data`, which only sums gradients, spans them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_log = logging.getLogger("sdd_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Fields: sizes of the two mesh axes (`data = -1`: all remaining devices) and the smallest leaf worth sharding."""

    data: int = -1
    fsdp: int = 1
    min_shard_size: int = 2**14


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all of them, over all processes).

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.fsdp if config.data == -1 else config.data
    if data < 1 or config.fsdp < 1 or data * config.fsdp != len(devices):
        raise ValueError(
            f"config.mesh: data={config.data} x fsdp={config.fsdp} does not make {len(devices)} devices; "
            "fsdp must divide their number, data=-1 takes the rest"
        )
    return Mesh(arrange(devices, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def arrange(devices: Sequence[jax.Device], fsdp: int) -> np.ndarray:
    """Returns the devices as [data, fsdp], each row of `fsdp` inside one island where islands are large enough.

    Islands are the devices of one `slice_index`, where devices have one, else of one process. Inside an island the
    order is the one that suits its network (`jax.experimental.mesh_utils`).
    """
    islands: dict[int, list[jax.Device]] = {}
    for device in devices:
        index = getattr(device, "slice_index", None)
        if index is None:  # a TPU's that is only described is one slice
            index = 0 if getattr(device, "platform", "") == "tpu" else device.process_index
        islands.setdefault(index, []).append(device)
    if any(len(island) % fsdp for island in islands.values()):
        sizes = sorted({len(island) for island in islands.values()})
        _log.warning("config.mesh.fsdp=%d spans islands of %s devices: their slower network carries it", fsdp, sizes)
        return mesh_utils.create_device_mesh((len(devices) // fsdp, fsdp), devices)
    blocks = [
        mesh_utils.create_device_mesh((len(island) // fsdp, fsdp), island) for _, island in sorted(islands.items())
    ]
    return np.concatenate(blocks)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and keys: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def tree_shardings(tree: Any, mesh: Mesh, config: MeshConfig) -> Any:
    """Returns the sharding of each leaf (array or ShapeDtypeStruct) of a state or frozen tree."""
    fsdp = mesh.shape["fsdp"]

    def rule(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape
        divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible or math.prod(shape) < config.min_shard_size:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(rule, tree)


def make_gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns kernel -> the kernel whole on every device, as its gradient is; for `models.layers.gathering`."""
    if mesh.shape["fsdp"] == 1:
        return lambda kernel: kernel
    return lambda kernel: jax.lax.with_sharding_constraint(kernel, replicated(mesh))


def shardings_of(tree: Any) -> Any:
    """Returns the sharding of each leaf of a tree that has been laid out."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError unless every device gets the same number of samples in every microbatch."""
    if accumulate < 1 or batch_size < 1 or batch_size % (accumulate * mesh.size):
        raise ValueError(
            f"config.batch_size={batch_size} must be a multiple of accumulate={accumulate} x {mesh.size} devices"
        )


def place(tree: Any, shardings: Any) -> Any:
    """Puts host arrays (the same on every process) onto the mesh; each process uploads only its own shards."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this process's samples: [b / processes, ...] on the host -> [b, ...] over the mesh."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}
