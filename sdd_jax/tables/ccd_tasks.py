"""CCD's other tasks on the embedded world: depth, instructed editing, inpainting, edges, text-to-image.

Beside each model stand what it must beat to have done anything: a copy of its condition, and the teacher, which sees
the prompt and no condition. A copy is good at what a condition shows and wins the figures that read it back:

| task | a copy wins | what it cannot have |
| --- | --- | --- |
| depth | depth, if the instruments read it off a depth map | psnr, clip_distance |
| editing | psnr, ssim, frechet, clip_distance, preserved | `exact`: the edited and all other attributes of one output |
| inpainting | all figures of the whole picture, mostly known pixels | psnr_hidden; known_error is 0 by construction |
| edges | edges, for edges of edges agree | psnr, clip_distance |

No claim reads a figure that a copy wins without another that it loses. Rows of one comparison see the same number of
samples; edits are trained as InstructPix2Pix is. Every row has one training: spreads are between samplings.
"""

from __future__ import annotations

from sdd_jax.tables.ccd_rows import CCD, CONTROLNET, FINE_TUNING, SAMPLES, columns, sampled, training, unsampled
from sdd_jax.tables.claims import beyond, closes, every, not_worse, order
from sdd_jax.tables.types import Claim, Table

STEPS = 800
MANY = 50
GUIDANCE = 3.0
"""The teacher's guidance, and the one that fine-tuned models are sampled with beside their own."""

DEPTH = training("ccd_depth.py", steps=STEPS, forwards=CCD)
CONTROL = training("finetune.py:depth,adapter", steps=STEPS, forwards=1.64 + 3 * CONTROLNET)
EDIT = training("ccd_edit.py", steps=STEPS, forwards=CCD)
TUNED_EDIT = training("finetune.py:edit", steps=STEPS, forwards=FINE_TUNING)
INPAINT = training("ccd_inpaint.py", steps=STEPS, forwards=CCD)
CANNY = training("ccd_canny.py", steps=STEPS, forwards=CCD)
T2I = training("ccd_t2i.py", steps=STEPS // 2, forwards=8)

TRAINED = {"depth": DEPTH, "edit": EDIT, "inpaint": INPAINT, "canny": CANNY, "t2i": T2I}
"""The CCD run of each task, whose samples are its grid."""

_BLIND = "the teacher, without the condition"
_TUNED = ("Editing: fine-tuned, 50 steps", "Editing: fine-tuned, 50 steps, guided")
_CONTROLLED = ("Depth: ControlNet, 4 steps", "Depth: ControlNet, 4 steps, guided")

OTHER_TASKS = Table(
    name="ccd-tasks",
    title="CCD: depth-to-image, editing, inpainting, edges, text-to-image",
    paper="Mei et al., Conditional diffusion distillation (CVPR 2024), tasks beside super-resolution",
    note=(
        f"On the embedded world at 64 px, {SAMPLES} held-out portraits. depth is the rank correlation of the depth "
        "read off the output with the given one; edges F1 of the output's edges; psnr_hidden is inside the mask, "
        "known_error outside; an edit is a success if its attribute reads as asked, preserved is the share of the "
        "others that read as before, exact the share of outputs of which all read as they should. A copy of the "
        "condition wins some of these: read them beside its row. Guided is w = 3. One training a row."
    ),
    rows=(
        sampled("Depth: CCD, 4 steps", DEPTH, 4),
        sampled("Depth: ControlNet, 4 steps", CONTROL, 4),
        sampled("Depth: ControlNet, 4 steps, guided", CONTROL, 4, guidance=GUIDANCE),
        sampled("Depth: ControlNet, 50 steps", CONTROL, MANY),
        sampled("Depth: teacher, 50 steps", DEPTH, MANY, output="teacher", note=_BLIND),
        unsampled("Depth: copy", DEPTH, "condition", note="the depth map itself"),
        sampled("Editing: CCD, 1 step", EDIT, 1),
        sampled("Editing: CCD, 4 steps", EDIT, 4),
        sampled("Editing: fine-tuned, 50 steps", TUNED_EDIT, MANY, note="InstructPix2Pix's training"),
        sampled("Editing: fine-tuned, 50 steps, guided", TUNED_EDIT, MANY, guidance=GUIDANCE),
        unsampled("Editing: copy", EDIT, "condition", note="the picture before the edit"),
        sampled("Inpainting: CCD, 4 steps", INPAINT, 4),
        sampled("Inpainting: teacher, 50 steps", INPAINT, MANY, output="teacher", note=f"{_BLIND}, in the hole"),
        unsampled("Inpainting: fill", INPAINT, "condition", note="the hole filled with the mean of the rest"),
        sampled("Edges: CCD, 4 steps", CANNY, 4),
        sampled("Edges: teacher, 50 steps", CANNY, MANY, output="teacher", note=_BLIND),
        unsampled("Edges: copy", CANNY, "condition", note="the edges themselves"),
        sampled("Text-to-image: CCD, 4 steps", T2I, 4),
        sampled("Text-to-image: teacher, 4 steps", T2I, 4, output="teacher"),
        sampled("Text-to-image: teacher, 50 steps", T2I, MANY, output="teacher"),
    ),
    claims=(
        Claim(
            text="Depth: CCD follows the depth better than the teacher, and is nearer to the truth than it and a copy",
            check=every(
                order("depth", "Depth: CCD, 4 steps", "Depth: teacher, 50 steps", better="higher"),
                order("psnr", "Depth: CCD, 4 steps", ("Depth: teacher, 50 steps", "Depth: copy"), better="higher"),
                order("clip_distance", "Depth: CCD, 4 steps", "Depth: copy", better="lower"),
            ),
        ),
        Claim(
            text="Depth: CCD beats ControlNet at 4 steps",
            check=every(
                order("frechet", "Depth: CCD, 4 steps", _CONTROLLED, better="lower"),
                order("depth", "Depth: CCD, 4 steps", _CONTROLLED, better="higher"),
            ),
        ),
        Claim(
            text="Editing: CCD does what was asked and keeps the rest, which a copy does not",
            check=order("exact", "Editing: CCD, 1 step", "Editing: copy", better="higher"),
        ),
        Claim(
            text="Editing: CCD in 1 step edits as well as the fine-tuned model in many",
            check=every(
                order("exact", "Editing: CCD, 1 step", "Editing: copy", better="higher"),
                *(
                    not_worse(metric, "Editing: CCD, 1 step", name, better="higher")
                    for metric in ("success", "preserved", "exact")
                    for name in _TUNED
                ),
            ),
        ),
        Claim(
            text="Inpainting: the hidden part is nearer to the truth than the teacher's and than the rest's mean",
            check=order(
                "psnr_hidden",
                "Inpainting: CCD, 4 steps",
                ("Inpainting: teacher, 50 steps", "Inpainting: fill"),
                better="higher",
            ),
        ),
        Claim(
            text="Inpainting: unmasked pixels are intact",
            check=beyond("known_error", "Inpainting: CCD, 4 steps", 0.0, better="lower"),
        ),
        Claim(
            text="Edges: CCD follows the edges better than the teacher, and is nearer to the truth than it and a copy",
            check=every(
                order("edges", "Edges: CCD, 4 steps", "Edges: teacher, 50 steps", better="higher"),
                order("psnr", "Edges: CCD, 4 steps", ("Edges: teacher, 50 steps", "Edges: copy"), better="higher"),
                order(
                    "clip_distance",
                    "Edges: CCD, 4 steps",
                    ("Edges: teacher, 50 steps", "Edges: copy"),
                    better="lower",
                ),
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
            "psnr": "higher",
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
