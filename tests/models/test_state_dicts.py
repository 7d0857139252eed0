"""Weights files: what is read, and that nothing in them runs."""

import argparse
import builtins
import os
import pickle
import re
import shlex

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdd_jax.jobs.sdd.style_codes import read_codes
from sdd_jax.models.e4e import load_e4e
from sdd_jax.models.irse import load_ir_se50
from sdd_jax.models.state_dicts import read_checkpoint, read_state_dict, rename
from sdd_jax.models.style_mappers import MapperConfig, load_mapper
from sdd_jax.models.stylegan_convert import load_generator

torch = pytest.importorskip("torch")


class Malicious:
    """Unpickling this makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_both_formats_read_alike(tmp_path):
    half = {
        "a.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "steps": np.array([7]),
        "b": np.ones(2, np.float32),
    }
    save_file(half, tmp_path / "w.safetensors")
    torch.save({name: torch.tensor(value) for name, value in half.items()}, tmp_path / "w.pth")
    torch.save({"a.weight": torch.arange(6.0).reshape(2, 3).bfloat16(), "b": torch.ones(2)}, tmp_path / "w.bin")
    for name in ("w.safetensors", "w.pth", "w.bin"):
        read = read_state_dict(tmp_path / name)
        assert set(read) == {"a.weight", "b"}
        assert all(value.dtype == np.float32 for value in read.values())
        np.testing.assert_array_equal(read["a.weight"], np.arange(6).reshape(2, 3))


def test_plain_values_stand_beside_the_tensors(tmp_path):
    opts = {"encoder_type": "e4e", "steps": [1, 2]}
    torch.save({"net": {"a": torch.ones(2), "steps": torch.tensor(7)}, "opts": opts, "step": 3}, tmp_path / "w.pt")
    tensors, plain = read_checkpoint(tmp_path / "w.pt", page="docs/sdd.md")
    assert list(tensors) == ["net.a"] and plain == {"opts.encoder_type": "e4e", "opts.steps": [1, 2], "step": 3}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_namespace_is_refused_with_the_line_that_saves_it_as_a_dict(tmp_path, zipped):
    """As in rosinality's training checkpoints; the line works, for files of old and new layout, and runs no code."""
    path, options = tmp_path / "550000.pt", argparse.Namespace(size=8)
    whole = {"g_ema": {"a": torch.ones(2)}, "args": options}
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match="550000.pt holds an argparse.Namespace.* refused; give .*550000_plain.pt"
    ) as error:
        read_checkpoint(path, page="docs/stylegan.md")
    assert "\n" not in str(error.value)
    allowed = torch.serialization.safe_globals([argparse.Namespace])  # which the line allows; the end takes it back
    program = shlex.split(re.search(r"python -c .*", str(error.value))[0])[2]
    with allowed:
        exec(program, {})
    tensors, plain = read_checkpoint(tmp_path / "550000_plain.pt", page="docs/stylegan.md")
    assert list(tensors) == ["g_ema.a"] and plain == {"args.size": 8}
    torch.save({**whole, "other": Malicious(tmp_path / "made")}, path)
    with allowed, pytest.raises(pickle.UnpicklingError):
        exec(program, {})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickles_with_code_are_refused_and_not_run(tmp_path, wrapped):
    target, path = tmp_path / "made", tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2), "b": Malicious(target)} if wrapped else Malicious(target), path)
    with pytest.raises(ValueError, match="weights.pt.*refused"):
        read_state_dict(path)
    assert not target.exists()


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth: no such weights file; docs/metrics.md lists"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="not '.npz'"):
        read_state_dict(tmp_path / "w.npz")
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "w.safetensors")
    with (tmp_path / "w.safetensors").open("r+b") as stream:
        stream.truncate(500)
    with pytest.raises(ValueError, match="w.safetensors is damaged"):
        read_state_dict(tmp_path / "w.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="no flat dict of tensors"):
        read_state_dict(tmp_path / "nested.pt")


@pytest.mark.parametrize(
    ("load", "page"),
    [
        (load_e4e, "docs/sdd.md"),
        (load_ir_se50, "docs/sdd.md"),
        (lambda path: load_mapper(path, MapperConfig(), np.zeros((1, 6, 6))), "docs/sdd.md"),
        (lambda path: read_codes(path, (6, 6)), "docs/sdd.md"),
        (load_generator, "docs/stylegan.md"),
    ],
)
def test_a_missing_file_points_to_the_page_that_lists_it(tmp_path, load, page):
    with pytest.raises(FileNotFoundError, match=f"none.pt: no such weights file; {page} lists"):
        load(tmp_path / "none.pt")


def test_without_torch_the_message_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"x")
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match="w.pt is a PyTorch checkpoint.*safetensors"):
        read_state_dict(tmp_path / "w.pt")


def test_rename_refuses_to_lose_a_tensor():
    zeros = np.zeros(1)
    assert set(rename({"x.0.w": zeros, "y": zeros}, [(r"^x\.", "layers.")], drop="y")) == {"layers.0.w"}
    with pytest.raises(ValueError, match="two tensors"):
        rename({"a.w": zeros, "b.w": zeros}, [(r"^[ab]", "c")])
