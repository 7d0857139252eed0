"""A small Stable Diffusion as PyTorch diffusers writes it; copy the directory before changing a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sdd_jax
from sdd_jax.models.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: Any) -> Any:
    return train_tokenizer(["a lion", "a small cat"], 530, tmp_path_factory.mktemp("tok"), model_max_length=8)


@pytest.fixture(scope="session")
def sd15(tiny_tokenizer: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """The pipeline and the directory that it was saved to."""
    from torch_pipelines import stable_diffusion

    pipe = stable_diffusion(tiny_tokenizer, {}, {})
    directory = tmp_path_factory.mktemp("sd15") / "model"
    pipe.save_pretrained(directory)
    return pipe, directory


@pytest.fixture(scope="session")
def loaded(sd15: tuple[Any, Path]) -> tuple[Any, Any]:
    """(bundle, params) of the directory."""
    return sdd_jax.load(sd15[1])
