"""Writing models as the rest of the world reads them: diffusers directories of safetensors.

`save` writes a whole pipeline that PyTorch's StableDiffusionPipeline (or the XL one) loads, `save_component` one
network (a distilled UNet, a ControlNet). Either appears at once: files are written to a hidden sibling directory which
is then renamed, so that an interrupted save leaves the old directory or none, never a half.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from safetensors.numpy import save_file

from sdd_jax.models.convert import flax_to_torch
from sdd_jax.types import ModelBundle, Params

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def save(bundle: ModelBundle, params: Params, out_dir: str | Path, dtype: DTypeLike = np.float32) -> Path:
    """Writes a model as a diffusers pipeline directory.

    Args:
      bundle: its `configs` and tokenizers are written beside the weights.
      params: `unet`, `vae`, `text_encoder` (`text_encoder_2`).
      out_dir: a new or empty directory, or a model directory, which is replaced.
      dtype: of the files: float32 or float16.

    Raises:
      ValueError: `out_dir` holds something else, a part is missing, or a value does not fit float16.
    """
    parts = [part for part in ("unet", "vae", *TEXT_ENCODERS) if part in bundle.configs]
    if missing := [part for part in parts if part not in params]:
        raise ValueError(f"cannot save {out_dir}: params has no {', '.join(missing)}")
    with replaced_directory(out_dir) as directory:
        _write_json(directory / "model_index.json", _model_index(bundle))
        _write_json(directory / "scheduler" / "scheduler_config.json", dict(bundle.configs["scheduler"]))
        for part in parts:
            _write_component(params[part], bundle.configs[part], directory / part, part in TEXT_ENCODERS, dtype)
        tokenizers: list[Any] = [bundle.tokenize, bundle.tokenize_2]
        for tokenizer, name in zip(tokenizers, TEXT_ENCODERS.values(), strict=True):
            if tokenizer is not None:
                tokenizer.save(directory / name)
    return Path(out_dir)


def save_component(
    params: Params, config: Mapping[str, Any], out_dir: str | Path, class_name: str, dtype: DTypeLike = np.float32
) -> Path:
    """Writes one network (`config.json` and safetensors), as the PyTorch class `class_name` loads it.

    class_name: diffusers' (`UNet2DConditionModel`, `ControlNetModel`, ...), or `CLIPTextModel`, or
    `CLIPTextModelWithProjection`, of transformers. `out_dir`, `dtype` and errors as for `save`.
    """
    is_text = class_name.startswith("CLIPTextModel")
    named = {"architectures": [class_name]} if is_text else {"_class_name": class_name}
    with replaced_directory(out_dir) as directory:
        _write_component(params, {**config, **named}, directory, is_text, dtype)
    return Path(out_dir)


@contextlib.contextmanager
def replaced_directory(out_dir: str | Path) -> Iterator[Path]:
    """Yields a new directory that takes `out_dir`'s place when the block ends, and vanishes if it raises.

    Raises:
      ValueError: `out_dir` is a file, or a directory with contents that are not a model's.
    """
    target = Path(out_dir).absolute()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; give a directory to save to")
    if target.is_dir() and any(target.iterdir()) and not _is_model(target):
        raise ValueError(f"{target} is not empty and not a model directory; give a new directory to save to")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise


def _is_model(directory: Path) -> bool:
    """Whether a directory is a saved model. A training workdir, which has a config.json of another kind, is not."""
    if (directory / "model_index.json").is_file():
        return True
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.keys() & {"_class_name", "architectures"})


def _write_component(
    params: Params, config: Mapping[str, Any], directory: Path, is_text: bool, dtype: DTypeLike
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    name = "model.safetensors" if is_text else "diffusion_pytorch_model.safetensors"
    config = dict(config)
    if is_text:
        # transformers picks the dtype to load in from here
        config.pop("dtype", None)
        config["torch_dtype"] = np.dtype(dtype).name
    _write_json(directory / "config.json", config)
    state = {
        key: _cast(value, np.dtype(dtype), f"{directory.name}: {key}") for key, value in flax_to_torch(params).items()
    }
    save_file(state, directory / name, metadata={"format": "pt"})


def _cast(value: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"models are saved in float32 or float16, not {dtype.name}")
    limit = float(np.finfo(dtype).max)
    if dtype == np.float16 and value.size and float(np.abs(value).max()) > limit:
        raise ValueError(f"{where} holds values beyond float16's {limit:g}; save in float32")
    return value.astype(dtype)


def _model_index(bundle: ModelBundle) -> dict[str, Any]:
    """Returns model_index.json: the source's pipeline class and options, with exactly the parts that are written."""
    is_xl = "text_encoder_2" in bundle.configs
    source = dict(bundle.configs.get("model_index", {}))
    index: dict[str, Any] = {
        "_class_name": source.get("_class_name", "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"),
        "_diffusers_version": importlib.metadata.version("diffusers"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if is_xl:
        index["force_zeros_for_empty_prompt"] = source.get("force_zeros_for_empty_prompt", True)
    else:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    scheduler = bundle.configs["scheduler"].get("_class_name", "DDIMScheduler")
    index |= {
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for part, tokenizer in TEXT_ENCODERS.items():
        if part in bundle.configs:
            (architecture,) = bundle.configs[part].get("architectures") or ["CLIPTextModel"]
            index |= {part: ["transformers", architecture], tokenizer: ["transformers", "CLIPTokenizer"]}
    return index


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
