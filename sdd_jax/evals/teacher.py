"""What the embedded world must reach, measured on held-out portraits.

| figure | target | how |
| --- | --- | --- |
| classifier on renders, per attribute | >= .98 | the classifier's labels of held-out renders |
| classifier on reconstructions, mean | >= .95 | the same after the autoencoder |
| reconstruction PSNR, dB | >= 30 | mean over images, of the posterior mean's decoding |
| retrieval | >= .90 | CLIP picks an image's own canonical caption among 64 |
| zero-shot, per attribute | >= .95 | CLIP picks the true value among captions that differ in that attribute alone |
| text-to-image, mean over attributes | >= .85 | classifier on samples of full captions, 50 DDIM steps, best w |
| diversity | .5 to 2 | variance of each nuisance value read off samples over that of renders: lowest and highest |

Diversity counts the nuisance values that the regressor reads well (R^2 >= .5 on renders). Guidance trades diversity for
accuracy; the best w is the most accurate of those whose diversity is within its bounds, or of all where none is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdd_jax.evals.instruments import Instruments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A figure, what it has to lie between, and whether it does."""

    name: str
    value: float
    low: float
    high: float = float("inf")

    @property
    def is_met(self) -> bool:
        """Whether the value lies in [low, high]."""
        return self.low <= self.value <= self.high

    def line(self) -> str:
        """One row of the report."""
        asked = f">= {self.low:g}" if self.high == float("inf") else f"{self.low:g} .. {self.high:g}"
        return f"| {self.name} | {self.value:.3f} | {asked} | {'reached' if self.is_met else 'MISSED'} |"


def accuracy(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of right labels for each attribute: i32[n,a] twice -> f64[a]."""
    return np.mean(found == labels, axis=0)


def instrument_targets(
    instruments: Instruments, attributes: Sequence[str], images: np.ndarray, recon: np.ndarray, labels: np.ndarray
) -> list[Target]:
    """The classifier's and the autoencoder's rows, of `images` f32[n,H,W,3] and their reconstructions."""
    on_renders = accuracy(instruments.read(images).labels, labels)
    on_recon = accuracy(instruments.read(recon).labels, labels)
    error = np.mean((np.clip(recon, -1, 1) - images) ** 2, axis=(1, 2, 3))
    return [
        *(
            Target(name=f"classifier: {a}", value=float(v), low=0.98)
            for a, v in zip(attributes, on_renders, strict=True)
        ),
        Target(name="classifier on reconstructions", value=float(on_recon.mean()), low=0.95),
        Target(name="reconstruction PSNR, dB", value=float(np.mean(10 * np.log10(4.0 / error))), low=30.0),
    ]


def clip_targets(
    embeddings: np.ndarray, captions: np.ndarray, edited: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[Target]:
    """CLIP's rows.

    Args:
        embeddings: of n images, f32[n,e]; captions: of their canonical captions, f32[n,e]; n a multiple of 64.
        edited: for each attribute, embeddings of captions with each of its values f32[n,v,e], the true one i32[n].
    """
    blocks = [slice(i, i + 64) for i in range(0, len(embeddings) // 64 * 64, 64)]
    top = [np.mean((embeddings[b] @ captions[b].T).argmax(1) == np.arange(64)) for b in blocks]
    zero_shot = {
        name: float(np.mean(np.einsum("ne,nve->nv", embeddings, values).argmax(1) == truth))
        for name, (values, truth) in edited.items()
    }
    return [
        Target(name="retrieval among 64", value=float(np.mean(top)), low=0.90),
        *(Target(name=f"zero-shot: {name}", value=value, low=0.95) for name, value in zero_shot.items()),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What samples at one guidance scale show: accuracy f64[a] per attribute, variance ratio f64[k] per nuisance."""

    accuracy: np.ndarray
    diversity: np.ndarray

    def targets(self, scale: float) -> list[Target]:
        """The text-to-image rows."""
        count = len(self.diversity)
        return [
            Target(name=f"text-to-image, w = {scale:g}", value=float(self.accuracy.mean()), low=0.85),
            Target(name=f"diversity, lowest of {count}", value=float(self.diversity.min()), low=0.5, high=2.0),
            Target(name=f"diversity, highest of {count}", value=float(self.diversity.max()), low=0.5, high=2.0),
        ]

    @property
    def is_diverse(self) -> bool:
        """Whether every variance ratio is within its bounds."""
        return all(target.is_met for target in self.targets(1.0)[1:])


def generation_figures(
    instruments: Instruments,
    draw: Callable[[float], np.ndarray],
    guidance_scales: Sequence[float],
    labels: np.ndarray,
    renders: np.ndarray,
    nuisance: np.ndarray,
) -> dict[float, Generation]:
    """Text-to-image figures by guidance scale.

    `draw(w)` gives f32[n,H,W,3] for captions whose attributes are `labels` i32[n,a]; `renders` f32[m,H,W,3] have the
    true `nuisance` f32[m,k].
    """
    rendered = instruments.read(renders).nuisance
    readable = 1 - np.mean((rendered - nuisance) ** 2, 0) / nuisance.var(0) >= 0.5
    found = {}
    for w in guidance_scales:
        sampled = instruments.read(draw(w))
        ratios = (sampled.nuisance.var(0) / rendered.var(0))[readable]
        found[w] = Generation(accuracy=accuracy(sampled.labels, labels), diversity=ratios)
    return found


def best_scale(found: Mapping[float, Generation]) -> float:
    """The most accurate scale of those that keep the diversity, of all where none does."""
    return max(found, key=lambda w: (found[w].is_diverse, found[w].accuracy.mean()))


def report(rows: Sequence[Target]) -> str:
    """Formats the rows as a Markdown table."""
    return "\n".join(["| figure | measured | asked | |", "| --- | --- | --- | --- |", *(row.line() for row in rows)])
