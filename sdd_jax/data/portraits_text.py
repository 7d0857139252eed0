"""The portraits' vocabulary and the small grammar that speaks it: captions and editing instructions.

Each value of each attribute has a few phrases, and no word that tells a value apart is shared with another value, so a
caption can be read back (`parse_caption`). A canonical caption names every attribute, in the first phrase of each:

    a photo of a smiling lion with white fur, wearing glasses, facing left, in a field, snowing

A random caption paraphrases, reorders, and leaves each attribute but the species out with probability 0.15, so that
partial prompts are in distribution. All text is lower-case ASCII of at most 32 words.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sdd_jax.data.portraits import Attributes, Portrait

VOCABULARY: dict[str, tuple[str, ...]] = {
    "species": ("human", "cat", "dog", "lion", "bear", "squirrel"),
    "hair": ("black", "brown", "blond", "red", "white", "grey"),
    "expression": ("neutral", "smiling", "angry", "surprised"),
    "accessory": ("none", "glasses", "hat"),
    "pose": ("front", "left", "right"),
    "background": ("sky", "field", "wall", "night"),
    "weather": ("clear", "snowing"),
}

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "species": {
        "human": ("human", "person"),
        "cat": ("cat",),
        "dog": ("dog",),
        "lion": ("lion",),
        "bear": ("bear",),
        "squirrel": ("squirrel",),
    },
    "hair": {
        "black": ("black",),
        "brown": ("brown",),
        "blond": ("blond", "golden"),
        "red": ("red", "ginger"),
        "white": ("white",),
        "grey": ("grey", "gray"),
    },
    "expression": {
        "neutral": ("neutral", "calm"),
        "smiling": ("smiling", "happy"),
        "angry": ("angry", "furious"),
        "surprised": ("surprised", "astonished"),
    },
    "accessory": {
        "none": ("without accessories", "with no accessories"),
        "glasses": ("wearing glasses", "with glasses", "in round spectacles"),
        "hat": ("wearing a hat", "with a hat on", "in a purple hat"),
    },
    "pose": {
        "front": ("front view", "facing the camera", "seen from the front"),
        "left": ("facing left", "looking to the left", "side view to the left"),
        "right": ("facing right", "looking to the right", "side view to the right"),
    },
    "background": {
        "sky": ("in front of the sky", "against a blue sky", "under the sky"),
        "field": ("in a field", "on a green field", "out in a meadow"),
        "wall": ("in front of a wall", "by a brick wall", "against a wall"),
        "night": ("at night", "under the stars", "in the dark night"),
    },
    "weather": {
        "clear": ("clear weather", "dry weather", "on a clear day"),
        "snowing": ("snowing", "in the snow", "while it snows"),
    },
}

# Words that tell a value, tried in order; "front" alone is not one, since walls are stood in front of.
_TELLING: dict[str, dict[str, str]] = {
    "species": {"human": "human|person", **{s: s for s in VOCABULARY["species"][1:]}},
    "hair": {v: f"(?:{'|'.join(words)}) (?:hair|fur)" for v, words in PHRASES["hair"].items()},
    "expression": {v: "|".join(words) for v, words in PHRASES["expression"].items()},
    "accessory": {"none": "without accessories|no accessories", "glasses": "glasses|spectacles", "hat": "hat"},
    "pose": {"front": "front view|facing the camera|from the front", "left": "left", "right": "right"},
    "background": {"sky": "sky", "field": "field|meadow", "wall": "wall", "night": "night|stars"},
    "weather": {"clear": "clear|dry", "snowing": "snow(?:s|ing)?"},
}

OPENINGS = ("a photo of", "a portrait of", "a picture of", "portrait of", "an image of", "")
KEEP = 0.85
CANONICAL = 0.15


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _coat(species: str) -> str:
    return "hair" if species == "human" else "fur"


def caption(attributes: Attributes) -> str:
    """The canonical caption: every attribute in its first phrase."""
    first = {name: PHRASES[name][getattr(attributes, name)][0] for name in VOCABULARY}
    subject = f"{_with_article(first['expression'] + ' ' + first['species'])} with {first['hair']}"
    tail = ", ".join(first[name] for name in ("accessory", "pose", "background", "weather"))
    return f"a photo of {subject} {_coat(attributes.species)}, {tail}"


def random_caption(portrait: Portrait, rng: np.random.Generator | None = None) -> str:
    """A paraphrase that may leave attributes out; without `rng`, a fixed one for each index."""
    if rng is None:
        rng = np.random.Generator(np.random.Philox(key=[portrait.index, 1]))
    attributes = portrait.attributes
    if rng.random() < CANONICAL:
        return caption(attributes)
    said = {}
    for name in VOCABULARY:
        options = PHRASES[name][getattr(attributes, name)]
        phrase = options[int(rng.random() * len(options))]
        if rng.random() < KEEP or name == "species":
            said[name] = phrase
    subject = said["species"]
    if "expression" in said and rng.random() < 0.8:
        subject = f"{said.pop('expression')} {subject}"
    subject = _with_article(subject)
    if "hair" in said:
        joint = ("with", "that has")[int(rng.random() < 0.2)]
        subject = f"{subject} {joint} {said['hair']} {_coat(attributes.species)}"
    opening = OPENINGS[int(rng.random() * len(OPENINGS))]
    tail = [said[name] for name in ("expression", "accessory", "pose", "background", "weather") if name in said]
    if rng.random() < 0.5:
        tail = [tail[i] for i in rng.permutation(len(tail))]
    return ", ".join([f"{opening} {subject}".strip(), *tail])


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that a caption names, attribute -> value; those it leaves out are missing."""
    found = {}
    for name, values in _TELLING.items():
        for value, pattern in values.items():
            if re.search(rf"\b(?:{pattern})\b", text):
                found[name] = value
                break
    return found


_EDITS: dict[str, dict[str, tuple[str, ...]]] = {
    "expression": {
        "neutral": ("make it look neutral", "give it a calm face"),
        "smiling": ("make it smile", "make it happy"),
        "angry": ("make it angry", "make it look furious"),
        "surprised": ("make it surprised", "make it look astonished"),
    },
    "accessory": {
        "none": ("remove the accessory",),
        "glasses": ("add glasses", "put glasses on it"),
        "hat": ("add a hat", "put a hat on it"),
    },
    "pose": {
        "front": ("look at the camera", "turn it to the front"),
        "left": ("look to the left", "turn it to the left"),
        "right": ("look to the right", "turn it to the right"),
    },
    "background": {
        "sky": ("put it in front of the sky", "change the background to the sky"),
        "field": ("put it in a field", "change the background to a field"),
        "wall": ("put it in front of a wall", "change the background to a wall"),
        "night": ("make it night", "change the background to the night"),
    },
    "weather": {"clear": ("make it stop snowing", "remove the snow"), "snowing": ("make it snow", "add snow")},
}


def _instructions(attribute: str, value: str, species: str, previous: str | None) -> tuple[str, ...]:
    if attribute == "species":
        return f"turn the {species} into {_with_article(value)}", f"make the {species} {_with_article(value)}"
    if attribute == "hair":
        coat = _coat(species)
        return f"give it {value} {coat}", f"make the {coat} {value}", f"change the {coat} to {value}"
    if attribute == "accessory" and value == "none" and previous in ("glasses", "hat"):
        return f"remove the {previous}", f"take off the {previous}"
    return _EDITS[attribute][value]


def instruction(
    attribute: str, value: str, species: str, *, previous: str | None = None, rng: np.random.Generator | None = None
) -> str:
    """Words for the edit `attribute -> value` of a portrait of `species`: "turn the cat into a lion".

    `previous` is the attribute's old value (names what is removed); `rng` picks a paraphrase, else the first is used.
    """
    if attribute not in VOCABULARY or value not in VOCABULARY[attribute]:
        raise ValueError(f"no instruction for {attribute}={value!r}; use an attribute and a value of VOCABULARY")
    options = _instructions(attribute, value, species, previous)
    return options[0 if rng is None else int(rng.random() * len(options))]


def caption_corpus() -> Iterator[str]:
    """Texts that between them hold every phrase of captions and instructions in context, for building a vocabulary."""
    for opening, (adjective, species) in itertools.product(
        OPENINGS,
        itertools.product(sum(PHRASES["expression"].values(), ()), sum(PHRASES["species"].values(), ())),
    ):
        yield f"{opening} {_with_article(f'{adjective} {species}')}".strip()
    colours = sum(PHRASES["hair"].values(), ())
    for joint, hair, coat in itertools.product(("with", "that has"), colours, ("hair", "fur")):
        yield f"{joint} {hair} {coat}"
    for name in ("accessory", "pose", "background", "weather"):
        for phrases in PHRASES[name].values():
            yield from (f", {phrase}," for phrase in phrases)
    for name, values in VOCABULARY.items():
        for value, species, previous in itertools.product(values, VOCABULARY["species"], (None, *values)):
            yield from _instructions(name, value, species, previous)


def all_words() -> tuple[str, ...]:
    """Every word of the corpus, sorted."""
    return tuple(sorted({word for text in caption_corpus() for word in re.findall(r"[a-z]+", text)}))
