"""What several editing methods can be told: guidance, steps, inversion, and prompt-to-prompt's controls.

A method's own options are beside it, made of these: `PromptControlled` with `Inversion` is prompt-to-prompt's, with
`Stepped` InfEdit's, alone iCD's.

Options are frozen dataclasses of simple values, so that they fit a command line (`--option cross=0.3`) and are static
arguments of the methods' programs; the guidance scale is passed beside them, and sweeping it compiles nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax

from sdd_jax.config import validate
from sdd_jax.jobs.editing.methods import EditRequest, EditResult, method_of, scale_of, usual_guidance
from sdd_jax.sampling.attention_control import LocalBlend, PromptToPrompt, control_steps
from sdd_jax.sampling.editing import Guidance, dynamic_guidance
from sdd_jax.sampling.prompt_alignment import local_blend, prompt_to_prompt
from sdd_jax.types import ModelBundle

T = TypeVar("T")
G = TypeVar("G", bound="Guided")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled:
    """guidance: w, 1 is off; None is the usual one of method and model. tau: it acts up to here, in t/T; 1: always."""

    guidance: float | None = None
    tau: float = 1.0

    def __post_init__(self) -> None:
        check_shares(self, "tau")

    def scale(self, request: EditRequest, published: float = 7.5) -> float:
        """The guidance scale of a request; ValueError for one that its model was not trained at."""
        return scale_of(request, self.guidance, usual_guidance(request.model, published))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided(Scaled):
    """Guidance in any form: tau, ramp_to, start say where it acts, see `sampling.editing.dynamic_guidance`."""

    ramp_to: float | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        dynamic_guidance(1.0, self.tau, self.ramp_to, self.start)

    def over_time(self, w: jax.Array) -> Guidance:
        """w as a function of t."""
        return dynamic_guidance(w, self.tau, self.ramp_to, self.start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepped(Guided):
    """Guidance, and the number of the sampler's steps."""

    steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps={self.steps} must be in 1 .. 1000")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inversion(Stepped):
    """rounds: evaluations of each inversion step, see `sampling.invert`."""

    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}: an inversion step evaluates the network at least once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptControlled(Guided):
    """Prompt-to-prompt, beside guidance.

    cross, self_: shares of the steps in which cross- and self-attention maps are the source's. self_tokens: the largest
    self-attention map replaced, in queries; None is a quarter of the latents' pixels (32^2 of 64^2, as published).
    emphasis: factors of words of the target, "hat:2,smiling:1.5". blend_source, blend_target: words of the two prompts,
    separated by commas or spaces, outside of whose region the picture stays as it was; blend_threshold: of their
    normalised maps; blend_size: side of the maps that are read (None: the largest of the model's up to 16).
    """

    cross: float = 0.4
    self_: float = 0.8
    self_tokens: int | None = None
    emphasis: str = ""
    blend_source: str = ""
    blend_target: str = ""
    blend_threshold: float = 0.3
    blend_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        control_steps(1, self.cross, self.self_)
        self.factors()
        if bool(self.blend_source) != bool(self.blend_target):
            raise ValueError("a blend needs words of both prompts: set blend_source and blend_target")
        check_shares(self, "blend_threshold")

    def factors(self) -> dict[str, float]:
        """The emphasised words and their factors; ValueError for what is no "word:factor"."""
        found = {}
        for part in self.emphasis.split(",") if self.emphasis else []:
            word, _, factor = part.strip().rpartition(":")
            try:
                found[word] = float(factor)
            except ValueError:
                word = ""
            if not word:
                raise ValueError(f"emphasis={self.emphasis!r}: give words and factors, as hat:2,smiling:1.5")
        return found

    def controls(self, request: EditRequest, steps: int) -> tuple[PromptToPrompt, LocalBlend | None]:
        """The attention control of a request's pairs in `steps` steps, and its blend where words are given."""
        model, (height, width) = request.model, _latent_sides(request)
        tokens = height * width // 4 if self.self_tokens is None else self.self_tokens
        control = prompt_to_prompt(
            model.tokenize, request.source, request.target, steps, self.cross, self.self_, self.factors(), tokens
        )
        if not self.blend_source:
            return control, None
        if height != width:
            raise ValueError(f"a blend reads square maps, the image has {width}x{height} latents: use a square image")
        source_words, target_words = (
            [_words(text)] * len(request.source) for text in (self.blend_source, self.blend_target)
        )
        blend = local_blend(
            model.tokenize,
            request.source,
            request.target,
            source_words,
            target_words,
            steps,
            blend_size(model, height) if self.blend_size is None else self.blend_size,
            self.blend_threshold,
        )
        return control, blend


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePass:
    """strength: the share s of a trained network's edit that is made, code + s (code' - code)."""

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 2:
            raise ValueError(f"strength={self.strength} of an edit: give 0 (none) to 1 (all of it), at most 2")


def check_shares(options: object, *names: str) -> None:
    """ValueError for a field that is a share and is not in 0 .. 1."""
    for name in names:
        value = getattr(options, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is a share: give 0 .. 1")


def blend_size(model: ModelBundle, side: int) -> int:
    """The side of the cross-attention maps that a blend reads: the largest up to 16 and half the latents' side."""
    kinds = model.configs["unet"]["down_block_types"]
    sides = [side // 2**level for level, kind in enumerate(kinds) if kind.startswith("CrossAttn")]
    return max((one for one in sides if one <= min(16, side // 2)), default=min(sides))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping: numbers, true, false and none as such, all else as text."""
    options: dict[str, Any] = {}
    words = {"true": True, "false": False, "none": None}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--option {text}: give it as key=value")
        if value.lower() in words:
            options[key] = words[value.lower()]
            continue
        try:
            number = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            number = value
        options[key] = number if isinstance(number, (int, float)) else value
    return options


class Method(Generic[T]):
    """An editing method beside the dataclass of its options, `Method(schema)(request)`; made by `takes`."""

    def __init__(self, schema: type[T], function: Callable[[EditRequest, T], EditResult]) -> None:
        functools.update_wrapper(self, function)
        self._schema, self._function = schema, function

    def read(self, options: Mapping[str, Any]) -> T:
        """Options as the method's dataclass; ValueError for one that it does not have, or a value out of range."""
        return validate(options, self._schema, "--option")

    def __call__(self, request: EditRequest) -> EditResult:
        return self._function(request, self.read(request.options))


def takes(schema: type[T]) -> Callable[[Callable[[EditRequest, T], EditResult]], Method[T]]:
    """Declares an editing method's options, so that they are looked at before a model is loaded (`check_options`)."""
    return functools.partial(Method, schema)


def options_of(method: str, methods: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """One method's of the options given to several: `key` is for all of them, `method.key` for one.

    Raises:
        ValueError: an option for a method that is none of `methods`.
    """
    found = {}
    for key, value in options.items():
        owner, dot, name = key.rpartition(".")
        if dot and owner not in methods:
            raise ValueError(f"--option {key}: {owner!r} is not among the methods {', '.join(methods)}")
        if not dot or owner == method:
            found[name] = value
    return found


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """ValueError for a name of no method, or for options that it does not take."""
    method_of(method).read(options)


def program_of(options: G) -> G:
    """The options without the guidance scale, which enters a program as an array."""
    return dataclasses.replace(options, guidance=None)


def _latent_sides(request: EditRequest) -> tuple[int, int]:
    height, width = (side // request.model.downsampling for side in request.image.shape[1:3])
    return height, width


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
