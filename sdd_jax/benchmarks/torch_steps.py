"""The same work in PyTorch diffusers, for `sdd_jax.bench --against=torch`: the same weights, inputs and draws.

channels_last, PyTorch's fused attention, float32 on CPU, bfloat16 under autocast on CUDA where asked; AdamW (fused on
CUDA) with the job's settings, gradients clipped by their global norm, an EMA. Eager, or the networks under
`torch.compile`. NumPy in and out, images NHWC.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from jax.typing import ArrayLike

from sdd_jax.models.convert import flax_to_torch
from sdd_jax.training.optim import OptimizerConfig

Tensors = dict[str, torch.Tensor]
Network = Callable[..., Any]
Parts = tuple[str, Mapping[str, Any], Any]
"""A network: diffusers' class, its config, our parameters."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_forward(
    config: Mapping[str, Any], params: Any, inputs: Mapping[str, ArrayLike], *, half: bool, compiled: bool
) -> Callable[[], np.ndarray]:
    """Returns a function that runs the UNet's forward and waits -> prediction f32[b,h,w,c]; inputs: z, t, context."""
    module = network("UNet2DConditionModel", config, params).eval()
    if half:
        module = module.to(torch.bfloat16)
    dtype = next(module.parameters()).dtype
    given = {key: x.to(dtype) if x.is_floating_point() else x for key, x in tensors(inputs).items()}
    unet = torch.compile(module) if compiled else module

    @torch.no_grad()
    def forward() -> np.ndarray:
        out = unet(given["z"], given["t"], encoder_hidden_states=given["context"]).sample
        synchronize()
        return out.float().permute(0, 2, 3, 1).cpu().numpy()

    return forward


def make_training_step(
    networks: Mapping[str, Parts],
    draws: Mapping[str, ArrayLike],
    loss: Callable[[Mapping[str, Network], Mapping[str, Network], Tensors], torch.Tensor],
    *,
    frozen: Mapping[str, Parts],
    optimizer: OptimizerConfig,
    ema_decay: float | None,
    half: bool,
    compiled: bool,
) -> Callable[[], np.ndarray]:
    """Returns a function that runs one training step and waits -> its loss.

    networks: those that are trained. ema_decay: of their average; None keeps none. frozen: other networks, under names
    of their own. loss: (online, fixed, draws) -> scalar, the networks by name, fixed the averages and the frozen ones.
    """
    online = torch.nn.ModuleDict({name: network(*parts) for name, parts in networks.items()})
    average = torch.nn.ModuleDict() if ema_decay is None else copy.deepcopy(online)
    dtype = torch.bfloat16 if half else torch.float32
    others = {name: network(*parts).to(dtype) for name, parts in frozen.items()}
    fixed = torch.nn.ModuleDict({**average, **others}).requires_grad_(False)
    decayed = [p for p in online.parameters() if p.ndim > 1]
    kept = [p for p in online.parameters() if p.ndim <= 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optimizer.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=optimizer.learning_rate,
        betas=(optimizer.b1, optimizer.b2),
        eps=optimizer.eps,
        fused=DEVICE == "cuda",
    )
    given = tensors(draws)
    call_online, call_fixed = (
        {name: torch.compile(module) if compiled else module for name, module in modules.items()}
        for modules in (online, fixed)
    )

    def step() -> np.ndarray:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            value = loss(call_online, call_fixed, given)
        value.backward()
        if optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(online.parameters(), optimizer.clip_norm)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if ema_decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(online.parameters()), 1 - ema_decay)
        synchronize()
        return np.asarray(value.detach().cpu())

    return step


def plain_loss(online: Mapping[str, Network], fixed: Mapping[str, Network], d: Tensors) -> torch.Tensor:
    """Plain diffusion: draws z_t, t, context, and `truth`, what the network regresses."""
    prediction = online["unet"](d["z_t"], d["t"], encoder_hidden_states=d["context"]).sample.float()
    return ((d["truth"] - prediction) ** 2).mean()


def ccd_loss(online: Mapping[str, Network], fixed: Mapping[str, Network], d: Tensors) -> torch.Tensor:
    """CCD (eq. 11), an eps-predicting teacher, of draws x, eps, z_t, t, s, levels, context; hint for a ControlNet."""

    def predict(networks: Mapping[str, Network], z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        text = {"encoder_hidden_states": d["context"]}
        residuals: dict[str, Any] = {}
        if "controlnet" in networks:
            down, mid = networks["controlnet"](z, t, controlnet_cond=d["hint"], return_dict=False, **text)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return networks["unet"](z, t, **text, **residuals).sample.float()

    eps_hat = predict(online, d["z_t"], d["t"])
    x_hat = (d["z_t"] - d["sigma_t"] * eps_hat) / d["alpha_t"]
    with torch.no_grad():
        z_s = d["alpha_s"] * x_hat + d["sigma_s"] * d["eps"]
        eps_target = predict(fixed, z_s, d["s"])
    return ((eps_target - eps_hat) ** 2).mean() + ((d["x"] - x_hat) ** 2).mean()


def icd_loss(online: Mapping[str, Network], fixed: Mapping[str, Network], d: Tensors) -> torch.Tensor:
    """iCD's L_CD, an eps-predicting teacher, of draws z, t (then t_solver, s), w and their levels, context."""

    def jump(unet: Network, z: torch.Tensor, start: str, end: str) -> torch.Tensor:
        eps = unet(z, d[start], encoder_hidden_states=d["context"], timestep_cond=d["w"]).sample.float()
        x0 = (z - d[f"sigma_{start}"] * eps) / d[f"alpha_{start}"]
        return d[f"alpha_{end}"] * x0 + d[f"sigma_{end}"] * eps

    with torch.no_grad():
        z_solver = jump(fixed["teacher"], d["z"], "t", "t_solver")
        arrived = (d["t_solver"] == d["s"])[:, None, None, None]
        target = torch.where(arrived, z_solver, jump(online["unet"], z_solver, "t_solver", "s"))
    squared = (jump(online["unet"], d["z"], "t", "s") - target) ** 2
    return (squared / (torch.sqrt(squared + 1e-6) + 1e-3)).mean()


def network(kind: str, config: Mapping[str, Any], params: Any) -> torch.nn.Module:
    """Builds diffusers' class `kind` from a config and our parameters."""
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    module = getattr(diffusers, kind).from_config(fields)
    weights = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in flax_to_torch(params).items()}
    module.load_state_dict(weights)
    return module.to(DEVICE, memory_format=torch.channels_last)


def tensors(arrays: Mapping[str, ArrayLike]) -> Tensors:
    """Arrays on the device; NHWC images become NCHW in channels_last memory, int32 becomes int64."""

    def tensor(value: ArrayLike) -> torch.Tensor:
        array = np.array(value)
        out = torch.from_numpy(array).to(DEVICE)
        return out.permute(0, 3, 1, 2) if array.ndim == 4 else out.long() if array.dtype == np.int32 else out

    return {name: tensor(value) for name, value in arrays.items()}


def synchronize() -> None:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def release() -> None:
    """Gives freed device memory back, for whoever runs next in this process."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
