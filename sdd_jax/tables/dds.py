"""DDS's figures and tables on portraits, where every edit's exact answer is known (Hertz et al. 2023).

Zero-shot rows train nothing and edit 72 held-out portraits in 9 ways. Methods that can be made stronger are compared
where they succeed equally often: at the lower one of their highest success rates, each metric read off its own curve.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sdd_jax.tables.claims import beyond, close, every, order, read
from sdd_jax.tables.types import Check, Claim, Column, Measured, Plot, Row, Stat, Table, Training, Verdict

STUDY = "sdd_jax.jobs.dds.study"
REPORT = "sdd_jax.jobs.dds.report:translation"
TIMES = (50, 150, 300, 450, 600, 750, 900)
SCORE: dict[str, Any] = {"iterations": 100, "guidance": 3.0}
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GUIDANCES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0)
ANIMALS = ("dog", "lion", "bear", "squirrel")
CATS = {"tasks": ANIMALS, "only": "cat", "count": 16}
ZERO_SHOT = {"count": 8}
EDIT_COLUMNS = (
    Column(metric="success", better="higher"),
    Column(metric="psnr", title="PSNR to the answer", better="higher"),
    Column(metric="psnr_outside", title="PSNR outside the edit", better="higher"),
    Column(metric="preservation", title="other attributes kept", better="higher"),
    Column(metric="clip", title="CLIP", better="higher"),
    Column(metric="clip_distance", title="CLIP distance to the answer", better="lower"),
)


def at_equal(metric: str, best: str, rest: str, *, better: str, level: str = "success") -> Check:
    """`best` beats `rest` in `metric` where both reach the same `level`: the lower one of their highest."""
    sign = {"higher": 1, "lower": -1}[better]

    def decide(measured: Measured) -> Verdict:
        curves = {row: curve(measured, row, level, metric) for row in (best, rest)}
        reached = min(max(point[0].mean for point in points) for points in curves.values())
        one, other = (read_at(points, reached) for points in curves.values())
        lead, spread = sign * (one.mean - other.mean), math.hypot(one.spread, other.spread)
        return Verdict(
            lead > spread,
            f"{metric} at {level} {reached:.3g} ({better} is better): {best} {one.mean:.4g}, {rest} {other.mean:.4g} "
            f"(seeds' spread {spread:.2g})",
        )

    return Check((best, rest), decide)


def curve(measured: Measured, row: str, level: str, metric: str) -> list[tuple[Stat, Stat]]:
    """(level, metric) of a row at every x it was measured at, by level."""
    xs = [name.partition("@")[2] for name in measured[row] if name.startswith(f"{level}@")]
    found = [x for x in xs if f"{metric}@{x}" in measured[row]]
    read(measured, row, f"{level}@{found[0]}" if found else level)  # a row without points is told as unmeasured
    points = [(measured[row][f"{level}@{x}"], measured[row][f"{metric}@{x}"]) for x in found]
    return sorted(points, key=lambda point: point[0].mean)


def read_at(points: list[tuple[Stat, Stat]], level: float) -> Stat:
    """The metric at a level, on straight lines between points; its spread is that of the nearest point."""
    levels = [point[0].mean for point in points]
    nearest = int(np.argmin([abs(value - level) for value in levels]))
    value = float(np.interp(level, levels, [point[1].mean for point in points]))
    return Stat(value, points[nearest][1].spread, points[nearest][1].runs)


def score_row(name: str, method: str, **changes: Any) -> Row:
    """A score method's row along its iterations."""
    options = {"method": method, "settings": {**SCORE, **changes}, **ZERO_SHOT}
    return Row(name=name, evaluation=f"{STUDY}:editing_curve", options=options, minutes=25.0)


def varied_row(name: str, method: str, vary: str, values: tuple[float, ...], **settings: Any) -> Row:
    """A method's row along one of its options."""
    options = {"method": method, "settings": settings, "vary": vary, "strengths": values, **ZERO_SHOT}
    return Row(name=name, evaluation=f"{STUDY}:editing_curve", options=options, minutes=15.0)


FIG2 = Table(
    name="dds-fig2",
    title="Where the prompt asks for nothing: SDS drifts, DDS stays",
    paper="DDS, fig. 2 and sec. 3",
    rows=tuple(
        Row(name=name, evaluation=f"{STUDY}:drift", options={"method": method, "settings": SCORE, **ZERO_SHOT},
            minutes=25.0)
        for name, method in (("DDS, equal prompts", "dds"), ("SDS, the source's prompt", "sds"))
    ),
    claims=(
        Claim(text="DDS with equal prompts leaves the picture exactly as it is",
              check=beyond("change", "DDS, equal prompts", 0.0, better="lower")),
        Claim(text="SDS with the source's own prompt changes it",
              check=order("change", "DDS, equal prompts", "SDS, the source's prompt", better="lower")),
    ),
    columns=(Column(metric="change", title="change (RMS)", better="lower"),),
    plots=(Plot(name="drift", metric="change", label="iterations"),),
)  # fmt: skip

FIG5 = Table(
    name="dds-fig5",
    title="Zero-shot editing: success against what is kept",
    paper="DDS, fig. 5: DDS against SDS and SDEdit",
    rows=(
        score_row("DDS", "dds"),
        score_row("SDS", "sds"),
        varied_row("SDEdit", "sdedit", "strength", STRENGTHS),
        score_row("CDS", "cds"),
        score_row("PDS", "pds", step=1.0),
    ),
    claims=tuple(
        Claim(text=f"at equal success DDS {says} than {rival}", check=at_equal(metric, "DDS", rival, better="higher"))
        for rival in ("SDS", "SDEdit")
        for metric, says in (("psnr", "is closer to the exact answer"), ("psnr_outside", "keeps more outside the edit"))
    ),
    plots=(
        Plot(name="answer", metric="psnr", against="success", label="success"),
        Plot(name="outside", metric="psnr_outside", against="success", label="success"),
    ),
    note="Points: every 10 iterations of 100 for scores at w = 3, strengths .2 to .9 for SDEdit.",
)

FIG9 = Table(
    name="dds-fig9",
    title="Guidance: prompt against fidelity",
    paper="DDS, fig. 9: CLIP score against LPIPS over guidance scales",
    rows=(
        varied_row("DDS", "dds", "guidance", GUIDANCES, **{**SCORE, "frames": 0}),
        varied_row("SDEdit", "sdedit", "strength", STRENGTHS),
        varied_row("PnP", "pnp", "features", (0.2, 0.4, 0.6, 0.8, 1.0)),
        Row(name="Text2LIVE", not_run="an external method of its own weights and code"),
    ),
    claims=(
        Claim(text="a higher guidance scale succeeds more often",
              check=order("success@15", "DDS", "DDS", better="higher", against="success@1")),
        Claim(text="and keeps less of the picture",
              check=order("psnr_outside@1", "DDS", "DDS", better="higher", against="psnr_outside@15")),
        Claim(text="at equal success DDS keeps more than SDEdit",
              check=at_equal("psnr_outside", "DDS", "SDEdit", better="higher")),
        Claim(text="at equal success DDS keeps more than PnP",
              check=at_equal("psnr_outside", "DDS", "PnP", better="higher")),
    ),
    plots=(
        Plot(name="fidelity", metric="psnr_outside", against="clip", label="CLIP score"),
        Plot(name="guidance", metric="success", label="guidance scale", rows=("DDS",)),
    ),
    note="PSNR outside of the edited part stands for LPIPS, whose networks are not of this world.",
)  # fmt: skip

FIG8 = Table(
    name="dds-fig8",
    title="SDS's gradient where nothing is to be changed",
    paper="DDS, fig. 8, with the closed form for Gaussian data",
    rows=(
        Row(name="teacher", evaluation=f"{STUDY}:gradients", options={"count": 2, "draws": 50, "times": TIMES},
            minutes=30.0),
        Row(name="Gaussian data", evaluation=f"{STUDY}:gaussian_gradients", options={"times": TIMES}, minutes=1.0),
    ),
    claims=(
        Claim(text="at every t the gradient of aligned pairs is smaller than that of permuted captions",
              check=every(*(order(f"permuted@{t}", "teacher", "teacher", better="higher", against=f"aligned@{t}")
                            for t in TIMES))),
        Claim(text="and far from zero",
              check=every(*(beyond(f"aligned@{t}", "teacher", 0.02, better="higher") for t in TIMES))),
        Claim(text="at every t an image and its edit have more of the gradient in common than shuffled pairs",
              check=every(*(order(f"cosine@{t}", "teacher", "teacher", better="higher", against=f"shuffled@{t}")
                            for t in TIMES))),
        Claim(text="on Gaussian data the size is kappa and the cosine of aligned pairs 1, as in closed form",
              check=every(*(close(f"aligned@{t}", "Gaussian data", "Gaussian data", margin=0.02, against=f"kappa@{t}")
                            for t in TIMES),
                          *(beyond(f"cosine@{t}", "Gaussian data", 0.999, better="higher") for t in TIMES))),
    ),
    plots=tuple(
        Plot(name=name, metric=name, label="timestep") for name in ("aligned", "permuted", "cosine", "shuffled")
    ),
)  # fmt: skip

TRANSLATOR = Training(config="configs/dds_translate.py")
EDIT_MODEL = Training(config="configs/finetune.py:edit")


def translator_row(name: str, variant: str = "", **fields: Any) -> Row:
    """A trained translator's row."""
    training = Training(config=f"configs/dds_translate.py:{variant}") if variant else TRANSLATOR
    return Row(
        name=name, training=training, seeds=(0, 1), sampling_seeds=(0,), evaluation=REPORT, options={"samples": 64},
        minutes=3.0, **fields,
    )  # fmt: skip


def editor_row(name: str, method: str, minutes: float, **settings: Any) -> Row:
    """A zero-shot editor's row on the translator's tasks."""
    options = {"method": method, "settings": settings, **CATS}
    return Row(name=name, sampling_seeds=(0, 1), evaluation=f"{STUDY}:editing_point", options=options, minutes=minutes)


TABLE2 = Table(
    name="dds-table2",
    title="Translation of cats to dogs, lions, bears and squirrels",
    paper="DDS, table 2",
    rows=(
        translator_row("DDS translator"),
        editor_row("DDS, zero-shot", "dds", 25.0, **{**SCORE, "frames": 0}),
        editor_row("SDEdit", "sdedit", 4.0, strength=0.7),
        editor_row("PnP", "pnp", 8.0),
        Row(name="InstructPix2Pix-style", training=EDIT_MODEL, evaluation=f"{STUDY}:instructed",
            options={"steps": 50, **CATS}, minutes=4.0, note="fine-tuned on instructions and their answers"),
        Row(name="DiffusionCLIP", not_run="an external method of its own weights and code"),
    ),
    claims=(
        Claim(text="of the methods that change the species, the translator is the closest to the exact answer",
              check=order("psnr", "DDS translator", ("SDEdit", "PnP"), better="higher")),
        Claim(text="its CLIP distance to the exact answer is the lowest",
              check=order("clip_distance", "DDS translator", ("SDEdit", "PnP"), better="lower")),
        Claim(text="one pass is faster than the 50-step editors",
              check=order("seconds", "DDS translator", ("SDEdit", "PnP"), better="lower")),
    ),
    columns=(*EDIT_COLUMNS, Column(metric="seconds", title="s an image", better="lower")),
    note="The paper's LPIPS is a distance to the source; here the exact answer is known, and the distance is to it.",
)  # fmt: skip

ABLATION = Table(
    name="dds-ablation",
    title="What the translator's training needs",
    paper="DDS, sec. 5.3: without warm-up, with SDS",
    rows=(
        translator_row("full"),
        translator_row("no warm-up", "nowarmup"),
        translator_row("SDS", "sds"),
        translator_row("no identity regularisation", "noidentity"),
    ),
    claims=(
        Claim(text="without guidance warm-up the outputs are less diverse",
              check=order("diversity", "full", "no warm-up", better="higher")),
        Claim(text="SDS in place of DDS loses detail: it is further from the exact answer",
              check=order("psnr", "full", "SDS", better="higher")),
        Claim(text="and keeps less outside the edit",
              check=order("psnr_outside", "full", "SDS", better="higher")),
    ),
    columns=(*EDIT_COLUMNS, Column(metric="diversity")),
)  # fmt: skip
