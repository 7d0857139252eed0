"""CLIP's byte-pair tokenizer: loading one, and training a small one.

A text is lower-cased and split into words, digits and punctuation; each is spelled as bytes, the last with `</w>`, and
merged greedily; `<|startoftext|> ... <|endoftext|>` surround it, then padding. The vocabulary's order is CLIP's: 256
bytes, 256 bytes with `</w>`, one token per merge, the two special tokens. So the end-of-text id is the largest and any
text can be spelled.

Files as transformers' `CLIPTokenizer` reads them: `vocab.json`, `merges.txt`, `tokenizer_config.json`,
`special_tokens_map.json`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "added_tokens.json",
)

log = logging.getLogger(__name__)


class Tokenizer:
    """list of str -> int32[b, n], padded to `max_length` = n and cut to it with one warning per tokenizer.

    Attributes:
      backend: transformers' CLIPTokenizer, for whoever needs pieces of words (`backend.tokenize`, `backend.decode`).
      directory: where its files are.
      max_length, vocab_size, eos_token_id, pad_token_id: ints.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.backend: Any = _backend(self.directory)
        self.max_length = int(self.backend.model_max_length)
        self.vocab_size = len(self.backend)
        self.eos_token_id = int(self.backend.eos_token_id)
        self.pad_token_id = int(self.backend.pad_token_id)
        self._warned = False

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns ids int32[len(texts), max_length]."""
        if isinstance(texts, str):
            raise ValueError(f"tokenize takes a list of texts, not one text: write [{texts!r}]")
        rows = np.full((len(texts), self.max_length), self.pad_token_id, np.int32)
        lengths = []
        for row, ids in zip(rows, self.backend(list(texts), verbose=False)["input_ids"] if texts else [], strict=True):
            lengths.append(len(ids))
            ids = ids if len(ids) <= self.max_length else [*ids[: self.max_length - 1], self.eos_token_id]
            row[: len(ids)] = ids
        if lengths and max(lengths) > self.max_length and not self._warned:
            self._warned = True
            text = texts[int(np.argmax(lengths))]
            log.warning("a text of %d tokens was cut to %d (said once): %.80r", max(lengths), self.max_length, text)
        return rows

    def save(self, out_dir: str | Path) -> None:
        """Copies the tokenizer's files into `out_dir`."""
        out_dir = Path(out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, out_dir / name)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads a CLIP tokenizer from a directory of its files.

    Raises:
      FileNotFoundError: `vocab.json` with `merges.txt`, and `tokenizer.json`, are all missing.
      ValueError: the files are not a CLIP tokenizer's.
    """
    return Tokenizer(directory)


def train_tokenizer(
    corpus: Iterable[str], vocab_size: int, out_dir: str | Path, model_max_length: int = 77
) -> Tokenizer:
    """Learns a byte-pair vocabulary from texts, writes the files to `out_dir` and loads them.

    Deterministic: the same texts give the same files. A corpus that runs out of pairs to merge gives fewer tokens than
    asked for, so size the text encoder by the returned `vocab_size`.

    Args:
      corpus: texts; only their words and how often they occur matter.
      vocab_size: at most this many tokens, at least 514 (bytes and special tokens).
      out_dir: the directory for the files; made if missing.
      model_max_length: ids per text, special tokens included.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [*characters, *(c + WORD_END for c in characters)]
    merge_count = vocab_size - len(spelled) - 2
    if merge_count < 0:
        raise ValueError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone are {len(spelled) + 2}")
    # CLIP's own text pipeline, so that training sees exactly the words that encoding will see
    pipeline = CLIPTokenizer().backend_tokenizer
    learner = Backend(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(spelled),
        initial_alphabet=characters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:merge_count]

    tokens = list(dict.fromkeys([*spelled, *("".join(pair) for pair in merges), START, END]))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": model_max_length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_json(out_dir / "vocab.json", {token: i for i, token in enumerate(tokens)})
    _write_json(out_dir / "tokenizer_config.json", config)
    _write_json(out_dir / "special_tokens_map.json", special)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out_dir / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_tokenizer(out_dir)


def _backend(directory: Path) -> Any:
    """Returns transformers' CLIPTokenizer for `directory`, with errors of one line."""
    from transformers import CLIPTokenizer

    plain = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not plain and not (directory / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{directory} holds no tokenizer: expected vocab.json + merges.txt or tokenizer.json")
    try:
        backend = CLIPTokenizer.from_pretrained(str(directory))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{directory} is not a CLIP tokenizer that transformers can read: {reason}") from error
    if backend.model_max_length > 10_000:
        raise ValueError(f"{directory}/tokenizer_config.json sets no model_max_length; Stable Diffusion's is 77")
    return backend


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
