"""`python -m sdd_jax.export --workdir=DIR --out=DIR`: a run's weights, in published formats, with a model card.

A CCD run gives `unet/` and `controlnet/`, a pretraining run its part of the embedded world (see
`configs/pretrain_portraits.py`). The average of the parameters is exported where the run keeps one. LoRA files are in
PEFT's keys; `--lora=kohya` writes each under kohya's names too, as `NAME.kohya.safetensors`. `OUT/README.md` says what
the weights were made from, with what config, and what `evaluate` measured; the embedded world has a card of its own.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdd_jax.command import Parser, directory, run_command
from sdd_jax.config import to_plain
from sdd_jax.models.card import CARD, model_card
from sdd_jax.models.lora_kohya import is_peft, to_kohya
from sdd_jax.runs import open_run
from sdd_jax.train import Job

PROTOCOLS = {
    "guidance_distill": "generation",
    "icd": "inversion --method=icd",
    "dds": "editing --method=translate",
    "sdd": "editing --method=manipulate",
    "clip_guidance": "editing --method=manipulate",
}
"""What measures runs of a task on other data than portraits, where that does not depend on their condition."""
_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_export, argv)


def _export(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m sdd_jax.export", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--out", required=True, type=directory, help="directory to write to; made if missing")
    parser.add_argument("--lora", choices=("peft", "kohya"), default="peft", help="kohya: LoRA under its names too")
    flags = parser.parse_args(argv)
    job, params, step = open_run(flags.workdir)
    if job.export is None:
        raise ValueError(f"--workdir={flags.workdir} is a {job.config.task!r} run, which has nothing to export")
    job.export(params, flags.out)
    if flags.lora == "kohya":
        _write_kohya(flags.out)
    if "world" not in job.config:
        _write_card(job, step, flags.workdir, flags.out)
    _log.info("exported step %d of %s to %s", step, flags.workdir, flags.out)


def _write_kohya(out: Path) -> None:
    adapters = [path for path in sorted(out.rglob("*.safetensors")) if is_peft(path)]
    if not adapters:
        raise ValueError(f"--lora=kohya: {out} holds no LoRA, the run trains none; leave the flag out")
    for path in adapters:
        to_kohya(path, path.with_name(f"{path.stem}.kohya.safetensors"))


def _write_card(job: Job, step: int, workdir: Path, out: Path) -> None:
    measured = workdir / "evaluation" / "metrics.json"
    config = {**job.inherited, **to_plain(job.config)}
    card = model_card(
        title=job.name,
        task=job.config.task,
        step=step,
        config=config,
        fingerprint=job.fingerprint,
        metrics=json.loads(measured.read_text()) if measured.is_file() else None,
        measured_by=measured_by(config),
        directory=out,
    )
    (out / CARD).write_text(card, encoding="utf-8")


def measured_by(config: Mapping[str, Any]) -> str:
    """The command that measures a run: of portraits its task's report, of all other data a protocol."""
    command, task, data = "python -m sdd_jax.evaluate", config["task"], config.get("data", {})
    source = data.get("source", "portraits")
    if source == "portraits" or (source == "teacher" and not data.get("captions")):
        return f"{command} --workdir=DIR"
    unconditional = task == "gd" or config.get("condition", {}).get("task") == "none"
    protocol = PROTOCOLS.get(task, "generation" if unconditional else "restoration")
    return f"{command} --protocol={protocol} --workdir=DIR ... --out=DIR/evaluation"


if __name__ == "__main__":
    sys.exit(main())
