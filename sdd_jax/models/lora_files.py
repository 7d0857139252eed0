"""LoRA files: written in PEFT's keys, read in PEFT's, kohya's and diffusers' older ones.

    unet.<module>.lora_A.weight [r, i] or [r, i, k, k]       unet.<module>.lora_B.weight [o, r] or [o, r, 1, 1]

B is written times alpha / rank, and the PEFT config in the safetensors header (`lora_adapter_metadata`) says that alpha
equals the rank. Readers that ignore the header assume just that (PyTorch diffusers' `load_lora_adapter(path)` is one),
so every reader gives the same output. The training alpha stands beside it, and `load_lora` undoes the scaling.

Kohya's names
(`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, with an `.alpha` per module) flatten dots to underscores; they
are resolved against the model's own module names. Strengths that differ by module are folded into B.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sdd_jax.models.convert import flax_to_torch, torch_to_flax
from sdd_jax.models.lora import Lora, LoraSpec, kernels, module_name

METADATA_KEY = "lora_adapter_metadata"
ALPHA_KEY = "sdd_jax_lora_alpha"
KOHYA_PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
_KEY = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight")
_IS_A = ("lora_A", "lora_down", "lora.down")

log = logging.getLogger(__name__)


def export(lora: Lora, spec: LoraSpec, path: str | Path, component: str = "unet") -> None:
    """Writes an adapter as a float32 safetensors file that PyTorch diffusers loads at strength alpha / rank."""
    if spec.alpha <= 0:
        raise ValueError(f"a LoRA of alpha {spec.alpha} has no effect and cannot be written")
    state: dict[str, np.ndarray] = {}
    for module, pair in lora.items():
        tree = {"lora_A": {"kernel": pair["a"]}, "lora_B": {"kernel": pair["b"] * spec.scale}}
        for key, value in flax_to_torch(tree).items():
            state[f"{component}.{module_name(module)}.{key}"] = value.astype(np.float32)
    config = {
        "r": spec.rank,
        "lora_alpha": spec.rank,
        "target_modules": sorted(module_name(module) for module in lora),
    }
    metadata = {f"{component}.{name}": value for name, value in config.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", METADATA_KEY: json.dumps(metadata, sort_keys=True), ALPHA_KEY: str(float(spec.alpha))}
    save_file(state, path, metadata=header)


def load_lora(path: str | Path, params: Mapping[str, Any], component: str = "unet") -> tuple[Lora, LoraSpec]:
    """Reads the adapter of `component` from a file, for the model with parameters `params`.

    Returns:
      The float32 adapter and a spec of its rank (the largest), strength and modules.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a safetensors file, nothing for `component`, a module that the model lacks, a shape that does not
        fit, or a kind of adapter other than LoRA.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a LoRA in safetensors")
    try:
        state = load_file(path)
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); pickled LoRAs must be converted first") from None
    layers = kernels(params)
    names = {module_name(layer): layer for layer in layers}
    found, alphas = _by_module(state, names, component, path)
    strengths = _strengths(found, alphas, _config(header, component), path)
    rank = max(pair["a"].shape[-1] for pair in found.values())
    common = float(header[ALPHA_KEY]) / rank if ALPHA_KEY in header else strengths[min(strengths)]
    lora: Lora = {}
    for module, pair in found.items():
        layer = names[module]
        shape = layers[layer].shape
        r = pair["a"].shape[-1]
        want_a, want_b = (*shape[:-1], r), (*(1 for _ in shape[2:]), r, shape[-1])
        if pair["a"].size != np.prod(want_a) or pair["b"].size != np.prod(want_b):
            raise ValueError(
                f"{path}: {module} is for another model: A {pair['a'].shape}, B {pair['b'].shape}, kernel {shape}"
            )
        folded = pair["b"] * np.float32(strengths[module] / common)
        lora[layer] = {
            "a": jnp.asarray(pair["a"].reshape(want_a)),
            "b": jnp.asarray(folded.reshape(want_b), jnp.float32),
        }
    return lora, LoraSpec(rank=rank, alpha=common * rank, targets=tuple(sorted(map(re.escape, found))))


def _by_module(
    state: Mapping[str, np.ndarray], names: Mapping[str, str], component: str, path: Path
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Sorts a file's tensors: (A and B in Flax layout, kohya's alpha), each by dotted module name."""
    flattened = {name.replace(".", "_"): name for name in names}
    others = tuple(f"{other}." for other in KOHYA_PREFIXES if other != component)
    others += tuple(p for other, prefixes in KOHYA_PREFIXES.items() if other != component for p in prefixes)
    found: dict[str, dict[str, np.ndarray]] = {}
    alphas: dict[str, float] = {}
    skipped = 0

    def resolve(name: str) -> str:
        for prefix in KOHYA_PREFIXES[component]:
            if name.startswith(prefix):
                name = flattened.get(name.removeprefix(prefix), name)
        for prefix in ("base_model.model.", f"{component}."):
            name = name.removeprefix(prefix)
        if name not in names:
            raise ValueError(f"{path} adapts {name!r}, which this model's {component} does not have")
        return name

    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if key.startswith(others):
            skipped += 1
        elif key.endswith(".alpha"):
            alphas[resolve(key.removesuffix(".alpha"))] = float(value)
        elif match is None:
            raise ValueError(f"{path} holds {key!r}: only plain LoRA is supported (no DoRA, LoHa, LoKr, biases)")
        else:
            half = "a" if match[2] in _IS_A else "b"
            tree = torch_to_flax({"layer.weight": value.astype(np.float32)})
            found.setdefault(resolve(match[1]), {})[half] = tree["layer"]["kernel"]
    incomplete = [module for module, pair in found.items() if len(pair) != 2]
    if not found or incomplete:
        what = f"only one of A and B for {incomplete[0]!r}" if incomplete else f"no LoRA for {component}"
        raise ValueError(f"{path} holds {what}")
    if skipped:
        log.warning("%s: %d tensors are for another part of the model than %s; load them too", path, skipped, component)
    return found, alphas


def _config(header: Mapping[str, str], component: str) -> dict[str, Any]:
    """Returns the PEFT config of `component` from the safetensors header; empty where there is none."""
    entries = json.loads(header.get(METADATA_KEY, "{}"))
    prefixed = {key.removeprefix(f"{component}."): v for key, v in entries.items() if key.startswith(f"{component}.")}
    # a network's own save_lora_adapter writes no prefix
    return prefixed or {key: value for key, value in entries.items() if "." not in key}


def _strengths(
    found: Mapping[str, Mapping[str, np.ndarray]], alphas: Mapping[str, float], config: Mapping[str, Any], path: Path
) -> dict[str, float]:
    """Returns alpha / rank of every module: kohya's alpha, else the PEFT config's, else 1."""
    if config.get("use_dora"):
        raise ValueError(f"{path} is a DoRA (use_dora in its header); only plain LoRA is supported")
    patterns = config.get("alpha_pattern") or {}
    strengths = {}
    for module, pair in found.items():
        rank = pair["a"].shape[-1]
        alpha = alphas.get(module, config.get("lora_alpha", rank))
        for pattern, value in patterns.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        strengths[module] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return strengths
