"""A model card names base, weights, data, metrics and every file."""

import hashlib

import pytest

from sdd_jax.models.card import CARD, model_card, read_record


def card(tmp_path, **changes):
    (tmp_path / "unet").mkdir(exist_ok=True)
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / CARD).write_text("an older card")
    given = {
        "title": "CCD, teacher portraits",
        "task": "ccd",
        "step": 7,
        "config": {"model": "owner/name", "data": {"path": "images", "size": 512}, "steps": 7},
        "fingerprint": {"teacher": "owner/name@abc", "teacher_hash": "0" * 64},
        "metrics": {"workdir": "/secret", "samples": 4, "rows": {"1 step": {"psnr": 21.23456, "fid": None}}},
        "measured_by": "python -m x",
    }
    return model_card(directory=tmp_path, **{**given, **changes})


def test_everything_is_named(tmp_path):
    text = card(tmp_path)
    assert text.startswith("---\nlibrary_name: diffusers\ntags:\n- sdd_jax\n- ccd\nbase_model: owner/name\n---\n")
    for line in (
        "# CCD, teacher portraits",
        "| teacher_hash | `" + "0" * 64 + "` |",
        "| size | `512` |",
        "| | psnr | fid |",
        "| 1 step | 21.23 |  |",
        f"| `unet/config.json` | 2 | `{hashlib.sha256(b'{}').hexdigest()}` |",
    ):
        assert line in text.splitlines(), line
    assert "step 7" in text and "samples 4" in text and '"steps": 7' in text
    assert "/secret" not in text and CARD not in text


def test_its_record_is_read_back(tmp_path):
    config = {"task": "icd", "objective": {"boundaries": "2", "note": "## Record\n\n```json\n"}}
    text = card(tmp_path, config=config)
    (tmp_path / CARD).write_text(text)
    assert read_record(tmp_path) == (config, {"teacher": "owner/name@abc", "teacher_hash": "0" * 64})
    for broken in ("an older card", text[:-9], text.replace('"made_from"', '"made"')):
        (tmp_path / CARD).write_text(broken)
        with pytest.raises(ValueError, match="README.md holds no record of the run: export it again"):
            read_record(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such card"):
        read_record(tmp_path / "unet")


def test_what_is_not_known_is_said(tmp_path):
    text = card(tmp_path, config={"model": str(tmp_path)}, fingerprint={}, metrics=None)
    assert "base_model" not in text and "Not measured" in text and "trained from scratch" in text
    assert "Not measured: `python -m x`, then" in card(tmp_path, metrics={"workdir": "/secret", "timesteps": None})


def test_groups_of_metrics_are_shown_beside_facts_and_rows(tmp_path):
    """As stage 1 of iCD, SDD and DDS report."""
    lines = card(tmp_path, metrics={"samples": 2, "metrics": {"relative_rmse@3": 0.1}}).splitlines()
    assert "samples 2" in lines and "| relative_rmse@3 | 0.1 |" in lines
    report = {
        "step": 9,
        "timesteps": [300, 500],
        "edit": {"attribute": "hair", "value": "white"},
        "rows": {"SDD": {"psnr": 20.0}},
        "cost": {"train": 3600.0, "editors": {"SDEdit": 4.25}, "break_even": {"SDEdit": None}},
    }
    lines = card(tmp_path, metrics=report).splitlines()
    assert "step 9, timesteps [300, 500]" in lines and "| SDD | 20 |" in lines
    cost = lines.index("| cost | |")
    assert lines[cost : cost + 5] == [
        "| cost | |", "| --- | --- |", "| train | 3600 |", "| editors: SDEdit | 4.25 |", "| break_even: SDEdit |  |",
    ]  # fmt: skip
    assert "| value | white |" in lines and not lines[cost - 1]


def test_a_protocols_results_are_shown_without_places(tmp_path):
    report = {"protocol": "restoration", "of": "/secret", "method": "", "samples": 2, "settings": {"steps": 4}}
    lines = card(tmp_path, metrics={**report, "metrics": {"fid": 12.5}}).splitlines()
    assert "protocol restoration, samples 2" in lines and "| fid | 12.5 |" in lines and "| steps | 4 |" in lines
    assert not [line for line in lines if "/secret" in line]
