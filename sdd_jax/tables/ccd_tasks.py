"""CCD's other tasks on the embedded world: depth, instructed editing, inpainting, edges, text-to-image.

Beside each model stand what it must beat to have done anything: a copy of its condition, and the teacher, which sees
the prompt and no condition. A copy is good at what a condition shows and wins the figures that read it back:

| task | a copy wins | what it cannot have |
| --- | --- | --- |
| depth | depth, if the instruments read it off a depth map | psnr, clip_distance |
| editing | psnr, ssim, frechet, clip_distance, preserved | `exact`: the edited and all other attributes of one output |
| inpainting | all figures of the whole picture, mostly known pixels | psnr_hidden; known_error is 0 by construction |
| edges | edges, for edges of edges agree | psnr, clip_distance |

No claim reads a figure that a copy wins without another that it loses.

A model that ignores its condition may beat both all the same: one mean individual for each prompt is nearer to the
truth than the teacher's sharp strangers. So a model that is to follow its condition must follow its own better than it
follows it when given another portrait's, with the same prompts and noise (`shuffled`).

Comparisons are of like with like: adapters alone on a frozen UNet with each other, and full CCD, which trains the UNet
too, in a claim of its own. Rows of one comparison see the same number of samples; edits are trained as InstructPix2Pix
is. Every training fits 15 minutes on two idle cores (`ccd_rows`), and every row has one: spreads are between samplings.

The `Autoencoder` rows are what the instruments read off the truth, encoded and decoded: ceilings. Two editors that do
nothing well may be equal, so that an editor has floors, shares of its ceiling, fixed before anything was measured.
"""

from __future__ import annotations

from sdd_jax.tables.ccd_rows import (
    ADAPTER_ALONE,
    CCD,
    CONTROLNET,
    FINE_TUNING,
    ON_THE_MACHINE,
    SAMPLES,
    columns,
    sampled,
    training,
    unsampled,
)
from sdd_jax.tables.claims import beyond, closes, every, not_worse, order, reaches
from sdd_jax.tables.types import Check, Claim, Row, Table, Training

STEPS, TEXT_STEPS = 640, 400
"""Of the tasks with a condition (`configs/ccd_sr.py:tasks`), and of text-to-image."""
MANY, BLIND = 50, 20
"""Steps of models that need many, and of the teacher where it only stands beside a model with a condition."""
SUCCESS, PRESERVED = 0.8, 0.9
"""An editor's floors, as shares of the autoencoder's."""
GUIDANCE = 3.0
"""The teacher's guidance, and the one that fine-tuned models are sampled with beside their own."""

DEPTH = training("ccd_depth.py", steps=STEPS, forwards=CCD)
DEPTH_ADAPTER = training("ccd_depth.py:adapter", steps=STEPS, forwards=ADAPTER_ALONE)
CONTROL = training("finetune.py:depth,adapter", steps=STEPS, forwards=1.64 + 3 * CONTROLNET)
EDIT = training("ccd_edit.py", steps=STEPS, forwards=CCD)
TUNED_EDIT = training("finetune.py:edit", steps=STEPS, forwards=FINE_TUNING)
INPAINT = training("ccd_inpaint.py", steps=STEPS, forwards=CCD)
CANNY = training("ccd_canny.py", steps=STEPS, forwards=CCD)
T2I = training("ccd_t2i.py", steps=TEXT_STEPS, forwards=8)

TRAINED = {"depth": DEPTH, "edit": EDIT, "inpaint": INPAINT, "canny": CANNY, "t2i": T2I}
"""The CCD run of each task, whose samples are its grid."""

_CONTROLLED = ("Depth: ControlNet, 4 steps", "Depth: ControlNet, 4 steps, guided")
_TUNED = ("Editing: fine-tuned, 50 steps", "Editing: fine-tuned, 50 steps, guided")
_ANOTHERS = "given that of another portrait, held against its own"


def _blind(task: str, made: Training, note: str = "") -> Row:
    """The teacher, which sees no condition; the same pictures for every task that does not paint into a hole."""
    name, note = f"{task}: teacher, {BLIND} steps", f"the teacher, without the condition{note}"
    return sampled(name, made, BLIND, output="teacher", note=note)


def _ceiling(task: str, made: Training) -> Row:
    return unsampled(f"{task}: autoencoder", made, "autoencoder", note="the truth, encoded and decoded")


def _nearer(row: str, others: tuple[str, ...]) -> tuple[Check, Check]:
    """To the truth, by pixels and by what they show."""
    return order("psnr", row, others, better="higher"), order("clip_distance", row, others, better="lower")


def _edits(row: str) -> Check:
    return every(
        order("exact", row, "Editing: copy", better="higher"),
        reaches("success", row, "Editing: autoencoder", share=SUCCESS),
        reaches("preserved", row, "Editing: autoencoder", share=PRESERVED),
    )


def _beats_controlnet(row: str) -> Check:
    return every(order("frechet", row, _CONTROLLED, better="lower"), order("depth", row, _CONTROLLED, better="higher"))


OTHER_TASKS = Table(
    name="ccd-tasks",
    title="CCD: depth-to-image, editing, inpainting, edges, text-to-image",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), tasks beside super-resolution",
    note=(
        f"On the embedded world at 64 px, {SAMPLES} held-out portraits. depth is the rank correlation of the depth "
        "read off the output with the given one; edges F1 of the output's edges; psnr_hidden is inside the mask, "
        "known_error outside; an edit is a success if its attribute reads as asked, preserved is the share of the "
        "others that read as before, exact the share of outputs of which all read as they should. A copy of the "
        "condition wins some of these: read them beside its row. Guided is w = 3. One training a row, of 15 minutes at "
        f"most on two idle cores. {ON_THE_MACHINE}"
    ),
    rows=(
        sampled("Depth: CCD, 4 steps", DEPTH, 4),
        sampled("Depth: CCD, another's depth", DEPTH, 4, shuffled=True, note=_ANOTHERS),
        sampled("Depth: CCD adapter only, 4 steps", DEPTH_ADAPTER, 4, note="a frozen UNet, as ControlNet's"),
        sampled("Depth: ControlNet, 4 steps", CONTROL, 4),
        sampled("Depth: ControlNet, 4 steps, guided", CONTROL, 4, guidance=GUIDANCE),
        sampled("Depth: ControlNet, 50 steps", CONTROL, MANY, sampling_seeds=(0,)),
        _blind("Depth", DEPTH),
        unsampled("Depth: copy", DEPTH, "condition", note="the depth map itself"),
        _ceiling("Depth", DEPTH),
        sampled("Editing: CCD, 1 step", EDIT, 1),
        sampled("Editing: CCD, 4 steps", EDIT, 4),
        sampled("Editing: fine-tuned, 50 steps", TUNED_EDIT, MANY, note="InstructPix2Pix's training"),
        sampled("Editing: fine-tuned, 50 steps, guided", TUNED_EDIT, MANY, guidance=GUIDANCE),
        unsampled("Editing: copy", EDIT, "condition", note="the picture before the edit"),
        _ceiling("Editing", EDIT),
        sampled("Inpainting: CCD, 4 steps", INPAINT, 4),
        sampled("Inpainting: CCD, another's picture", INPAINT, 4, shuffled=True, note=_ANOTHERS),
        _blind("Inpainting", INPAINT, ", in the hole"),
        unsampled("Inpainting: fill", INPAINT, "condition", note="the hole filled with the mean of the rest"),
        _ceiling("Inpainting", INPAINT),
        sampled("Edges: CCD, 4 steps", CANNY, 4),
        sampled("Edges: CCD, another's edges", CANNY, 4, shuffled=True, note=_ANOTHERS),
        _blind("Edges", CANNY),
        unsampled("Edges: copy", CANNY, "condition", note="the edges themselves"),
        _ceiling("Edges", CANNY),
        sampled("Text-to-image: CCD, 4 steps", T2I, 4),
        sampled("Text-to-image: teacher, 4 steps", T2I, 4, output="teacher"),
        sampled("Text-to-image: teacher, 50 steps", T2I, MANY, output="teacher"),
    ),
    claims=(
        Claim(
            text="Depth: CCD follows its depth, more than given another's and than the teacher, and is nearer to the "
            "truth than the teacher and a copy",
            check=every(
                order(
                    "depth",
                    "Depth: CCD, 4 steps",
                    ("Depth: CCD, another's depth", "Depth: teacher, 20 steps"),
                    better="higher",
                ),
                *_nearer("Depth: CCD, 4 steps", ("Depth: teacher, 20 steps", "Depth: copy")),
            ),
        ),
        Claim(
            text="Depth: on a frozen UNet, CCD with the adapter only beats ControlNet at 4 steps",
            check=_beats_controlnet("Depth: CCD adapter only, 4 steps"),
        ),
        Claim(
            text="Depth: full CCD, which trains its UNet too, beats ControlNet at 4 steps",
            check=_beats_controlnet("Depth: CCD, 4 steps"),
        ),
        *(
            Claim(
                text=f"Editing: CCD does in {steps} what was asked and keeps the rest, which a copy does not",
                check=_edits(f"Editing: CCD, {steps}"),
            )
            for steps in ("1 step", "4 steps")
        ),
        Claim(
            text="Editing: CCD in 1 step edits as well as the fine-tuned model in many",
            check=every(
                _edits("Editing: CCD, 1 step"),
                *(
                    not_worse(x, "Editing: CCD, 1 step", name, better="higher")
                    for x in ("success", "preserved", "exact")
                    for name in _TUNED
                ),
            ),
        ),
        *(
            Claim(
                text=f"{name}: CCD edits better in 4",
                check=every(
                    *(order(x, "Editing: CCD, 4 steps", name, better="higher") for x in ("success", "exact")),
                    not_worse("preserved", "Editing: CCD, 4 steps", name, better="higher"),
                ),
            )
            for name in _TUNED
        ),
        Claim(
            text="Inpainting: the hidden part is nearer to the truth than the teacher's, than the rest's mean and than "
            "what CCD makes of another's picture",
            check=order(
                "psnr_hidden",
                "Inpainting: CCD, 4 steps",
                ("Inpainting: teacher, 20 steps", "Inpainting: fill", "Inpainting: CCD, another's picture"),
                better="higher",
            ),
        ),
        Claim(
            text="Inpainting: unmasked pixels are intact",
            check=beyond("known_error", "Inpainting: CCD, 4 steps", 0.0, better="lower"),
        ),
        Claim(
            text="Edges: CCD follows its edges, more than given another's and than the teacher, and is nearer to the "
            "truth than the teacher and a copy",
            check=every(
                order(
                    "edges",
                    "Edges: CCD, 4 steps",
                    ("Edges: CCD, another's edges", "Edges: teacher, 20 steps"),
                    better="higher",
                ),
                *_nearer("Edges: CCD, 4 steps", ("Edges: teacher, 20 steps", "Edges: copy")),
            ),
        ),
        Claim(
            text="Text-to-image: CCD beats the teacher at 4 steps",
            check=every(
                *(
                    order(metric, "Text-to-image: CCD, 4 steps", "Text-to-image: teacher, 4 steps", better=better)
                    for metric, better in (("frechet", "lower"), ("attributes", "higher"))
                )
            ),
        ),
        Claim(
            text="Text-to-image: and comes close to it in many (closes 75% or more of its gap at 4)",
            check=closes(
                "frechet",
                "Text-to-image: CCD, 4 steps",
                "Text-to-image: teacher, 4 steps",
                "Text-to-image: teacher, 50 steps",
                share=0.75,
            ),
        ),
    ),
    columns=columns(
        {
            "frechet": "lower",
            "clip_distance": "lower",
            "lpips": "lower",
            "psnr": "higher",
            "ssim": "higher",
            "attributes": "higher",
            "depth": "higher",
            "success": "higher",
            "preserved": "higher",
            "exact": "higher",
            "psnr_hidden": "higher",
            "known_error": "lower",
            "edges": "higher",
        }
    ),
)
