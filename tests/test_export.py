"""What the export command adds to a job's own weights: kohya's names on request, and a card."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from sdd_jax import export
from sdd_jax.jobs.protocols.flags import parse
from sdd_jax.models.card import read_record
from sdd_jax.models.lora import LoraSpec
from sdd_jax.models.lora_files import export as export_lora

MODULE = "mid_block/resnets_0/conv1"


class FakeJob:
    """As `train.Job`, as far as exporting reads it."""

    name = "a job of the tests"
    fingerprint = {"teacher": "portraits", "teacher_hash": "f" * 64}
    inherited = {"adapter": {"kind": "t2i"}, "model": "of the run before"}

    def __init__(self, with_lora=True, **config):
        self.config = ConfigDict({"task": "icd", "model": "portraits", "data": {"count": 3}, **config})
        self.with_lora = with_lora

    def export(self, params, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text("{}")
        if self.with_lora:
            pair = {"a": np.ones((3, 3, 4, 2), np.float32), "b": np.ones((1, 1, 2, 8), np.float32)}
            export_lora({MODULE: pair}, LoraSpec(rank=2, alpha=1.0), directory / "forward.safetensors")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Exports a job to tmp_path/out: the exit status."""

    def call(job, *flags):
        monkeypatch.setattr(export, "open_run", lambda workdir: (job, {}, 12))
        return export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", *flags])

    return call


def test_a_card_and_kohyas_names(run, tmp_path):
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    report = {"samples": 4, "rows": {"icd": {"psnr": 20.5}}}
    (tmp_path / "run" / "evaluation" / "metrics.json").write_text(json.dumps(report))
    assert run(FakeJob(), "--lora=kohya") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("# a job of the tests", "step 12", "f" * 64, "| icd | 20.5 |", "| count | `3` |"):
        assert part in card
    config = read_record(tmp_path / "out").config
    assert (config["adapter"], config["model"]) == ({"kind": "t2i"}, "portraits"), "its own come before inherited ones"
    assert "`forward.safetensors`" in card and "`forward.kohya.safetensors`" in card
    names = load_file(tmp_path / "out" / "forward.kohya.safetensors")
    assert set(names) == {
        f"lora_unet_mid_block_resnets_0_conv1.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert run(FakeJob(), "--lora=kohya") == 0, "exporting again replaces"
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == [
        "forward.kohya.safetensors", "forward.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({"task": "ccd", "data": {"source": "portraits"}}, "--workdir=DIR"),
        ({"task": "dds", "data": {"source": "teacher", "captions": []}}, "--workdir=DIR"),
        ({"task": "cm", "condition": {"task": "canny"}}, "--protocol=restoration --workdir=DIR"),
        ({"task": "ccd", "condition": {"task": "none"}}, "--protocol=generation --workdir=DIR"),
        ({"task": "gd"}, "--protocol=generation --workdir=DIR"),
        ({"task": "dds"}, "--protocol=editing --method=translate --workdir=DIR"),
    ],
)
def test_a_card_names_the_command_that_measures_the_run(run, tmp_path, config, flags):
    """A report on portraits, else a protocol, whose flags go together."""
    job = FakeJob(with_lora=False, **{"data": {"source": "folder"}, **config})
    job.inherited = {}
    assert run(job) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    rest = " ... --out=DIR/evaluation" if "--protocol" in flags else ""
    assert f"Not measured: `python -m sdd_jax.evaluate {flags}{rest}`, then export again." in card
    if rest:
        parse([*flags.split(), "--data=x", "--out=DIR/evaluation"])


def test_without_lora_and_of_the_embedded_world(run, tmp_path, capsys):
    assert run(FakeJob(with_lora=False), "--lora=kohya") == 2
    assert "holds no LoRA" in capsys.readouterr().err
    assert run(FakeJob(with_lora=False, world="assets")) == 0
    assert not (tmp_path / "out" / "README.md").exists(), "the embedded world has its own card"
