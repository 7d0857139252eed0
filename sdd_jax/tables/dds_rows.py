"""What the rows of DDS's tables are: editors of the untrained teacher, translators' trainings, and what frames them."""

from __future__ import annotations

import dataclasses
from typing import Any

from sdd_jax.tables.types import Column, Row, Training

STUDY = "sdd_jax.jobs.dds.study"
REPORT = "sdd_jax.jobs.dds.report:translation"
SCORE: dict[str, Any] = {"iterations": 100, "guidance": 3.0}
NOISED: dict[str, Any] = {"vary": "strength", "strengths": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
SHOWN_STRENGTH = 0.6
INJECTED: dict[str, Any] = {"vary": "features", "strengths": (0.2, 0.5, 0.8)}
ANIMALS = ("dog", "lion", "bear", "squirrel")
CATS: dict[str, Any] = {"tasks": ANIMALS, "only": "cat", "count": 16}
PORTRAITS: dict[str, Any] = {"tasks": ("white fur", "angry", "wearing glasses", "at night"), "count": 64}
ZERO_SHOT: dict[str, Any] = {"count": 8}
EDIT_COLUMNS = (
    Column(metric="success", better="higher"),
    Column(metric="psnr", title="PSNR to the answer", better="higher"),
    Column(metric="psnr_outside", title="PSNR outside the edit", better="higher"),
    Column(metric="preservation", title="other attributes kept", better="higher"),
    Column(metric="clip", title="CLIP", better="higher"),
    Column(metric="clip_distance", title="CLIP distance to the answer", better="lower"),
)
TRANSLATOR = Training(config="configs/dds_translate.py", minutes=15.0)
ATTRIBUTES = dataclasses.replace(TRANSLATOR, config=f"{TRANSLATOR.config}:attributes")
EDIT_MODEL = Training(config="configs/finetune.py:edit", minutes=22.0)


def curve_row(name: str, method: str, minutes: float, seeds: tuple[int, ...] = (0, 1), **options: Any) -> Row:
    """An editing method along its strength; options: of `study.CurveOptions`."""
    options = {"method": method, **options}
    return Row(name=name, sampling_seeds=seeds, evaluation=f"{STUDY}:editing_curve", options=options, minutes=minutes)


def score_row(name: str, method: str, minutes: float, settings: dict[str, Any] | None = None, **options: Any) -> Row:
    """A score method along its iterations."""
    return curve_row(name, method, minutes, settings={**SCORE, **(settings or {})}, **options)


def columns_at(x: str, of: str, *metrics: str) -> tuple[Column, ...]:
    """Columns of points of a curve."""
    return tuple(
        dataclasses.replace(column, metric=f"{column.metric}@{x}", title=f"{column.title or column.metric}, {of}")
        for column in EDIT_COLUMNS
        if column.metric in metrics
    )


def framing_rows(pairs: dict[str, Any], of: str = "") -> tuple[Row, Row]:
    """What no editor should fall below, and what none on latents can exceed."""
    return (
        Row(name=f"the source, as it is{of}", sampling_seeds=(0,), evaluation=f"{STUDY}:untouched", options=pairs,
            minutes=0.5),
        Row(name=f"exact answer, autoencoded{of}", sampling_seeds=(0,), evaluation=f"{STUDY}:answers", options=pairs,
            minutes=0.5),
    )  # fmt: skip


def translator_row(name: str, variant: str = "", samples: int = 256, timed: bool = False, **fields: Any) -> Row:
    """A trained translator's row."""
    training = dataclasses.replace(TRANSLATOR, config=f"{TRANSLATOR.config}:{variant}") if variant else TRANSLATOR
    options = {"samples": samples, **({"timed": True} if timed else {})}
    fields = {"seeds": (0, 1), "sampling_seeds": (0,), **fields}
    return Row(name=name, training=training, evaluation=REPORT, options=options, minutes=3.0, **fields)
