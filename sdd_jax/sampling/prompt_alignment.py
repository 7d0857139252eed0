"""Which token of one prompt stands for which of another: the data of prompt-to-prompt's controls (numpy, no model).

A prompt's tokens are [start, words, end, padding]. Words are what white space separates; byte-pair tokenizers of CLIP's
kind never merge across it, so a prompt's tokens are its words' tokens in a row.

| prompts | rule | J [n,n] | k [n] |
| --- | --- | --- | --- |
| as many words | replacement | each word to the word at its place, its maps' sum kept and spread evenly | 1 |
| else | refinement | matched tokens of a Needleman-Wunsch alignment, one to one | 1 where matched, else 0 |

The alignment scores a match 1, a mismatch -1 and a gap 0, so different tokens are never paired: new words keep their
own maps. Padding goes to padding, counted from the end of text. (The released code pairs equal positions, where padding
may fall on words once lengths differ.) Source: Hertz et al. 2022 and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from sdd_jax.sampling.attention_control import LocalBlend, PromptToPrompt, control_steps

Tokenize = Callable[[Sequence[str]], np.ndarray]


def content_length(ids: np.ndarray, end: int) -> int:
    """The number of tokens before padding, start and end of text included, of ids int[n]; n where the end was cut."""
    found = np.flatnonzero(ids[1:] == end)
    return int(found[0]) + 2 if found.size else len(ids)


def word_tokens(tokenize: Tokenize, prompt: str) -> list[list[int]]:
    """The token positions of each word of a prompt; positions past the tokenizer's length are cut."""
    words = prompt.split()
    if not words:
        return []
    ids = tokenize([*words, ""])
    end = ids[-1, 1]
    positions, start = [], 1
    for row in ids[:-1]:
        count = content_length(row, end) - 2
        positions.append([i for i in range(start, start + count) if i < ids.shape[1] - 1])
        start += count
    return positions


def word_mask(tokenize: Tokenize, prompt: str, words: Sequence[str]) -> np.ndarray:
    """f32[n]: 1 at the tokens of `words` in the prompt, punctuation at their ends ignored.

    Raises:
        ValueError: a word that the prompt does not have.
    """
    mask = np.zeros(tokenize([prompt]).shape[1], np.float32)
    written = [word.strip(".,;:!?") for word in prompt.lower().split()]
    positions = word_tokens(tokenize, prompt)
    for word in words:
        if word.lower() not in written:
            raise ValueError(f"the word {word!r} is not in the prompt {prompt!r}: choose one of its words")
        for place, found in enumerate(written):
            if found == word.lower():
                mask[positions[place]] = 1.0
    return mask


def align(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Needleman-Wunsch (match 1, mismatch -1, gap 0): int[len(target)], the source index of each target, or -1."""
    score = np.zeros((len(source) + 1, len(target) + 1), np.int64)
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            score[i + 1, j + 1] = max(score[i, j + 1], score[i + 1, j], score[i, j] + (1 if a == b else -1))
    partner = np.full(len(target), -1)
    i, j = len(source), len(target)
    while i and j:
        if source[i - 1] == target[j - 1] and score[i, j] == score[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
            partner[j] = i
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return partner


def refinement(tokenize: Tokenize, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(J f32[n,n], k f32[n]) of two prompts of any length."""
    source_ids, target_ids, empty = tokenize([source, target, ""])
    n, end = len(source_ids), empty[1]
    source_length, target_length = content_length(source_ids, end), content_length(target_ids, end)
    mapper, keep = np.zeros((n, n), np.float32), np.ones(n, np.float32)
    for j, i in enumerate(align(source_ids[:source_length].tolist(), target_ids[:target_length].tolist())):
        keep[j] = i >= 0
        if i >= 0:
            mapper[i, j] = 1.0
    for j in range(target_length, n):
        mapper[min(j - target_length + source_length, n - 1), j] = 1.0
    return mapper, keep


def replacement(tokenize: Tokenize, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(J f32[n,n], k = 1 f32[n]) of two prompts with as many words.

    Raises:
        ValueError: the prompts' numbers of words differ.
    """
    pairs = word_tokens(tokenize, source), word_tokens(tokenize, target)
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(f"replacement needs as many words in {source!r} as in {target!r}: use refinement")
    source_ids, target_ids, empty = tokenize([source, target, ""])
    n, end = len(source_ids), empty[1]
    lengths = content_length(source_ids, end), content_length(target_ids, end)
    mapper = np.zeros((n, n), np.float32)
    mapper[0, 0] = 1.0
    for here, there in zip(*pairs, strict=True):
        if len(here) == len(there):
            mapper[here, there] = 1.0
        elif here and there:
            mapper[np.ix_(here, there)] = 1.0 / len(there)
    for j in range(lengths[1] - 1, n):  # the end of text, and padding
        mapper[min(j - lengths[1] + lengths[0], n - 1), j] = 1.0
    return mapper, np.ones(n, np.float32)


def prompt_to_prompt(
    tokenize: Tokenize,
    sources: Sequence[str],
    targets: Sequence[str],
    num_steps: int,
    cross: float = 0.4,
    self_: float = 0.8,
    emphasis: Mapping[str, float] | None = None,
    self_tokens: int = 32**2,
) -> PromptToPrompt:
    """The control of b pairs of prompts: replacement where the words are as many, else refinement.

    tokenize: list of str -> ids int32[b,n] (`ModelBundle.tokenize`). cross, self_: the shares of `num_steps` steps in
    which each acts (published with iCD's 4 steps: .3, .6 and .2, .2; with 50: .4, .8). emphasis: factors of target
    words; a word counts in the prompts that have it. self_tokens: the most tokens of a self-attention map that is
    replaced.

    Raises:
        ValueError: shares outside of [0, 1], or a word of `emphasis` that no target has.
    """
    mappers, keeps, equalizers = [], [], []
    found = set()
    for source, target in zip(sources, targets, strict=True):
        rule = replacement if len(source.split()) == len(target.split()) else refinement
        mapper, keep = rule(tokenize, source, target)
        equalizer = np.ones_like(keep)
        for word, factor in (emphasis or {}).items():
            if word.lower() in [one.strip(".,;:!?") for one in target.lower().split()]:
                equalizer = np.where(word_mask(tokenize, target, [word]) > 0, factor, equalizer)
                found.add(word)
        mappers.append(mapper)
        keeps.append(keep)
        equalizers.append(equalizer.astype(np.float32))
    missing = set(emphasis or {}) - found
    if missing:
        raise ValueError(f"the emphasised words {sorted(missing)} are in no target prompt: {list(targets)}")
    cross_steps, self_steps = control_steps(num_steps, cross, self_)
    return PromptToPrompt(
        mapper=jnp.asarray(np.stack(mappers)),
        keep=jnp.asarray(np.stack(keeps)),
        equalizer=jnp.asarray(np.stack(equalizers)),
        cross_steps=cross_steps,
        self_steps=self_steps,
        self_tokens=self_tokens,
    )


def local_blend(
    tokenize: Tokenize,
    sources: Sequence[str],
    targets: Sequence[str],
    source_words: Sequence[Sequence[str]],
    target_words: Sequence[Sequence[str]],
    num_steps: int,
    size: int = 16,
    threshold: float = 0.3,
    start: float = 0.2,
) -> LocalBlend:
    """LocalBlend of b pairs: where each pair's words look is where the target may change.

    source_words, target_words: the blended words of each prompt. start: the share of `num_steps` before it acts.

    Raises:
        ValueError: a word that its prompt does not have.
    """
    rows = [word_mask(tokenize, *pair) for pair in zip(sources, source_words, strict=True)]
    rows += [word_mask(tokenize, *pair) for pair in zip(targets, target_words, strict=True)]
    start_step = int(start * num_steps + 1e-9)
    return LocalBlend(words=jnp.asarray(np.stack(rows)), size=size, threshold=threshold, start_step=start_step)
