"""The files of a model: every form they come in gives the same weights, and what is wrong with them is one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_pipelines import assert_same_trees

import sdd_jax
from sdd_jax.models import hub


@pytest.fixture()
def copied(sd15: tuple[Any, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd15[1], tmp_path / "model"))


def test_legacy_names_sharded_and_msgpack_files_give_the_same_weights(loaded: Any, copied: Path) -> None:
    params = loaded[1]
    vae_file = copied / "vae" / "diffusion_pytorch_model.safetensors"
    legacy = {}
    for key, value in load_file(vae_file).items():
        if ".attentions." in key and ".to_" in key:
            for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                key = key.replace(f".{new}.", f".{old}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        legacy[key] = value
    assert any("proj_attn" in key for key in legacy)
    save_file(legacy, vae_file)

    unet_dir = copied / "unet"
    state = load_file(unet_dir / "diffusion_pytorch_model.safetensors")
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    shards = [{key: state[key] for key in sorted(state)[i::2]} for i in (0, 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, unet_dir / name)
    index = {
        "metadata": {},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    (unet_dir / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (unet_dir / "diffusion_pytorch_model.safetensors").unlink()

    # as Flax's CLIP wrote it: layers nested by number, the causal-mask buffer's ids beside the embeddings
    tree = jax.tree.map(np.asarray, params["text_encoder"])
    encoder = tree["text_model"].pop("encoder")
    tree["text_model"]["encoder"] = {"layers": {name.removeprefix("layers_"): layer for name, layer in encoder.items()}}
    (copied / "text_encoder" / "model.safetensors").unlink()
    (copied / "text_encoder" / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))

    assert_same_trees(sdd_jax.load(copied)[1], params)
    (unet_dir / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{names[1]} is missing"):
        sdd_jax.load(copied)


def test_half_precision_variant_is_read_only_where_alone(copied: Path) -> None:
    vae_dir = copied / "vae"
    full = vae_dir / "diffusion_pytorch_model.safetensors"
    half = vae_dir / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(full, half)
    assert hub.weight_files(vae_dir) == [full]
    full.unlink()
    assert hub.weight_files(vae_dir) == [half]


def spoil(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda d: (d / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet has no weights"),
        (lambda d: os.truncate(d / "vae" / "diffusion_pytorch_model.safetensors", 5000), "vae.*damaged or truncated"),
        (lambda d: os.truncate(d / "vae" / "diffusion_pytorch_model.safetensors", 0), "vae.*damaged or truncated"),
        (
            lambda d: (d / "unet" / "diffusion_pytorch_model.safetensors").rename(
                d / "unet" / "diffusion_pytorch_model.bin"
            ),
            "unet/diffusion_pytorch_model.bin is a pickle.*save_pretrained",
        ),
        (lambda d: (d / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda d: (d / "vae" / "config.json").write_text("{"), "vae/config.json is not valid JSON"),
        (lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer holds no tokenizer"),
        (lambda d: spoil(d / "model_index.json", unet=[None, None]), "no 'unet'"),
        (lambda d: spoil(d / "unet" / "config.json", class_embed_type="timestep"), "class_embed_type"),
        (
            lambda d: spoil(d / "unet" / "config.json", layers_per_block=2),
            "unet.*does not fit its config.json: .*missing",
        ),
        (lambda d: spoil(d / "vae" / "config.json", shift_factor=0.1), "vae/config.json: shift_factor"),
        (
            lambda d: spoil(d / "text_encoder" / "config.json", hidden_act="relu"),
            "text_encoder/config.json: hidden_act",
        ),
        (lambda d: spoil(d / "scheduler" / "scheduler_config.json", prediction_type="flow"), "prediction_type"),
        (lambda d: spoil(d / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler"), "_class_name"),
        (lambda d: spoil(d / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid"), "beta_schedule"),
    ],
)
def test_a_spoilt_model_is_refused_in_one_line(copied: Path, spoilt: Any, message: str) -> None:
    spoilt(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        sdd_jax.load(copied)
    assert "\n" not in str(error.value)


def test_names_that_are_no_model(sd15: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a directory, nor a hub id"):
        sdd_jax.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="owner/none cannot be had") as error:
        sdd_jax.load("owner/none")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no revision 'main'"):
        sdd_jax.load(sd15[1], revision="main")


def test_hub_downloads_one_form_of_each_component() -> None:
    files = [
        "model_index.json", "v1-5-pruned.safetensors", "unet/config.json", "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors.index.json", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors",
    ]  # fmt: skip
    assert hub.needed_files(files, "owner/name") == [
        "model_index.json", "unet/config.json", "tokenizer/merges.txt", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="owner/name/unet/diffusion_pytorch_model.bin is a pickle"):
        hub.needed_files(["unet/diffusion_pytorch_model.bin"], "owner/name")


def test_content_hash_follows_the_bytes_alone(sd15: Any, loaded: Any, copied: Path) -> None:
    files = lambda root: [hub.weight_files(root / part)[0] for part in ("vae", "unet", "text_encoder")]  # noqa: E731
    same = hub.content_hash(files(copied), copied)
    assert same == loaded[0].content_hash and len(same) == 64
    with (copied / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x07")
    assert hub.content_hash(files(copied), copied) != same
