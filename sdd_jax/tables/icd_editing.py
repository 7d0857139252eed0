"""iCD's tables of editing (Starodubcev et al. 2024) on the embedded world: table 3, figures 9 and 12, and all methods.

Attribute edits of held-out portraits against the same individuals drawn with the asked value, in place of PIE-bench and
COCO: success, as the classifier reads it, stands for the CLIP score of the target prompt; preservation of the other
attributes and PSNR outside of what changes for the DINOv2 distance to the original. Curves have P2P's shares of
controlled steps on x (edit-friendly's share of skipped steps), larger is closer to the source.

An edit that changes little keeps everything, and in PSNR lies near the answer where the answer lies near the source: no
claim reads what is kept without success beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdd_jax.tables.claims import every, not_worse, order
from sdd_jax.tables.curves import at_equal, comparable
from sdd_jax.tables.icd_rows import (
    AT_EDITING_W,
    EDITING,
    EDITING_CURVE,
    EDITING_W,
    FOR_EDITING,
    ONCE,
    THREE_WITH_BOTH,
    TWICE,
    WITH_BOTH,
)
from sdd_jax.tables.paired import at_shared_seeds, in_every_seed
from sdd_jax.tables.types import Claim, Column, Plot, Row, Table, Training

SETTINGS: dict[str, Any] = {"guidance": EDITING_W}
ICD, SWITCH, RENOISE = "iCD, 8 steps", "iCD, prompt switch, 8 steps", "renoise"
RIVALS = ("p2p", "npi", "nti", "edit-friendly", "infedit", RENOISE, "ddib", "sdedit", "masactrl", "pnp")
_MINUTES = {"nti": 17.0, RENOISE: 7.0}
_NOTES = {
    RENOISE: "of the undistilled teacher; averaged iterations alone, without the paper's noise regularisation and "
    "correction of editability",
    "infedit": "of the teacher: no consistency model of this world is trained",
}
COLUMNS = (
    Column(metric="success", better="higher"),
    Column(metric="preservation", better="higher"),
    Column(metric="psnr", title="PSNR to the answer", better="higher"),
    Column(metric="psnr_outside", title="PSNR outside", better="higher"),
    Column(metric="clip_distance", title="CLIP distance", better="lower"),
    Column(metric="evaluations", title="F", better="lower"),
    Column(metric="seconds", title="s an image", better="lower"),
)
NO_HUMANS = "people's preferences cannot be computed"


def _edited(name: str, method: str = "", training: Training | None = None, **fields: Any) -> Row:
    method = method or name
    frames = method in ("source", "autoencoder")
    options: dict[str, Any] = {"method": method} if frames else {"method": method, "settings": SETTINGS}
    minutes = 1.5 if training or frames else _MINUTES.get(method, 4.0)
    note = _NOTES.get(method, "")
    return Row(name=name, training=training, evaluation=EDITING, options=options, minutes=minutes, note=note, **fields)


_OURS = (
    _edited(ICD, "icd", FOR_EDITING, seeds=TWICE),
    _edited(SWITCH, "icd-switch", WITH_BOTH, seeds=TWICE),
)

METHODS = Table(
    name="icd-editing",
    title="Editing methods",
    paper="iCD, section 4.2 (all the methods that it names or builds on)",
    note=f"{AT_EDITING_W}. 72 edits a seed. F: forwards of the UNet an image, of null-text a backward as one. PSNR "
    "to the answer also rewards leaving a small edit undone: 'nothing done' has it too.",
    rows=(
        _edited("nothing done", "source"),
        _edited("the answer, through the autoencoder", "autoencoder"),
        *_OURS,
        *map(_edited, RIVALS),
    ),
    columns=COLUMNS,
    claims=(
        Claim(text="iCD needs the fewest evaluations", check=order("evaluations", ICD, RIVALS, better="lower")),
        Claim(text="iCD takes the least time", check=order("seconds", ICD, RIVALS, better="lower")),
        Claim(
            text="iCD edits as often as null-text and negative-prompt inversion, and keeps as much",
            check=every(
                *(
                    not_worse(metric, ICD, rival, better="higher")
                    for metric in ("success", "preservation", "psnr_outside")
                    for rival in ("nti", "npi")
                )
            ),
        ),
    ),
)

TABLE3 = Table(
    name="icd-table3",
    title="Editing without attention control: the prompt switch and ReNoise",
    paper="iCD, table 3",
    note=f"{AT_EDITING_W}. In the paper SDXL; here the embedded teacher, with the methods of table 3.",
    rows=(
        _OURS[1],
        _edited(RENOISE),
        Row(name="ReNoise Turbo", not_run="an adversarially distilled teacher: none of this world is trained"),
        Row(name="ReNoise LCM", not_run="a latent consistency model: none of this world is trained"),
        Row(name="human preference", not_run=NO_HUMANS),
    ),
    columns=COLUMNS,
    claims=(
        Claim(
            text="the prompt switch edits no worse than ReNoise and preserves the source better",
            check=every(
                not_worse("success", SWITCH, RENOISE, better="higher"),
                *(
                    in_every_seed(metric, SWITCH, RENOISE, better="higher")
                    for metric in ("preservation", "psnr_outside")
                ),
            ),
        ),
        Claim(text="with fewer evaluations", check=order("evaluations", SWITCH, RENOISE, better="lower")),
    ),
)

Curve = Mapping[str, Mapping[str, float]]
SHARES: Curve = {f"{share:g}": {"cross": share, "self_": share} for share in (0.2, 0.5, 0.8)}
SKIPS: Curve = {f"{skip:g}": {"skip": skip} for skip in (0.2, 0.36, 0.6)}


def _varied(name: str, method: str, curve: Curve, minutes: float, **fields: Any) -> Row:
    options = {"method": method, "samples": 4, "settings": SETTINGS, "points": curve}
    return Row(name=name, evaluation=EDITING_CURVE, options=options, minutes=minutes * len(curve), **fields)


_FOUR = _varied(ICD, "icd", SHARES, 1.0, training=FOR_EDITING, seeds=TWICE)
_BASELINES = (
    _varied("NTI", "nti", SHARES, 4.0),
    _varied("NPI", "npi", SHARES, 2.0),
    _varied("Edit-friendly DDPM", "edit-friendly", SKIPS, 2.5),
    _varied("InfEdit", "infedit", SHARES, 1.0, note=_NOTES["infedit"]),
)
_POINTS = tuple(
    Column(metric=f"{metric}@{x}", title=f"{metric}, {x}", better="higher")
    for metric in ("success", "preservation", "psnr_outside")
    for x in dict.fromkeys((*SHARES, *SKIPS))
)
SIMILAR = 1.0
"""dB of PSNR outside of the edit, at equal success: closer is as good. Other attributes are kept by every method."""
_TRADE_OFF = (
    Plot(name="success", metric="success", against="preservation"),
    Plot(name="outside", metric="success", against="psnr_outside"),
)

FIG9 = Table(
    name="icd-fig9",
    title="Editing strength against preservation",
    paper="iCD, figure 9",
    note=f"{AT_EDITING_W}. 36 edits a seed.",
    rows=(_FOUR, *_BASELINES, Row(name="human preference", not_run=NO_HUMANS)),
    columns=(*_POINTS, Column(metric="evaluations@0.5", title="F", better="lower")),
    claims=(
        Claim(
            text="iCD is comparable to the baselines in most cases",
            check=comparable("psnr_outside", ICD, tuple(row.name for row in _BASELINES), margin=SIMILAR),
        ),
    ),
    plots=_TRADE_OFF,
)

THREE_STEPS = "iCD, 6 steps"
_THREE = {"tau": 0.7}
FIG12 = Table(
    name="icd-fig12",
    title="Editing with three and four steps",
    paper="iCD, figure 12",
    note=f"{AT_EDITING_W}. Four steps with tau = .8, trained twice, three with .7, trained once; jumps start there. 36 "
    "edits a seed.",
    rows=(
        _FOUR,
        _varied(
            THREE_STEPS, "icd", {x: {**fields, **_THREE} for x, fields in SHARES.items()}, 1.0,
            training=THREE_WITH_BOTH, seeds=ONCE,
        ),
    ),
    columns=(*(column for column in _POINTS if column.metric.partition("@")[2] in SHARES),),
    claims=(
        Claim(
            text="three and four steps edit similarly",
            check=every(
                comparable("psnr_outside", ICD, (THREE_STEPS,), margin=SIMILAR),
                comparable("psnr_outside", THREE_STEPS, (ICD,), margin=SIMILAR),
            ),
        ),
        Claim(text="four slightly better", check=at_equal("psnr_outside", ICD, THREE_STEPS, better="higher")),
    ),
    plots=_TRADE_OFF,
)  # fmt: skip

METHODS, TABLE3, FIG9, FIG12 = map(at_shared_seeds, (METHODS, TABLE3, FIG9, FIG12))
