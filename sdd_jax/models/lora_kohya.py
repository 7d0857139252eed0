"""LoRA files under kohya's names, which most user interfaces outside diffusers read, from this project's PEFT files.

    unet.mid_block.resnets.0.conv1.lora_A.weight   ->   lora_unet_mid_block_resnets_0_conv1.lora_down.weight
    ...lora_B.weight / (alpha / rank)              ->   ...lora_up.weight, and ...alpha, a scalar, per module

A reader applies alpha / rank to up @ down, so that the training alpha, which `lora_files.export` folded into B, stands
in the file again. `lora_files.load_lora` reads both.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sdd_jax.models.lora_files import ALPHA_KEY, KOHYA_PREFIXES, METADATA_KEY

HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def is_peft(path: Path) -> bool:
    """Whether a file is a LoRA as `lora_files.export` writes it."""
    try:
        with safe_open(path, "numpy") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def to_kohya(path: Path, out: Path) -> Path:
    """Writes a LoRA of `lora_files.export` under kohya's names; returns `out`.

    Raises:
      ValueError: not such a file, or a tensor that is no half of a plain LoRA.
    """
    if not is_peft(path):
        raise ValueError(f"{path} is not a LoRA in PEFT's keys with its config in the header")
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    tensors = load_file(path)
    ranks = {key.split(".lora_A.")[0]: len(value) for key, value in tensors.items() if ".lora_A." in key}
    alphas = {module: float(header.get(ALPHA_KEY, rank)) for module, rank in ranks.items()}
    state: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        module, _, half = key.removesuffix(".weight").rpartition(".")
        component, _, name = module.partition(".")
        if half not in HALVES or component not in KOHYA_PREFIXES or module not in ranks:
            raise ValueError(f"{path} holds {key!r}, which is no half of a LoRA in PEFT's keys")
        flat = KOHYA_PREFIXES[component][0] + name.replace(".", "_")
        scale = alphas[module] / ranks[module] if half == "lora_B" else 1.0
        state[f"{flat}.{HALVES[half]}.weight"] = (value / scale).astype(np.float32)
        state[f"{flat}.alpha"] = np.asarray(alphas[module], np.float32)
    rank = max(ranks.values())
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(max(alphas.values())),
        "ss_network_args": json.dumps({"conv_dim": rank} if any(v.ndim == 4 for v in state.values()) else {}),
    }
    save_file(state, out, metadata=metadata)
    return out
