"""Editing methods whose target reads what the source's UNet holds: MasaCtrl and plug-and-play, on DDIM inversion.

| method | F for n steps, g passes for a guided prediction | what ties the target to its source |
| --- | --- | --- |
| `masactrl` | n + 2 g n | self-attention's keys and values |
| `pnp` | n + 2 g n | self-attention's queries and keys, and features |

Published layers are those of a UNet of four levels; on others the same part of the decoder is taken, counted from its
end.
"""

from __future__ import annotations

import dataclasses
import re

from flax import traverse_util

from sdd_jax.jobs.editing.inversion import follow_pairs
from sdd_jax.jobs.editing.methods import EditRequest, EditResult
from sdd_jax.jobs.editing.options import Inversion, check_shares, takes
from sdd_jax.sampling.attention_control import MasaCtrl, PlugAndPlay


@dataclasses.dataclass(frozen=True, kw_only=True)
class MasaCtrlInversion(Inversion):
    """begin: the share of the steps before control acts (4 of 50). layers: regular expression, None: of the decoder's
    blocks that attend, the half of higher resolution."""

    begin: float = 0.08
    layers: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "begin")
        _check_pattern("layers", self.layers)

    def control(self, request: EditRequest) -> MasaCtrl:
        """The control of a request's pairs."""
        blocks = [i for i, kind in enumerate(request.model.configs["unet"]["up_block_types"]) if "Attn" in kind]
        half = "|".join(str(i) for i in blocks[len(blocks) // 2 :])
        layers = rf"up_blocks_({half})/" if self.layers is None else self.layers
        _check_layers(request, "layers", layers, "attn1")
        return MasaCtrl(pairs=len(request.image), start_step=int(self.begin * self.steps + 1e-9), layers=layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlugAndPlayInversion(Inversion):
    """attention, features: shares of the steps in which each is injected. attention_layers, feature_layers: regular
    expressions; None: the published place in the decoder."""

    attention: float = 0.5
    features: float = 0.8
    attention_layers: str | None = None
    feature_layers: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "attention", "features")
        _check_pattern("attention_layers", self.attention_layers)
        _check_pattern("feature_layers", self.feature_layers)

    def control(self, request: EditRequest) -> PlugAndPlay:
        """The control of a request's pairs."""
        first = max(len(request.model.configs["unet"]["up_block_types"]) - 3, 0)
        attention = rf"up_blocks_({first}/attentions_[1-9]|[{first + 1}-9]/)"
        attention = attention if self.attention_layers is None else self.attention_layers
        features = rf"up_blocks_{first}/resnets_1" if self.feature_layers is None else self.feature_layers
        _check_layers(request, "attention_layers", attention, "attn1")
        _check_layers(request, "feature_layers", features, "resnets")
        return PlugAndPlay(
            pairs=len(request.image),
            attention_steps=int(self.attention * self.steps + 1e-9),
            feature_steps=int(self.features * self.steps + 1e-9),
            attention_layers=attention,
            feature_layers=features,
        )


@takes(MasaCtrlInversion)
def masactrl(request: EditRequest, options: MasaCtrlInversion) -> EditResult:
    """The target's self-attention reads the source's keys and values."""
    return follow_pairs(request, options, options.control(request))


@takes(PlugAndPlayInversion)
def pnp(request: EditRequest, options: PlugAndPlayInversion) -> EditResult:
    """The target takes over the source's self-attention maps and features."""
    return follow_pairs(request, options, options.control(request))


def _check_pattern(name: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{name}={pattern!r} is not a regular expression: {error}") from None


def _check_layers(request: EditRequest, name: str, pattern: str, kind: str) -> None:
    """ValueError where a pattern finds no layer of a kind in the UNet: a control would silently do nothing."""
    unet = traverse_util.flatten_dict(request.frozen["teacher"]["unet"], sep="/")
    if unet and not any(kind in path and re.search(pattern, path) for path in unet):
        raise ValueError(
            f"{name}={pattern!r} names no {kind} of {request.model.source}: give --option {name}=, a regular "
            "expression such as up_blocks_0/"
        )
