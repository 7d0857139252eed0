"""iCD's tables and figures (Starodubcev et al. 2024) on the embedded world.

Every row of iCD starts from one run of stage 1. Guided rows use w = 3, the embedded teacher's best scale, in place of
the paper's 8, and tau = .7. Pictures are held-out portraits under their canonical captions; LPIPS and DINOv2 are
replaced by PSNR and the distance of the world's own CLIP, ImageReward by the classifier's attribute accuracy.
"""

from __future__ import annotations

from sdd_jax.tables.claims import beyond, close, every, gap, monotone, order
from sdd_jax.tables.types import Claim, Column, Plot, Row, Table, Training

INVERSION = "sdd_jax.jobs.icd.report:measure_inversion"
GENERATION = "sdd_jax.jobs.icd.report:measure_generation"
RECONSTRUCTION = "sdd_jax.jobs.icd.report:measure_reconstruction"
EDITING = "sdd_jax.jobs.icd.report:measure_editing"
DISTILLATION = "sdd_jax.jobs.icd.guidance_distill:measure"

W, TAU = 3.0, 0.7
GUIDED, DYNAMIC = {"w": W}, {"w": W, "tau": TAU}

STAGE1 = Training(config="configs/icd.py:stage1", minutes=60.0)


def stage2(boundaries: str, *weightless: str) -> Training:
    """A training of stage 2 with a configuration of boundaries, some of its losses left out."""
    overrides = (f"objective.boundaries={boundaries}", *(f"objective.{name}=0.0" for name in weightless))
    return Training(
        config="configs/icd.py:stage2", overrides=overrides, needs={"teacher.workdir": STAGE1}, minutes=60.0
    )


TWO, THREE, FOUR = (
    stage2(jumps, "forward_preservation", "reverse_preservation") for jumps in ("2", "3_tau0.7", "4_tau0.7")
)
ONLY_LF = stage2("4_tau0.7", "forward_weight", "reverse_preservation")
WITH_LF = stage2("4_tau0.7", "reverse_preservation")
WITH_BOTH, THREE_WITH_BOTH = stage2("4_tau0.7"), stage2("3_tau0.7")

INVERTED = (
    Column(metric="psnr", title="PSNR", better="higher"),
    Column(metric="ssim", title="SSIM", better="higher"),
    Column(metric="clip_distance", title="CLIP distance", better="lower"),
)

TABLE1 = Table(
    name="icd-table1",
    title="Guidance at the encoder",
    paper="iCD, table 1",
    rows=tuple(
        Row(
            name=f"{name}, encoded at w = {up:g}, decoded at w = {down:g}",
            training=training,
            evaluation=INVERSION,
            options={"encoding_w": up, "w": down},
        )
        for name, training in (("DDIM50", None), ("iCD, 4 steps", WITH_BOTH))
        for down in (1.0, W)
        for up in (1.0, W)
    ),
    columns=(*INVERTED, Column(metric="nll", title="NLL of the latent", better="lower")),
    claims=tuple(
        Claim(
            text=f"{name} decoded at w = {down:g}: encoding with full guidance is worst, and its latent less likely",
            check=every(
                order("psnr", *(f"{name}, encoded at w = {up:g}, decoded at w = {down:g}" for up in (1.0, W)),
                      better="higher"),
                order("nll", *(f"{name}, encoded at w = {up:g}, decoded at w = {down:g}" for up in (1.0, W)),
                      better="lower"),
            ),
        )
        for name in ("DDIM50", "iCD, 4 steps")
        for down in (1.0, W)
    ),
)  # fmt: skip

TABLE2 = Table(
    name="icd-table2",
    title="Inversion",
    paper="iCD, table 2",
    rows=(
        Row(name="DDIM50", evaluation=INVERSION, note="unguided, as A to G"),
        Row(name="A: 2 steps", training=TWO, evaluation=INVERSION),
        Row(name="B: 3 steps", training=THREE, evaluation=INVERSION),
        Row(name="C: 4 steps", training=FOUR, evaluation=INVERSION),
        Row(name="E: L_f without forward CD", training=ONLY_LF, evaluation=INVERSION),
        Row(name="F: C + L_f", training=WITH_LF, evaluation=INVERSION),
        Row(name="G: F + L_r", training=WITH_BOTH, evaluation=INVERSION),
        Row(name="DDIM50, guided", evaluation=INVERSION, options=GUIDED),
        Row(name="DDIM50, guided, d.CFG", evaluation=INVERSION, options=DYNAMIC),
        Row(name="H: 4 steps, guided", training=FOUR, evaluation=INVERSION, options=GUIDED),
        Row(name="I: H + d.CFG", training=FOUR, evaluation=INVERSION, options=DYNAMIC),
        Row(name="J: I + L_f", training=WITH_LF, evaluation=INVERSION, options=DYNAMIC),
        Row(name="K: J + L_r", training=WITH_BOTH, evaluation=INVERSION, options=DYNAMIC),
    ),
    columns=INVERTED,
    claims=(
        Claim(
            text="more steps invert better: A < B < C",
            check=order("psnr", "C: 4 steps", "B: 3 steps", "A: 2 steps", better="higher"),
        ),
        Claim(
            text="without forward CD, L_f alone is worst",
            check=order(
                "psnr", ("A: 2 steps", "B: 3 steps", "C: 4 steps", "F: C + L_f", "G: F + L_r"),
                "E: L_f without forward CD", better="higher",
            ),
        ),
        Claim(
            text="both preservation losses help: C < F < G",
            check=order("psnr", "G: F + L_r", "F: C + L_f", "C: 4 steps", better="higher"),
        ),
        Claim(text="G is near the teacher", check=close("psnr", "G: F + L_r", "DDIM50", margin=2.0)),
        Claim(
            text="guided, every addition helps: H < I < J < K",
            check=order("psnr", "K: J + L_r", "J: I + L_f", "I: H + d.CFG", "H: 4 steps, guided", better="higher"),
        ),
        Claim(
            text="dynamic guidance is the largest single gain",
            check=every(
                gap("psnr", ("I: H + d.CFG", "H: 4 steps, guided"), ("J: I + L_f", "I: H + d.CFG"), better="higher"),
                gap("psnr", ("I: H + d.CFG", "H: 4 steps, guided"), ("K: J + L_r", "J: I + L_f"), better="higher"),
            ),
        ),
        Claim(
            text="dynamic guidance lifts plain DDIM too",
            check=order("psnr", "DDIM50, guided, d.CFG", "DDIM50, guided", better="higher"),
        ),
    ),
)  # fmt: skip

ICD = "iCD, 4 steps"
RIVALS = ("p2p", "npi", "nti", "edit-friendly", "infedit", "renoise", "ddib", "sdedit", "masactrl", "pnp")
TABLE3 = Table(
    name="icd-table3",
    title="Editing",
    paper="iCD, table 3",
    note="Attribute edits of portraits, against exact counterfactuals in place of PIE-bench.",
    rows=(
        Row(name=ICD, training=stage2("4_tau0.8"), evaluation=EDITING, options={"method": "icd"}, sampling_seeds=(0,)),
        *(
            Row(name=method, evaluation=EDITING, options={"method": method}, sampling_seeds=(0,), minutes=15.0)
            for method in RIVALS
        ),
    ),
    columns=(
        Column(metric="success", better="higher"),
        Column(metric="preservation", better="higher"),
        Column(metric="psnr", title="PSNR to the answer", better="higher"),
        Column(metric="psnr_outside", title="PSNR outside", better="higher"),
        Column(metric="clip_distance", title="CLIP distance", better="lower"),
        Column(metric="evaluations", title="F", better="lower"),
        Column(metric="seconds", title="s an image", better="lower"),
    ),
    claims=(
        Claim(text="iCD needs the fewest evaluations", check=order("evaluations", ICD, RIVALS, better="lower")),
        Claim(text="and the least time", check=order("seconds", ICD, RIVALS, better="lower")),
        Claim(text="it edits as often as null-text inversion", check=close("success", ICD, "nti", margin=0.1)),
        Claim(text="and preserves as much", check=close("preservation", ICD, "nti", margin=0.05)),
    ),
)

TABLE4 = Table(
    name="icd-table4",
    title="Generation with dynamic guidance",
    paper="iCD, table 4",
    rows=tuple(
        Row(name=f"{name}, {how}", training=training, evaluation=GENERATION, options={"samples": 256, **options})
        for name, training in (("DDIM50", None), (ICD, WITH_BOTH))
        for how, options in (("constant", GUIDED), ("d.CFG", DYNAMIC))
    ),
    columns=(
        Column(metric="frechet", title="Frechet", better="lower"),
        Column(metric="clip_score", title="CLIP score", better="higher"),
        Column(metric="attributes", better="higher"),
    ),
    claims=(
        *(
            Claim(
                text=f"{name}: dynamic guidance lowers the Frechet distance, and the CLIP score too",
                check=every(
                    order("frechet", f"{name}, d.CFG", f"{name}, constant", better="lower"),
                    order("clip_score", f"{name}, constant", f"{name}, d.CFG", better="higher"),
                ),
            )
            for name in ("DDIM50", ICD)
        ),
        Claim(
            text="4 steps show the captions as well as the 50-step teacher, within 5 points",
            check=close("attributes", f"{ICD}, constant", "DDIM50, constant", margin=0.05),
        ),
    ),
)

TABLE5 = Table(
    name="icd-table5",
    title="Three steps and four, with both preservation losses",
    paper="iCD, table 5",
    rows=tuple(
        Row(name=f"{steps} steps, {how}", training=training, evaluation=INVERSION, options=options)
        for steps, training in ((3, THREE_WITH_BOTH), (4, WITH_BOTH))
        for how, options in (("unguided", {}), ("guided, d.CFG", DYNAMIC))
    ),
    columns=INVERTED,
    claims=tuple(
        Claim(text=f"{how}: three steps are about as good as four",
              check=close("psnr", f"3 steps, {how}", f"4 steps, {how}", margin=1.0))
        for how in ("unguided", "guided, d.CFG")
    ),
)  # fmt: skip

TAUS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2)
FIG4 = Table(
    name="icd-fig4",
    title="Reconstruction against the threshold at which guidance turns on",
    paper="iCD, figure 4a",
    rows=(
        Row(name="DDIM50", evaluation=RECONSTRUCTION, options={"w": W, "taus": TAUS}, minutes=8.0),
        Row(name=ICD, training=WITH_BOTH, evaluation=RECONSTRUCTION, options={"w": W, "taus": TAUS}),
    ),
    columns=tuple(Column(metric=f"mse@{tau:g}", title=f"MSE, tau = {tau:g}", better="lower") for tau in TAUS),
    claims=(
        Claim(
            text="the error falls as guidance turns on later",
            check=monotone(tuple(f"mse@{tau:g}" for tau in TAUS), "DDIM50", better="lower"),
        ),
    ),
    plots=(Plot(name="mse", metric="mse", label="tau"),),
)

SCALES = (1, 2, 3, 4, 6)
STAGE1_TABLE = Table(
    name="icd-stage1",
    title="Guidance distillation",
    paper="iCD, stage 1 (no table: no training code was released)",
    rows=(Row(name="student", training=STAGE1, evaluation=DISTILLATION),),
    columns=(
        *(Column(metric=f"relative_rmse@{w}", title=f"relative RMSE, w = {w}", better="lower") for w in SCALES),
        Column(metric="student_f", title="F of a guided prediction", better="lower"),
    ),
    claims=(
        Claim(
            text="the student is within 5% of the two-pass guided prediction at every trained scale",
            check=every(*(beyond(f"relative_rmse@{w}", "student", 0.05, better="lower") for w in SCALES)),
        ),
        Claim(text="at half the cost", check=beyond("student_f", "student", 1.05, better="lower")),
    ),
)
