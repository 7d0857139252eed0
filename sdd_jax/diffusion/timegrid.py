"""Which timesteps a method visits: grids, sampling times, and the boundaries of multi-step consistency models.

Trailing grid. N steps over T timesteps end at the noisiest one (Lin et al. 2023, table 2; diffusers' `trailing`):

    t_i = round(T - i T / N) - 1,    i = 0 .. N-1                                        (1)

so N = 50 gives 999, 979, ..., 19 and N = T every timestep. It has exactly N strictly decreasing points for each N in
1..T, and T - 1, where a sampler starts from pure noise, is always one of them.

Sampling times. A model distilled on the N-point grid is sampled in n <= N steps at n of its points: (1) again, over
the grid's N positions in place of the T timesteps.

CCD pairs. t runs over the grid from its second point on and s is the point before it, never CLEAN, where the target
network cannot be evaluated.

iCD boundaries (Starodubcev et al. 2024). On the solver grid 19, 39, ..., 999 a reverse model jumps from t to a
boundary below, a forward model to one above:

    reverse  t' = max(t - 20, 0),  s = the largest boundary <= t'     (0 is one of them and means CLEAN)     (2)
    forward  t' = t + 20,          s = the smallest boundary >= t'    (the last is T - 1)                    (3)

With these, reverse jumps 999 -> 779 -> 519 -> 259 -> CLEAN decode and forward jumps 19 -> 259 -> 519 -> 779 -> 999
encode.

Grids are numpy int32 made when a method is built; the maps (2), (3) take jax arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def trailing_grid(n: int, T: int = 1000) -> np.ndarray:
    """The n trailing timesteps of T (eq. 1), int32[n], decreasing from T - 1. ValueError unless 1 <= n <= T."""
    if not 1 <= n <= T:
        raise ValueError(f"a trailing grid of {n} steps does not fit {T} timesteps: choose 1..{T}")
    return np.round(T - np.arange(n) * T / n).astype(np.int32) - 1


def sampling_times(n: int, grid: int = 1000, T: int = 1000) -> np.ndarray:
    """n strictly decreasing timesteps, int32[n], on the trailing grid of `grid` points; grid = T allows all T.

    The first is always T - 1. ValueError unless 1 <= n <= grid <= T.
    """
    if not 1 <= n <= grid:
        raise ValueError(f"cannot sample in {n} steps on a grid of {grid} points: choose 1..{grid} steps")
    return trailing_grid(grid, T)[::-1][trailing_grid(n, grid)]


def grid_pairs(n: int, T: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """CCD's (t, s), each int32[n-1], ascending: t the n-point trailing grid but its lowest point, s the point below."""
    if n < 2:
        raise ValueError(f"a distillation grid of {n} points has no pair of times: choose 2..{T}")
    grid = trailing_grid(n, T)[::-1]
    return grid[1:], grid[:-1]


def solver_grid(n: int = 50, T: int = 1000) -> np.ndarray:
    """The trailing grid in ascending order, int32[n]: iCD's solver times 19, 39, ..., 999."""
    return trailing_grid(n, T)[::-1]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Boundaries:
    """The times at which iCD's models start a jump, ascending. Static inside of a jitted function's arguments.

    reverse: where decoding jumps start; the last is T - 1, and the first one's jump ends CLEAN.
    forward: where encoding jumps start; the last one's jump ends at T - 1.
    """

    reverse: tuple[int, ...]
    forward: tuple[int, ...]

    @property
    def reverse_jumps(self) -> np.ndarray:
        """(from, to) of decoding in order, int32[m,2]; the last `to` is 0, which means CLEAN."""
        starts = self.reverse[::-1]
        return np.array(list(zip(starts, (*starts[1:], 0), strict=True)), np.int32)

    @property
    def forward_jumps(self) -> np.ndarray:
        """(from, to) of encoding in order, int32[m,2]; also the (low, high) pairs of the preservation losses."""
        return np.array(list(zip(self.forward, (*self.forward[1:], self.reverse[-1]), strict=True)), np.int32)


BOUNDARIES = {
    "4_tau0.8": Boundaries(reverse=(259, 519, 779, 999), forward=(19, 259, 519, 779)),
    "4_tau0.7": Boundaries(reverse=(259, 519, 699, 999), forward=(19, 259, 519, 699)),
    "3_tau0.7": Boundaries(reverse=(339, 699, 999), forward=(19, 339, 699)),
    "2": Boundaries(reverse=(519, 999), forward=(19, 519)),
}
"""iCD's configurations by number of steps and guidance threshold. The 2-step one is ours: none was published."""


def reverse_target(t: jax.Array, reverse: Sequence[int], stride: int = 20) -> tuple[jax.Array, jax.Array]:
    """(t', s) of eq. 2 for reverse starts `reverse`; t int32[b] on the solver grid. s = 0 means CLEAN."""
    t_low = jnp.maximum(t - stride, 0)
    boundaries = jnp.asarray((0, *sorted(reverse)), t.dtype)
    return t_low, boundaries[jnp.searchsorted(boundaries, t_low, side="right") - 1]


def forward_target(t: jax.Array, reverse: Sequence[int], stride: int = 20) -> tuple[jax.Array, jax.Array]:
    """(t', s) of eq. 3; t int32[b] on the solver grid but its last point. Encoding ends at `reverse`'s starts."""
    t_high = t + stride
    boundaries = jnp.asarray(sorted(reverse), t.dtype)
    return t_high, boundaries[jnp.searchsorted(boundaries, t_high, side="left")]
