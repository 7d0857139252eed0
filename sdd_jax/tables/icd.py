"""iCD's tables of inversion and generation (Starodubcev et al. 2024) on the embedded world, and what stage 1 reaches.

Pictures are held-out portraits under their canonical captions, others for every sampling seed. LPIPS and DINOv2 are
replaced by PSNR, SSIM and the distance of the world's own CLIP, FID by the Frechet distance of its embeddings,
ImageReward by the classifier's attribute accuracy. PSNR levels off at the autoencoder's own error, the error of the
latents does not: the orderings of table 2 are claimed of both, and hold where every run shows them (`paired`).
"""

from __future__ import annotations

from typing import Any

from sdd_jax.tables.claims import beyond, close, every
from sdd_jax.tables.icd_checks import at_most_share
from sdd_jax.tables.icd_rows import (
    AT_W,
    CEILING,
    DISTILLATION,
    DYNAMIC,
    ENCODING,
    FOR_EDITING,
    FOUR,
    GENERATION,
    GUIDED,
    INVERSION,
    ONCE,
    ONLY_LF,
    SCALES,
    STAGE1,
    TAU,
    THREE,
    THREE_WITH_BOTH,
    TWICE,
    TWO,
    WITH_BOTH,
    WITH_LF,
    W,
)
from sdd_jax.tables.paired import at_shared_seeds, in_every_seed, leads_in_every_seed
from sdd_jax.tables.types import Claim, Column, Row, Table, Training

NOTE = f"{AT_W}; d.CFG: tau = {TAU:g}."
INVERTED = (
    Column(metric="psnr", title="PSNR", better="higher"),
    Column(metric="ssim", title="SSIM", better="higher"),
    Column(metric="clip_distance", title="CLIP distance", better="lower"),
    Column(metric="latent_mse", title="MSE of latents", better="lower"),
)

ENCODINGS: dict[str, dict[str, Any]] = {
    "no CFG": {},
    "d.CFG, tau = 0.6": {"encoding_w": W, "encoding_tau": 0.6},
    "d.CFG, tau = 0.8": {"encoding_w": W, "encoding_tau": 0.8},
    "CFG": {"encoding_w": W},
}
DECODINGS: dict[str, dict[str, Any]] = {
    "off": {"w": 1.0}, "0.6": {"w": W, "tau": 0.6}, "0.8": {"w": W, "tau": 0.8}, "constant": {"w": W}
}  # fmt: skip
_AT = {"off": "no CFG", "0.6": "d.CFG tau = 0.6", "0.8": "d.CFG tau = 0.8", "constant": "CFG"}
_LESS = tuple(ENCODINGS)[:-1]

TABLE1 = Table(
    name="icd-table1",
    title="Guidance at the encoder: what DDIM draws from encoded noise",
    paper="iCD, table 1",
    note=f"{AT_W}. The paper's rows are columns here. Frechet distance of 128 pictures in place of FID-5k.",
    rows=tuple(
        Row(
            name=name,
            evaluation=ENCODING,
            options={"samples": 128, **fields, "decodings": DECODINGS},
            minutes=13.0 if fields else 11.0,
        )
        for name, fields in ENCODINGS.items()
    ),
    columns=(
        *(Column(metric=f"frechet_{name}", title=f"Frechet, decoded with {_AT[name]}", better="lower") for name in _AT),
        Column(metric="nll", title="NLL of the latent", better="lower"),
    ),
    claims=(
        *(
            Claim(
                text=f"decoded with {_AT[name]}: latents of encoding with full CFG are the worst",
                check=in_every_seed(f"frechet_{name}", _LESS, "CFG", better="lower"),
            )
            for name in DECODINGS
        ),
        Claim(
            text="the more guidance at the encoder, the less likely the latent",
            check=in_every_seed("nll", *ENCODINGS, better="lower"),
        ),
    ),
)

_ERRORS = (("psnr", "PSNR", "higher"), ("latent_mse", "the latents", "lower"))

TABLE2 = Table(
    name="icd-table2",
    title="Inversion",
    paper="iCD, table 2",
    note=f"{NOTE} A, B and E are trained once, the others twice.",
    rows=(
        Row(name="autoencoder", evaluation=CEILING, note="no inversion: what PSNR, SSIM and CLIP distance can reach"),
        Row(name="DDIM50", evaluation=INVERSION, note="unguided, as A to G"),
        Row(name="A: 2 steps", training=TWO, evaluation=INVERSION, seeds=ONCE),
        Row(name="B: 3 steps", training=THREE, evaluation=INVERSION, seeds=ONCE),
        Row(name="C: 4 steps", training=FOUR, evaluation=INVERSION, seeds=TWICE),
        Row(name="E: L_f without forward CD", training=ONLY_LF, evaluation=INVERSION, seeds=ONCE),
        Row(name="F: C + L_f", training=WITH_LF, evaluation=INVERSION, seeds=TWICE),
        Row(name="G: F + L_r", training=WITH_BOTH, evaluation=INVERSION, seeds=TWICE),
        Row(name="DDIM50, guided", evaluation=INVERSION, options=GUIDED),
        Row(name="DDIM50, guided, d.CFG", evaluation=INVERSION, options=DYNAMIC),
        Row(name="H: 4 steps, guided", training=FOUR, evaluation=INVERSION, seeds=TWICE, options=GUIDED),
        Row(name="I: H + d.CFG", training=FOUR, evaluation=INVERSION, seeds=TWICE, options=DYNAMIC),
        Row(name="J: I + L_f", training=WITH_LF, evaluation=INVERSION, seeds=TWICE, options=DYNAMIC),
        Row(name="K: J + L_r", training=WITH_BOTH, evaluation=INVERSION, seeds=TWICE, options=DYNAMIC),
    ),
    columns=(*INVERTED, Column(metric="nll", title="NLL of the latent", better="lower")),
    claims=(
        Claim(
            text="more steps invert better: A < B < C",
            check=in_every_seed("psnr", "C: 4 steps", "B: 3 steps", "A: 2 steps", better="higher"),
        ),
        Claim(
            text="without forward CD, L_f alone is worst",
            check=in_every_seed(
                "psnr", ("A: 2 steps", "B: 3 steps", "C: 4 steps", "F: C + L_f", "G: F + L_r"),
                "E: L_f without forward CD", better="higher",
            ),
        ),
        *(
            Claim(
                text=f"both preservation losses help: C < F < G, in {what}",
                check=in_every_seed(metric, "G: F + L_r", "F: C + L_f", "C: 4 steps", better=better),
            )
            for metric, what, better in _ERRORS
        ),
        Claim(text="G is near the teacher", check=close("psnr", "G: F + L_r", "DDIM50", margin=1.0)),
        *(
            Claim(
                text=f"guided, every addition helps: H < I < J < K, in {what}",
                check=in_every_seed(
                    metric, "K: J + L_r", "J: I + L_f", "I: H + d.CFG", "H: 4 steps, guided", better=better
                ),
            )
            for metric, what, better in _ERRORS
        ),
        Claim(
            text="dynamic guidance is the largest single gain",
            check=every(
                *(
                    leads_in_every_seed("psnr", ("I: H + d.CFG", "H: 4 steps, guided"), other, better="higher")
                    for other in (("J: I + L_f", "I: H + d.CFG"), ("K: J + L_r", "J: I + L_f"))
                )
            ),
        ),
        Claim(
            text="dynamic guidance lifts plain DDIM too",
            check=in_every_seed("psnr", "DDIM50, guided, d.CFG", "DDIM50, guided", better="higher"),
        ),
    ),
)  # fmt: skip

_DRAWN = {"samples": 256}
_GENERATED: dict[str, tuple[Training, float]] = {
    "CD4, tau .8": (FOR_EDITING, 0.8), "CD4, tau .7": (WITH_BOTH, 0.7), "CD3, tau .7": (THREE_WITH_BOTH, 0.7)
}  # fmt: skip
TABLE4 = Table(
    name="icd-table4",
    title="Generation with dynamic guidance",
    paper="iCD, table 4",
    note=f"{AT_W}. The name of a CD says for which tau its jumps start where they do. Attribute accuracy saturates: "
    "what dynamic guidance costs is read in the CLIP score. CD3 is trained once, the others twice.",
    rows=(
        Row(name="DDIM50", evaluation=GENERATION, options={**_DRAWN, **GUIDED}, minutes=4.0),
        *(
            Row(
                name=f"{name}{how}",
                training=training,
                seeds=ONCE if training is THREE_WITH_BOTH else TWICE,
                evaluation=GENERATION,
                options={**_DRAWN, **GUIDED, **options},
            )
            for name, (training, tau) in _GENERATED.items()
            for how, options in (("", {}), (" + d.CFG", {"tau": tau}))
        ),
    ),
    columns=(
        Column(metric="frechet", title="Frechet", better="lower"),
        Column(metric="clip_score", title="CLIP score", better="higher"),
        Column(metric="attributes", better="higher"),
    ),
    claims=(
        *(
            Claim(
                text=f"{name}: dynamic guidance improves FID and degrades what the captions ask for",
                check=every(
                    in_every_seed("frechet", f"{name} + d.CFG", name, better="lower"),
                    in_every_seed("clip_score", name, f"{name} + d.CFG", better="higher"),
                ),
            )
            for name in _GENERATED
        ),
        *(
            Claim(
                text=f"{name}: 4 steps show the captions' attributes as the 50-step teacher does, within 5 points",
                check=close("attributes", name, "DDIM50", margin=0.05),
            )
            for name in ("CD4, tau .8", "CD4, tau .7")
        ),
    ),
)

_DECODED: dict[str, dict[str, Any]] = {"unguided": {}, "guided, d.CFG": DYNAMIC}
TABLE5 = Table(
    name="icd-table5",
    title="Three steps and four, with both preservation losses",
    paper="iCD, table 5",
    note=f"{NOTE} Three steps are trained once, four twice.",
    rows=(
        Row(name="DDIM50, unguided", evaluation=INVERSION),
        Row(name="DDIM50, guided, constant", evaluation=INVERSION, options=GUIDED, minutes=2.0),
        Row(name="DDIM50, guided, d.CFG", evaluation=INVERSION, options=DYNAMIC, minutes=2.0),
        *(
            Row(name=f"{steps} steps, {how}", training=training, seeds=seeds, evaluation=INVERSION, options=options)
            for steps, training, seeds in ((3, THREE_WITH_BOTH, ONCE), (4, WITH_BOTH, TWICE))
            for how, options in _DECODED.items()
        ),
    ),
    columns=INVERTED,
    claims=tuple(
        Claim(
            text=f"{how}: three steps invert about as well as four",
            check=close("psnr", f"3 steps, {how}", f"4 steps, {how}", margin=0.5),
        )
        for how in _DECODED
    ),
)

STAGE1_TABLE = Table(
    name="icd-stage1",
    title="Guidance distillation",
    paper="iCD, stage 1 (no table: no training code was released)",
    rows=(Row(name="student", training=STAGE1, seeds=TWICE, evaluation=DISTILLATION),),
    columns=(
        *(Column(metric=f"relative_rmse@{w}", title=f"relative RMSE, w = {w}", better="lower") for w in SCALES),
        Column(metric="student_f", title="F of a guided prediction", better="lower"),
        Column(metric="teacher_f", title="F of the teacher's", better="lower"),
    ),
    claims=(
        Claim(
            text="the student is within 5% of the two-pass guided prediction at every trained scale",
            check=every(*(beyond(f"relative_rmse@{w}", "student", 0.05, better="lower") for w in SCALES)),
        ),
        Claim(
            text="at half the cost, but for the projection of w",
            check=at_most_share("student_f", "student", of="teacher_f", share=0.525),
        ),
    ),
)

TABLE1, TABLE2, TABLE4, TABLE5, STAGE1_TABLE = map(at_shared_seeds, (TABLE1, TABLE2, TABLE4, TABLE5, STAGE1_TABLE))
