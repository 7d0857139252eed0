"""From readings to timesteps: min-max over t, means over images, and rules that select (SDD sec. 4.2; see `hqs`).

    HQS_t = mean over y of N_bar - H_bar,   a bar: min-max over t for each image, 0 where all its values are equal

HQS lies in [-1, 1]; its author's working score N_bar + (1 - H_bar) is HQS + 1.

| rule | S | in the paper |
| --- | --- | --- |
| `threshold:XI` | HQS_t > XI | Alg. 1, Table 3: a larger xi is stricter (the text once says the opposite) |
| `top:K` | the K best | |
| `argmax` | the best | Table 3 |
| `random:K` | K of the grid, by a seed | |
| `all` | the whole grid | Table 3's random: what SDS does |

Weights: training draws t from S uniformly, or in proportion to the working score HQS + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

WEIGHTS = ("uniform", "hqs")


def min_max(values: np.ndarray) -> np.ndarray:
    """Each column of [m,b] brought to [0, 1] over its m rows, float64; 0 where a column's values are all equal."""
    values = np.asarray(values, np.float64)
    low, span = values.min(0, keepdims=True), np.ptp(values, 0, keepdims=True)
    return np.divide(values - low, span, out=np.zeros_like(values), where=span > 0)


def hybrid_score(deficit: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """N_bar - H_bar for each image, float64 [m,b] in [-1, 1], of deficits ln n - H and magnitudes [m,b] (12)."""
    return min_max(magnitude) - min_max(-np.asarray(deficit, np.float64))


class Curve:
    """Means over a stream of images, in memory that does not grow with it.

    t: int32[m]. elements: n of (9). Properties, float64[m]: `H` and `N`, means of the raw values; `hqs` (12); `stderr`,
    its standard error over images; `halves` [2,m], `hqs` of the even and of the odd images, for its reliability.
    """

    def __init__(self, t: np.ndarray, elements: int) -> None:
        self.t, self.elements, self.count = np.asarray(t), elements, 0
        self._deficit, self._magnitude, self._mean, self._squares = np.zeros((4, len(t)))
        self._halves, self._half_counts = np.zeros((2, len(t))), np.zeros((2, 1))

    def add(self, deficit: np.ndarray, magnitude: np.ndarray) -> None:
        """Adds a batch of images, [m,b] each.

        Raises:
            ValueError: a value is not finite.
        """
        if not (np.all(np.isfinite(deficit)) and np.all(np.isfinite(magnitude))):
            raise ValueError("a gradient is not finite: lower the guidance, or compute in float32")
        scores = hybrid_score(deficit, magnitude)
        for column in range(scores.shape[1]):
            half = self.count % 2
            self.count += 1
            step = scores[:, column] - self._mean
            self._mean = self._mean + step / self.count
            self._squares = self._squares + step * (scores[:, column] - self._mean)
            self._half_counts[half] += 1
            self._halves[half] += scores[:, column]
        self._deficit = self._deficit + np.asarray(deficit, np.float64).sum(1)
        self._magnitude = self._magnitude + np.asarray(magnitude, np.float64).sum(1)

    @property
    def H(self) -> np.ndarray:
        """Mean entropy, nats."""
        return math.log(self.elements) - self._deficit / self.count

    @property
    def N(self) -> np.ndarray:
        """Mean magnitude."""
        return self._magnitude / self.count

    @property
    def hqs(self) -> np.ndarray:
        """The score."""
        return self._mean

    @property
    def stderr(self) -> np.ndarray:
        """The score's standard error; for two images or more."""
        return np.sqrt(self._squares / (self.count - 1) / self.count)

    @property
    def halves(self) -> np.ndarray:
        """The scores of the even and of the odd images."""
        return self._halves / self._half_counts


Selection = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _above(hqs: np.ndarray, xi: float, rng: np.random.Generator) -> np.ndarray:
    if not np.any(hqs > xi):
        raise ValueError(f"no timestep has an HQS above {xi:g}; the highest is {hqs.max():.3f}: lower the threshold")
    return np.flatnonzero(hqs > xi)


def _count(k: float, hqs: np.ndarray) -> int:
    if k != int(k) or not 1 <= k <= len(hqs):
        raise ValueError(f"cannot select {k:g} of {len(hqs)} timesteps: give 1..{len(hqs)}")
    return int(k)


RULES: dict[str, tuple[bool, Selection]] = {
    "threshold": (True, _above),
    "top": (True, lambda hqs, k, rng: np.argsort(-hqs, kind="stable")[: _count(k, hqs)]),
    "argmax": (False, lambda hqs, k, rng: np.asarray([np.argmax(hqs)])),
    "random": (True, lambda hqs, k, rng: rng.choice(len(hqs), _count(k, hqs), replace=False)),
    "all": (False, lambda hqs, k, rng: np.arange(len(hqs))),
}


BLIND = ("random", "all")
"""The rules that look at no score."""


def parse_rule(rule: str) -> tuple[str, float]:
    """Reads "threshold:XI", "top:K", "argmax", "random:K" or "all" as (name, value); ValueError for anything else."""
    name, colon, text = rule.partition(":")
    takes_value = RULES[name][0] if name in RULES else None
    try:
        value = float(text) if takes_value else 0.0
    except ValueError:
        takes_value = None
    if takes_value is None or bool(colon) != takes_value or not math.isfinite(value):
        raise ValueError(f"rule={rule!r} selects no timesteps; use threshold:XI, top:K, argmax, random:K or all")
    return name, value


def check_rule(rule: str, count: int, where: str = "") -> None:
    """Raises ValueError, before any search, for what is no rule or takes more than `count` timesteps."""
    name, value = parse_rule(rule)
    if name in ("top", "random"):
        try:
            _count(value, np.zeros(count))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None


def select(rule: str, t: np.ndarray, hqs: np.ndarray, seed: int = 0) -> np.ndarray:
    """S: the timesteps of `t` int32[m] that a rule takes by their `hqs` [m], ascending; `seed` is of `random`.

    Raises:
        ValueError: no such rule, none above the threshold, or more than there are.
    """
    name, value = parse_rule(rule)
    chosen = RULES[name][1](np.asarray(hqs), value, np.random.default_rng(seed))
    return np.sort(np.asarray(t, np.int32)[chosen])


def timestep_weights(name: str, hqs: np.ndarray) -> np.ndarray:
    """Probabilities f32[k] of drawing each selected timestep, of their `hqs` [k]: "uniform", or "hqs" for HQS + 1.

    Raises:
        ValueError: another name, or scores that are all -1.
    """
    if name not in WEIGHTS:
        raise ValueError(f"weights={name!r} is not known; use {', '.join(WEIGHTS)}")
    weights = np.ones(len(hqs)) if name == "uniform" else np.asarray(hqs, np.float64) + 1.0
    if not weights.sum() > 0:
        raise ValueError("weights='hqs': every selected timestep has the lowest score, -1; use weights='uniform'")
    return (weights / weights.sum()).astype(np.float32)
