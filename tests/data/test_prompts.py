"""Prompt templates: filled, checked, and read back as edits."""

import dataclasses

import numpy as np
import pytest

from sdd_jax.data import portraits
from sdd_jax.data.prompts import (
    FOLDER_FIELDS,
    PORTRAIT_FIELDS,
    check_template,
    edit_of,
    edits_of,
    fill,
    literal,
    portrait_fields,
    prompted,
)

LION = portraits.Attributes(
    species="lion",
    hair="red",
    expression="neutral",
    accessory="hat",
    pose="front",
    background="field",
    weather="snowing",
)


def index_of(**wanted):
    """The first portrait that has these attributes."""
    return next(
        i for i in range(10_000) if all(getattr(portraits.portrait(i).attributes, k) == v for k, v in wanted.items())
    )


def test_a_template_speaks_of_each_portrait():
    template = "a photo of a {species} with white {coat}, {pose}"
    lion, human = index_of(species="lion", pose="left"), index_of(species="human", pose="front")
    assert fill(template, {"index": lion}) == "a photo of a lion with white fur, facing left"
    assert fill(template, {"index": human}) == "a photo of a human with white hair, front view"
    assert fill("{caption}, smiling", {"caption": "a dog", "index": 3}) == "a dog, smiling"
    assert fill("white fur", {"index": lion}) == "white fur"


def test_every_field_is_the_vocabularys_first_phrase():
    assert tuple(portrait_fields(LION)) == PORTRAIT_FIELDS
    whole = "a photo of a {expression} {species} with {hair} {coat}, {accessory}, {pose}, {background}, {weather}"
    assert whole.format(**portrait_fields(LION)) == portraits.caption(LION)


def test_a_template_tells_its_edit():
    assert edits_of("a photo of a {species} with white {coat}", LION) == {"hair": "white"}
    assert edits_of("a photo of a {species} with white {coat}", dataclasses.replace(LION, hair="white")) == {}
    assert edits_of("an angry {species}, {background}", LION) == {"expression": "angry"}
    assert edits_of("side view to the left of a {species}", LION) == {"pose": "left"}


@pytest.mark.parametrize(
    ("template", "edit"),
    [
        ("a photo of a {species} with white {coat}", "hair=white"),
        ("a photo of an angry {species}", "expression=angry"),
        ("a photo of a {species}, facing left", "pose=left"),
    ],
)
def test_the_configs_templates_ask_for_one_edit(template, edit):
    assert edit_of(template) == edit


def test_templates_without_a_counterfactual():
    with pytest.raises(ValueError, match="changes expression=angry, hair=white: counterfactuals are known for one"):
        edit_of("an angry {species} with white {coat}")
    with pytest.raises(ValueError, match="changes nothing: counterfactuals are known"):
        edit_of("a photo of a {species}")
    assert literal("a photo of a {species} with white {coat}") == "a photo of a with white"


def test_records_carry_their_own_prompt():
    def tokenize(texts):
        return np.asarray([[len(text)] for text in texts])

    moments = np.arange(8, dtype=np.float16).reshape(4, 1, 1, 2)
    record = {"image": np.full((2, 2, 3), 255, np.uint8), "caption": "a dog", "position": 3}
    row = prompted(tokenize, "{caption}, angry")(record, np.random.default_rng(0))
    assert set(row) == {"image", "input_ids"} and row["input_ids"].tolist() == [12]
    np.testing.assert_array_equal(row["image"], 1.0)
    row = prompted(tokenize, "angry", moments, tokenize)(record, np.random.default_rng(0))
    assert set(row) == {"moments", "input_ids", "input_ids_2"} and row["input_ids_2"].tolist() == [5]
    np.testing.assert_array_equal(row["moments"], moments[3])
    assert row["moments"].dtype == np.float32


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        (" ", PORTRAIT_FIELDS, "the prompt is empty"),
        ("a {colour} cat", PORTRAIT_FIELDS, r"has a field \{colour\}; use \{species\}, \{hair\}"),
        ("a {species}", FOLDER_FIELDS, r"has a field \{species\}; use \{caption\}"),
        ("a {species cat", PORTRAIT_FIELDS, "for braces"),
        ("a {} cat", PORTRAIT_FIELDS, r"has a field \{\}"),
    ],
)
def test_a_template_that_cannot_be_filled(template, fields, message):
    with pytest.raises(ValueError, match=message):
        check_template(template, fields)


def test_a_prompt_without_fields_suits_anything():
    for fields in (PORTRAIT_FIELDS, FOLDER_FIELDS):
        check_template("white fur", fields)
