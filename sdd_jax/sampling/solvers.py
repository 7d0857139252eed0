"""Solvers of the probability-flow ODE: what to do with a prediction, and with the one before it.

Every solver here is `transport.move` applied to a prediction that may be extrapolated from the last two. With lambda =
log(alpha/sigma) as time and h_i = lambda_{i+1} - lambda_i the length of step i,

    m~_i = m_i + c_i (m_i - m_{i-1}),    c_i = h_i / (2 h_{i-1})                          (1)
    z_{i+1} = move(m~_i, z_i, t_i, t_{i+1})                                               (2)

| solver | m | c | order | source |
| --- | --- | --- | --- | --- |
| `DDIM` | any | 0 | 1 | Song et al. 2021 |
| `EULER` | any | 0 | 1 | Karras et al. 2022 |
| `DPM_SOLVER` | eps | (1) | 2 | Lu et al. 2022a, the multistep form (diffusers `dpmsolver`, midpoint) |
| `DPM_SOLVER_PP` | x0 | (1) | 2 | Lu et al. 2022b, (2M) |

One evaluation of the network a step, whatever the order. Euler's method in Karras' variables, z/alpha against
sigma/alpha, has the derivative eps_hat and is DDIM; it has a name because users look for it. The first step (no
history) and the last (CLEAN lies at lambda = infinity) are of first order, as in the papers' few-step settings.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.schedule import Level, half_log_snr


@dataclasses.dataclass(frozen=True)
class Solver:
    """space: the prediction that is carried and extrapolated, 'eps', 'x0' or 'v'; None takes the network's own.

    multistep: whether the prediction is extrapolated (1).
    """

    space: str | None = None
    multistep: bool = False

    def coefficients(self, levels: Level) -> jax.Array:
        """c_i (1) as f32[n,1,...] for the n levels that sampling starts its steps from, each f32[n,1,...]."""
        time = half_log_snr(levels)
        if not self.multistep or time.shape[0] < 3:
            return jnp.zeros_like(time)
        h = time[1:] - time[:-1]
        return jnp.zeros_like(time).at[1:-1].set(0.5 * h[1:] / h[:-1])


DDIM = Solver()
EULER = DDIM
DPM_SOLVER = Solver("eps", multistep=True)
DPM_SOLVER_PP = Solver("x0", multistep=True)

SOLVERS = {"ddim": DDIM, "euler": EULER, "dpm_solver": DPM_SOLVER, "dpm_solver_pp": DPM_SOLVER_PP}


def solver_named(name: str) -> Solver:
    """The solver of that name; ValueError for any other."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name]
