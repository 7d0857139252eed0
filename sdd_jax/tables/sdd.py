"""SDD's tables and figures on the embedded world (Wang et al., ICCV 2023).

Fidelity and success are read against exact counterfactuals, where the paper has FID to the originals and a CLIP score:
`psnr_outside` (what was not asked for stayed), `psnr` (to the counterfactual), `success` (the classifier reads the
asked value), `clip_score`. One manipulator is a training of about five minutes on two cores. The paper's StyleGAN
manipulators and DiffAE are not among the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdd_jax.evals.edit_cost import EditCost
from sdd_jax.jobs.sdd.hqs import rank_correlation
from sdd_jax.tables.claims import Unmeasured, beyond, every, order, read
from sdd_jax.tables.types import Check, Claim, Column, Measured, Plot, Row, Table, Training, Verdict

CONFIG = "configs/sdd_latent.py"
EDITS = {"white hair": "white_hair", "angry": "angry", "side view": "side_view"}
PROMPTS = {
    "white hair": "a photo of a {species} with white {coat}",
    "angry": "a photo of an angry {species}",
    "side view": "a photo of a {species}, facing left",
    "glasses": "a photo of a {species} wearing glasses",
    "smiling": "a photo of a smiling {species}",
    "snowing": "a photo of a {species}, snowing",
}
STRATEGIES = {"random": "all", "small xi": "threshold:0", "large xi": "threshold:0.5", "argmax": "argmax"}
TIMESTEPS = (100, 200, 300, 400, 500, 600, 700, 800, 900)
MANIPULATOR, EDITOR, SCORES = (f"sdd_jax.jobs.sdd.tables:{name}" for name in ("manipulator", "editor", "scores"))
SEARCH = {"guidance": 7.5, "images": 64}
COLUMNS = (
    Column(metric="success", better="higher"),
    Column(metric="preservation", better="higher"),
    Column(metric="psnr", better="higher"),
    Column(metric="psnr_outside", better="higher"),
    Column(metric="clip_score", better="higher"),
    Column(metric="clip_directional", better="higher"),
    Column(metric="seconds", title="seconds an image", better="lower"),
)
NO_DIFFAE = Row(name="DiffAE", not_run="another model family: needs a diffusion autoencoder of the data")


def _training(edit: str, variant: str = "", *overrides: str) -> Training:
    names = ",".join(name for name in (EDITS[edit], variant) if name)
    return Training(config=f"{CONFIG}:{names}", overrides=overrides, minutes=6.0)


def _manipulator(name: str, training: Training, seeds: Sequence[int] = (0, 1)) -> Row:
    return Row(
        name=name, training=training, seeds=tuple(seeds), sampling_seeds=(0,), evaluation=MANIPULATOR, minutes=1.0
    )


def _selected(edit: str) -> Row:
    """SDD as the config has it: timesteps above the threshold 0."""
    return _manipulator(f"SDD, {edit}", _training(edit))


def _editor(name: str, edit: str, **options: Any) -> Row:
    return Row(
        name=f"{name}, {edit}",
        evaluation=EDITOR,
        options={"prompt": PROMPTS[edit], **options},
        sampling_seeds=(0, 1),
        minutes=8.0,
    )


def _scores(edit: str) -> Row:
    return Row(
        name=f"HQS, {edit}",
        evaluation=SCORES,
        options={"prompt": PROMPTS[edit], "search": SEARCH},
        sampling_seeds=(0,),
        minutes=6.0,
    )


def follows(metric: str, scores: str, rows: Mapping[int, str], least: float = 0.5) -> Check:
    """The rows' metric ranks as `hqs@t` of their timesteps does: Spearman's correlation of `least` or more."""

    def decide(measured: Measured) -> Verdict:
        values = [read(measured, row, metric).mean for row in rows.values()]
        scored = [read(measured, scores, f"hqs@{t}").mean for t in rows]
        if len(set(values)) < 2:
            raise Unmeasured(f"{metric} is {values[0]:g} in every row: nothing to rank")
        rho = rank_correlation(values, scored)
        shown = ", ".join(
            f"t={t}: {metric} {v:.3g} at HQS {s:.2f}" for t, v, s in zip(rows, values, scored, strict=True)
        )
        return Verdict(rho >= least, f"rank correlation {rho:.2f} over {len(rows)} timesteps, asked {least:g}: {shown}")

    return Check((scores, *rows.values()), decide)


def pays(row: str, editor: str, within: float) -> Check:
    """Training the row's manipulator pays (eq. 15) for `within` images or fewer, against an editor's row."""

    def decide(measured: Measured) -> Verdict:
        trained, one_pass = (read(measured, row, metric).mean for metric in ("training", "seconds"))
        cost = EditCost(train=trained, manipulator=one_pass, editor=read(measured, editor, "seconds").mean)
        return Verdict(
            cost.break_even <= within,
            f"break-even at {cost.break_even:.3g} images: training {trained:.3g} s, a pass {one_pass:.3g} s, "
            f"{editor} {cost.editor:.3g} s",
        )

    return Check((row, editor), decide)


FIG1 = Table(
    name="sdd-fig1",
    title="Fidelity against success: one pass of SDD and SDEdit at every strength",
    paper="SDD, Fig. 1: editing by noising trades fidelity for editability, SDD does not",
    rows=(
        *(_selected(edit) for edit in EDITS),
        *(
            _editor("SDEdit", edit, method="sdedit", strengths=[0.2, 0.4, 0.5, 0.6, 0.7, 0.8], samples=64)
            for edit in EDITS
        ),
    ),
    claims=tuple(
        Claim(
            text=f"{edit}: SDEdit pays for success with fidelity, from strength .2 to .8",
            check=every(
                order("success@0.8", f"SDEdit, {edit}", f"SDEdit, {edit}", better="higher", against="success@0.2"),
                order(
                    "psnr_outside@0.2", f"SDEdit, {edit}", f"SDEdit, {edit}", better="higher",
                    against="psnr_outside@0.8",
                ),
            ),
        )
        for edit in EDITS
    ),
    columns=COLUMNS,
    plots=(Plot(name="tradeoff", metric="psnr_outside", against="success"),),
)  # fmt: skip

SINGLE = {t: f"white hair, t = {t}" for t in TIMESTEPS}
FIG4 = Table(
    name="sdd-fig4",
    title="HQS of six prompts, and manipulators trained at a single timestep",
    paper="SDD, Fig. 4: the higher a timestep's HQS, the better it trains",
    note=f"Scores on {SEARCH['images']} portraits, signed gradients of pixels with the network's Jacobian.",
    rows=(
        *(_scores(edit) for edit in PROMPTS),
        *(
            _manipulator(name, _training("white hair", "", f"timesteps.given=({t},)", "timesteps.rule="))
            for t, name in SINGLE.items()
        ),
    ),
    claims=(
        Claim(
            text="Training with a single timestep works better the higher that timestep's HQS",
            check=follows("success", "HQS, white hair", SINGLE),
        ),
        Claim(
            text="A prompt's scores are stable: two disjoint sets of images rank the timesteps alike (.8)",
            check=every(*(beyond("agreement", f"HQS, {edit}", 0.8, better="higher") for edit in PROMPTS)),
        ),
    ),
    columns=(*COLUMNS, Column(metric="agreement", better="higher")),
    plots=(
        Plot(name="scores", metric="hqs", label="timestep", rows=tuple(f"HQS, {edit}" for edit in PROMPTS)),
    ),
)  # fmt: skip

FIG7 = Table(
    name="sdd-fig7",
    title="A turn of the head: diffusion guidance and CLIP guidance",
    paper="SDD, sec. 5.2: 'side view' works with diffusion guidance and not with CLIP's",
    rows=(
        _selected("side view"),
        _manipulator("CLIP guidance, side view", _training("side view", "clip")),
    ),
    claims=(
        Claim(
            text="The pose changes under diffusion guidance and not under CLIP's",
            check=every(
                order("success", "SDD, side view", "CLIP guidance, side view", better="higher"),
                order("psnr", "SDD, side view", "CLIP guidance, side view", better="higher"),
            ),
        ),
    ),
    columns=COLUMNS,
)

TABLE1 = Table(
    name="sdd-table1",
    title="SDD and editors of the same teacher",
    paper="SDD, Table 1: SDD beats SDEdit, DDIB and DiffAE on FID and CLIP, at a fraction of the time",
    rows=(
        *(_selected(edit) for edit in EDITS),
        *(_editor("SDEdit", edit, method="sdedit", samples=128) for edit in EDITS),
        *(_editor("DDIB", edit, method="ddib", samples=128) for edit in EDITS),
        NO_DIFFAE,
    ),
    claims=tuple(
        Claim(
            text=f"{edit}: SDD {text}",
            check=order(metric, f"SDD, {edit}", (f"SDEdit, {edit}", f"DDIB, {edit}"), better=better),
        )
        for edit in EDITS
        for metric, better, text in (
            ("psnr_outside", "higher", "keeps more of the picture (the paper: lower FID)"),
            ("clip_score", "higher", "shows what was asked more clearly (CLIP)"),
            ("success", "higher", "succeeds more often"),
            ("seconds", "lower", "takes a fraction of the time"),
        )
    ),
    columns=COLUMNS,
)

TABLE2 = Table(
    name="sdd-table2",
    title="Diffusion guidance and CLIP guidance of the same manipulator",
    paper="SDD, Table 2: better than StyleCLIP on faces and cats, no uniform win on cars",
    note="The guiding CLIP is also the one that measures clip_score: read success for what it did not train on.",
    rows=(
        *(_selected(edit) for edit in EDITS),
        *(_manipulator(f"CLIP guidance, {edit}", _training(edit, "clip")) for edit in EDITS),
    ),
    claims=tuple(
        Claim(
            text=f"{edit}: SDD is better in {metric}",
            check=order(metric, f"SDD, {edit}", f"CLIP guidance, {edit}", better="higher"),
        )
        for edit in EDITS
        for metric in ("success", "psnr", "psnr_outside", "clip_score")
    ),
    columns=COLUMNS,
)

TABLE3 = Table(
    name="sdd-table3",
    title="Four ways to choose timesteps, at equal steps",
    paper="SDD, Table 3: both FID to the originals and CLIP rise with the mean HQS of the timesteps",
    rows=tuple(
        _manipulator(f"{strategy}, {edit}", _training(edit, "", f"timesteps.rule={rule}"))
        for edit in EDITS
        for strategy, rule in STRATEGIES.items()
    ),
    claims=tuple(
        Claim(
            text=f"{edit}: {text}",
            check=order(metric, *(f"{strategy}, {edit}" for strategy in ranking), better="higher"),
        )
        for edit in EDITS
        for metric, ranking, text in (
            ("clip_score", ("argmax", "large xi", "small xi", "random"), "CLIP rises with the mean HQS"),
            ("success", ("argmax", "large xi", "small xi", "random"), "success rises with the mean HQS"),
            ("psnr_outside", ("random", "small xi", "large xi", "argmax"), "fidelity falls with it (FID rises)"),
        )
    ),
    columns=COLUMNS,
)

COST = Table(
    name="sdd-cost",
    title="What a manipulator costs, and from how many images on it pays",
    paper="SDD, eqs. 13-15: break-even after m > tau_train / (tau_diff - tau_sdd) images",
    rows=(
        _selected("white hair"),
        *(
            _editor(name, "white hair", method=method, samples=8)
            for name, method in (("SDEdit", "sdedit"), ("DDIB", "ddib"))
        ),
    ),
    claims=(
        *(
            Claim(
                text=f"One pass is faster than 50 steps of {name}",
                check=order("seconds", "SDD, white hair", f"{name}, white hair", better="lower"),
            )
            for name in ("SDEdit", "DDIB")
        ),
        *(
            Claim(
                text=f"Training pays from about 7 images on, against {name} (the paper's Table 1)",
                check=pays("SDD, white hair", f"{name}, white hair", within=7),
            )
            for name in ("SDEdit", "DDIB")
        ),
    ),
    columns=(
        Column(metric="training", title="training, s"),
        Column(metric="seconds", title="seconds an image", better="lower"),
        Column(metric="evaluations", title="F an image", better="lower"),
    ),
)
