"""SDD's tables and figures on the embedded world (Wang et al., ICCV 2023).

Fidelity and success are read against exact counterfactuals, where the paper has FID to the originals and a CLIP score:
`psnr_outside` (what was not asked for stayed), `psnr` (to the counterfactual), `success` (the classifier reads the
asked value), `clip_score`. One manipulator is a training of up to five minutes of one core; a training that several
tables name runs once. Both manipulators are here, the translator of latents and the mapper of StyleGAN codes. DiffAE is
not among the rows, and Fig. 4 has its own file (`tables/sdd_fig4.py`).

An editor that changes nothing keeps everything: claims about what is kept are decided where both rows succeed equally
often (`tables.curves`). Rows that are planned with several seeds are compared once two are there (`claims.settled`).
"""

from __future__ import annotations

import dataclasses

from sdd_jax.tables.claims import beyond, every, order, settled
from sdd_jax.tables.curves import at_equal
from sdd_jax.tables.sdd_fig4 import single_row
from sdd_jax.tables.sdd_rows import (
    COLUMNS,
    EDITS,
    GENTLE,
    NO_DIFFAE,
    STRATEGIES,
    editor_row,
    framing_rows,
    gentle_row,
    manipulator_row,
    manipulator_training,
    priced,
    sdedit_row,
    selected_row,
    strategy_row,
    style_row,
)
from sdd_jax.tables.types import Claim, Column, Plot, Table

FIG1 = Table(
    name="sdd-fig1",
    title="Fidelity against success: one pass of SDD and SDEdit at every strength",
    paper="SDD, Fig. 1: editing by noising trades fidelity for editability, SDD does not",
    rows=(
        *(selected_row(edit) for edit in EDITS),
        *(sdedit_row(edit) for edit in EDITS),
    ),
    claims=tuple(
        claim
        for edit in EDITS
        for claim in (
            Claim(
                text=f"{edit}: SDEdit pays for success with fidelity, from strength .2 to .8",
                check=every(
                    order("success@0.8", f"SDEdit, {edit}", f"SDEdit, {edit}", better="higher", against="success@0.2"),
                    order(
                        "psnr_outside@0.2", f"SDEdit, {edit}", f"SDEdit, {edit}", better="higher",
                        against="psnr_outside@0.8",
                    ),
                ),
            ),
            Claim(
                text=f"{edit}: where both succeed equally often, SDD keeps more of the picture",
                check=at_equal("psnr_outside", f"SDD, {edit}", f"SDEdit, {edit}", better="higher"),
            ),
        )
    ),
    columns=COLUMNS,
    plots=tuple(
        Plot(name=variant, metric="psnr_outside", against="success", rows=(f"SDD, {edit}", f"SDEdit, {edit}"))
        for edit, variant in EDITS.items()
    ),
)  # fmt: skip

FIG7 = Table(
    name="sdd-fig7",
    title="A turn of the head: diffusion guidance and CLIP guidance",
    paper="SDD, sec. 5.2: 'side view' works with diffusion guidance and not with CLIP's",
    note="Both guidances have the same share of their L2 weight of white hair: of latents all, of codes a third. Not "
    "under CLIP's: a success of .2 or less; under diffusion's: of .5 or more. That CLIP guidance works at all is asked "
    "of white hair: .5 or more.",
    rows=(
        selected_row("side view"),
        manipulator_row("CLIP guidance, white hair", manipulator_training("white hair", "clip")),
        style_row("CLIP guidance", "white hair", "clip"),
        manipulator_row("CLIP guidance, side view", manipulator_training("side view", "clip")),
        style_row("SDD", "side view"),
        style_row("CLIP guidance", "side view", "clip"),
    ),
    claims=tuple(
        Claim(
            text=f"{of}: the pose changes under diffusion guidance and not under CLIP's",
            check=every(
                order("success", f"SDD{on}, side view", f"CLIP guidance{on}, side view", better="higher"),
                beyond("success", f"SDD{on}, side view", 0.5, better="higher"),
                beyond("success", f"CLIP guidance{on}, side view", 0.2, better="lower"),
                beyond("success", f"CLIP guidance{on}, white hair", 0.5, better="higher"),
            ),
        )
        for of, on in (("latents", ""), ("StyleGAN codes", " on StyleGAN"))
    ),
    columns=COLUMNS,
)

TABLE1 = Table(
    name="sdd-table1",
    title="SDD and editors of the same teacher",
    paper="SDD, Table 1: SDD beats SDEdit, DDIB and DiffAE on FID and CLIP, at a fraction of the time",
    note="SDEdit is along its strength, a manipulator along the share of its edit that is made (1: as trained). Times "
    "are compared in sdd-cost, in one process. SDD's L2 weight of latents was chosen by three trainings of white hair "
    "on these portraits (docs/sdd.md), SDEdit and DDIB have their published settings.",
    rows=(
        *(selected_row(edit) for edit in EDITS),
        *(style_row("SDD", edit) for edit in EDITS),
        *(sdedit_row(edit) for edit in EDITS),
        *(editor_row("DDIB", edit, 6.0, method="ddib", samples=128) for edit in EDITS),
        *(row for edit in EDITS for row in framing_rows(edit)),
        NO_DIFFAE,
    ),
    claims=(
        *(
            Claim(
                text=f"{edit}: SDD {says} than {rival} at equal success",
                check=at_equal(metric, f"SDD, {edit}", f"{rival}, {edit}", better="higher"),
            )
            for edit in EDITS
            for rival in ("SDEdit", "DDIB")
            for metric, says in (
                ("psnr_outside", "keeps more of the picture (the paper: lower FID)"),
                ("clip_directional", "moves more towards what was asked (CLIP)"),
            )
        ),
    ),
    columns=COLUMNS,
)

TABLE2 = Table(
    name="sdd-table2",
    title="Diffusion guidance and CLIP guidance of the same manipulator",
    paper="SDD, Table 2: better than StyleCLIP on faces and cats, no uniform win on cars",
    note="The guiding CLIP is also the one that measures: read success for what it did not train on. The L2 "
    "weight of each was chosen by trainings of white hair (docs/sdd.md), CLIP guidance's so that it succeeds about as "
    "often as SDD there: of white hair the first claim says little.",
    rows=(
        *(selected_row(edit) for edit in EDITS),
        *(manipulator_row(f"CLIP guidance, {edit}", manipulator_training(edit, "clip")) for edit in EDITS),
        *(style_row("SDD", edit) for edit in EDITS),
        *(style_row("CLIP guidance", edit, "clip") for edit in EDITS),
        *(row for edit in EDITS for row in framing_rows(edit)),
    ),
    claims=tuple(
        Claim(text=f"{edit}, {of}: SDD is better in {metric}{where}", check=check)
        for of, on in (("latents", ""), ("StyleGAN codes", " on StyleGAN"))
        for edit in EDITS
        for ours, theirs in ((f"SDD{on}, {edit}", f"CLIP guidance{on}, {edit}"),)
        for metric, where, check in (
            ("success", "", order("success", ours, theirs, better="higher")),
            *(
                (name, " at equal success", at_equal(name, ours, theirs, better="higher"))
                for name in ("clip_directional", "psnr", "psnr_outside")
            ),
        )
    ),
    columns=COLUMNS,
)


def _named(strategies: str | tuple[str, ...], edit: str) -> tuple[str, ...]:
    return tuple(f"{one}, {edit}" for one in ((strategies,) if isinstance(strategies, str) else strategies))


FIRST = 100
TABLE3 = Table(
    name="sdd-table3",
    title="Four ways to choose timesteps, at equal steps",
    paper="SDD, Table 3: both FID to the originals and CLIP rise with the mean HQS of the timesteps",
    note="random: the whole grid; small xi: HQS above 0; large xi: the threshold that leaves the three best. HQS is "
    "the reading that trainings search by, not eq. 8's, whose best timesteps are others (sdd-fig4). The paper compares "
    "the four as trained; at equal success they are compared, too, since sdd-fig4 showed how much success is strength. "
    f"By eq. 8 the best timestep of all three edits is {FIRST}; that row is sdd-fig4's, trained once. Its three best "
    "are trained on with a third of the L2 weight, which was not tuned, for the gradient is small at them: these rows "
    "were added last, to see what sdd-fig4's finding is good for.",
    rows=(
        *(strategy_row(strategy, edit) for edit in EDITS for strategy in STRATEGIES),
        *(dataclasses.replace(single_row(edit, FIRST), name=f"argmax by eq. 8, {edit}") for edit in EDITS),
        *(gentle_row(edit) for edit in EDITS),
    ),
    claims=(
        *(
            Claim(
                text=f"{edit}: {text}",
                check=order(metric, *(_named(strategies, edit) for strategies in ranking), better="higher"),
            )
            for edit in EDITS
            for metric, ranking, text in (
                (
                    "mean_hqs",
                    tuple(reversed(STRATEGIES)),
                    "the four choices are ordered by their timesteps' mean HQS (a check)",
                ),
                ("clip_directional", tuple(reversed(STRATEGIES)), "CLIP rises with the mean HQS"),
                ("success", tuple(reversed(STRATEGIES)), "success rises with the mean HQS"),
                ("psnr_outside", tuple(STRATEGIES), "fidelity falls with it (FID rises)"),
                ("success", (("argmax", "large xi"), "random"), "the best timesteps succeed more than random ones"),
                ("psnr_outside", ("random", ("argmax", "large xi")), "random ones keep more than the best"),
            )
        ),
        *(
            Claim(
                text=f"{edit}: at equal success {text} keeps more than random timesteps",
                check=at_equal("psnr_outside", f"{best}, {edit}", f"random, {edit}", better="higher"),
            )
            for edit in EDITS
            for best, text in (
                ("argmax", "the best timestep"),
                ("large xi", "training on the three best"),
                ("argmax by eq. 8", "eq. 8's best timestep"),
                (GENTLE, "training on eq. 8's three best"),
            )
        ),
    ),
    columns=COLUMNS,
)

PRICED = (priced(selected_row("white hair")), priced(style_row("SDD", "white hair")))
COST = Table(
    name="sdd-cost",
    title="What a manipulator costs, and from how many images on it pays",
    paper="SDD, eqs. 13-15: break-even after m > tau_train / (tau_diff - tau_sdd) images",
    note=(
        "All times are of one process on one device, compiled and warm; of one image, SDEdit from noise. Training is "
        "steps times a step, and its search; compilation and encoding the data are in 'minutes to train' alone. "
        "The paper's 7 images are of its own models: an editor of this world takes a second where theirs takes many."
    ),
    rows=PRICED,
    claims=tuple(
        Claim(text=f"{row.name}: {text} {name}", check=check)
        for row in PRICED
        for name, method in (("SDEdit", "sdedit"), ("DDIB", "ddib"))
        for text, check in (
            (
                "one pass is faster than 50 steps of",
                order("seconds", row.name, row.name, better="lower", against=f"seconds_{method}"),
            ),
            (
                "training pays from about 7 images on (the paper's Table 1), against",
                beyond(f"break_even_{method}", row.name, 7, better="lower"),
            ),
        )
    ),
    columns=(
        Column(metric="training", title="training with its search, s"),
        Column(metric="step", title="a step, s"),
        Column(metric="search", title="the search, s"),
        Column(metric="seconds", title="one pass, s", better="lower"),
        Column(metric="seconds_sdedit", title="SDEdit, s"),
        Column(metric="seconds_ddib", title="DDIB, s"),
        Column(metric="break_even_sdedit", title="break-even images, SDEdit", better="lower"),
        Column(metric="break_even_ddib", title="break-even images, DDIB", better="lower"),
    ),
)

FIG1, FIG7, TABLE1, TABLE2, TABLE3, COST = map(settled, (FIG1, FIG7, TABLE1, TABLE2, TABLE3, COST))
