"""The embedded world: every attribute is drawn, named and changed alone; the ground truth agrees with the picture."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from sdd_jax.data import portraits
from sdd_jax.data.portraits import VOCABULARY, Portrait, counterfactual, portrait, render


def variant(index: int, **values: str) -> Portrait:
    changed = portrait(index)
    for attribute, value in values.items():
        changed = counterfactual(changed, attribute, value)
    return changed


def grown(mask: np.ndarray, by: int = 2) -> np.ndarray:
    """Pixels within `by` of a mask's support, in the maximum norm."""
    padded = np.pad(mask > 0, by)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(2 * by + 1) for x in range(2 * by + 1)]
    return np.logical_or.reduce(shifts)


def changed_pixels(a: Portrait, b: Portrait) -> np.ndarray:
    return (portraits.image(a) != portraits.image(b)).any(axis=-1)


def test_same_index_same_picture_in_any_order() -> None:
    forward = [portraits.image(i) for i in range(8)]
    backward = [portraits.image(i) for i in reversed(range(8))][::-1]
    assert all((a == b).all() for a, b in zip(forward, backward, strict=True))
    assert all((forward[i] != forward[j]).any() for i in range(8) for j in range(i))
    assert forward[0].shape == (64, 64, 3) and forward[0].dtype == np.uint8
    assert portrait(5) == portrait(5) and portrait(5) != portrait(6)


def test_image_alone_equals_the_rendered_image() -> None:
    for index in range(12):
        assert (portraits.image(index) == render(portrait(index)).image).all()


def test_splits_are_disjoint_and_large() -> None:
    train, heldout = portraits.split_indices("train"), portraits.split_indices("heldout")
    assert len(train) >= 1_000_000 and len(heldout) == 10_000
    assert max(train) < min(heldout) or max(heldout) < min(train)


def test_attributes_are_uniform_and_nuisance_fills_its_ranges() -> None:
    drawn = [portrait(i) for i in range(1200)]
    labels = np.stack([portraits.labels(p.attributes) for p in drawn])
    for column, values in zip(labels.T, VOCABULARY.values(), strict=True):
        share = np.bincount(column, minlength=len(values)) / len(drawn)
        assert np.abs(share - 1 / len(values)).max() < 0.07
    correlation = np.corrcoef(labels.T)
    assert np.abs(correlation - np.eye(len(VOCABULARY))).max() < 0.12
    for name, (low, high) in portraits.RANGES.items():
        spread = np.array([getattr(p.nuisance, name) for p in drawn])
        assert low <= spread.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < spread.max() <= high


@pytest.mark.parametrize("attribute", VOCABULARY)
def test_counterfactual_changes_one_attribute_and_shows(attribute: str) -> None:
    for index in range(6):
        base = portrait(index)
        pictures = []
        for value in VOCABULARY[attribute]:
            other = counterfactual(base, attribute, value)
            assert other.nuisance == base.nuisance and other.index == base.index
            assert {**vars(other.attributes), attribute: None} == {**vars(base.attributes), attribute: None}
            pictures.append(portraits.image(other).astype(int))
        for i in range(len(pictures)):
            for j in range(i):
                difference = np.abs(pictures[i] - pictures[j]).max(axis=-1)
                assert (difference > 60).sum() >= 12, (index, VOCABULARY[attribute][i], VOCABULARY[attribute][j])
    assert counterfactual(base, attribute, getattr(base.attributes, attribute)) == base


@pytest.mark.parametrize("species", VOCABULARY["species"])
def test_accessory_and_expression_and_weather_change_only_their_parts(species: str) -> None:
    for index in range(3):
        bare = variant(index, species=species, accessory="none", weather="clear")
        for value in ("glasses", "hat"):
            worn = counterfactual(bare, "accessory", value)
            allowed = grown(render(worn).masks["accessory"])
            assert not (changed_pixels(bare, worn) & ~allowed).any()
        neutral, surprised = (counterfactual(bare, "expression", e) for e in ("neutral", "surprised"))
        a, b = render(neutral), render(surprised)
        face = grown(np.stack([r.masks[m] for r in (a, b) for m in ("eyes", "mouth")]).sum(axis=0))
        top, bottom = np.flatnonzero(a.masks["eyes"].any(axis=1))[[0, -1]]
        face[max(0, top - 12) : bottom] = True  # the brows, which belong to no mask
        assert not (changed_pixels(neutral, surprised) & ~face).any()
        snowing = counterfactual(bare, "weather", "snowing")
        fallen = changed_pixels(bare, snowing)
        assert 0.05 < fallen.mean() < 0.2
        assert (render(bare).depth == render(snowing).depth).all()


def test_background_leaves_the_bust_alone_and_hair_stays_in_its_parts() -> None:
    for index in range(8):
        base = variant(index, weather="clear")
        for value in VOCABULARY["background"]:
            other = counterfactual(base, "background", value)
            bust = render(other).masks["background"] == 0
            assert bust.mean() > 0.3 and not (changed_pixels(base, other) & bust).any()
        human = variant(index, species="human", weather="clear", accessory="none", hair="black")
        red = counterfactual(human, "hair", "red")
        assert not (changed_pixels(human, red) & ~grown(render(red).masks["hair"], 1)).any()


def test_masks_lie_on_what_they_name() -> None:
    for index in range(10):
        plain = variant(index, species="bear", weather="clear", accessory="hat", hair="grey", expression="smiling")
        rendered = render(plain)
        image, masks = rendered.image.astype(int), rendered.masks
        assert set(masks) == set(portraits.PARTS)
        total = np.stack(list(masks.values())).sum(axis=0)
        assert total.max() < 1.001 and min(m.min() for m in masks.values()) >= 0
        hat = image[masks["accessory"] > 0.99]
        purple_or_band = (hat[:, 2] - hat[:, 1] > 20) | (hat[:, 0] - hat[:, 2] > 60)
        assert len(hat) > 150 and purple_or_band.mean() > 0.9
        fur = image[masks["hair"] > 0.99]
        assert np.median(fur.max(axis=1) - fur.min(axis=1)) < 30
        assert (image[masks["eyes"] > 0.99].min(axis=1) > 200).any()
        mouth = image[masks["mouth"] > 0.99]
        assert (mouth[:, 0] - mouth[:, 1] > 80).any() and (mouth.min(axis=1) > 200).any()


@pytest.mark.parametrize("species", VOCABULARY["species"])
def test_pose_moves_the_mouth_by_a_good_part_of_the_head(species: str) -> None:
    def mouth_column(pose: str) -> float:
        mask = render(variant(3, species=species, pose=pose, expression="neutral")).masks["mouth"]
        return float((mask.sum(axis=0) * np.arange(64)).sum() / mask.sum())

    left, front, right = (mouth_column(pose) for pose in ("left", "front", "right"))
    assert front - left > 4.5 and right - front > 4.5


def test_depth_is_near_on_the_nose_and_far_behind() -> None:
    for index in range(10):
        rendered = render(portrait(index))
        assert rendered.depth.dtype == np.float32
        assert rendered.depth.min() >= 0 and rendered.depth.max() <= 1
        behind = rendered.depth[rendered.masks["background"] == 1].max()
        assert rendered.depth[rendered.masks["eyes"] > 0.99].min() > behind + 0.2


@pytest.mark.parametrize("axis", [0, 1])
def test_edges_of_a_step_are_one_thin_line(axis: int) -> None:
    step = np.zeros((32, 32, 3), np.uint8)
    step[16:] = 200
    step = step if axis == 0 else step.transpose(1, 0, 2)
    found = portraits.edges(step)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
    lines = np.flatnonzero((found if axis == 0 else found.T).any(axis=1))
    assert len(lines) == 1 and lines[0] in (15, 16)
    assert (found > 0).sum() == 32


def test_edges_ignore_flat_and_faint_but_join_weak_to_strong() -> None:
    assert not portraits.edges(np.full((16, 16), 90, np.uint8)).any()
    faint = np.zeros((16, 16), np.uint8)
    faint[8:] = 18
    assert not portraits.edges(faint).any()
    fading = np.zeros((16, 48), np.uint8)
    fading[8:] = np.linspace(60, 18, 48)
    assert portraits.edges(fading)[6:10, 40].any()


def test_canonical_caption_names_every_attribute_and_reads_back() -> None:
    for index in range(600):
        attributes = portrait(index).attributes
        text = portraits.caption(attributes)
        assert portraits.parse_caption(text) == vars(attributes), text
        assert text.isascii() and text == text.lower() and len(text.split()) <= 32


def test_random_captions_are_true_repeatable_and_leave_things_out() -> None:
    missing = dict.fromkeys(VOCABULARY, 0)
    texts = []
    for index in range(1500):
        individual = portrait(index)
        text = portraits.random_caption(individual)
        assert text == portraits.random_caption(individual)
        said = portraits.parse_caption(text)
        assert all(getattr(individual.attributes, name) == value for name, value in said.items()), text
        assert text.isascii() and text == text.lower() and len(text.split()) <= 32
        texts.append(text)
        for name in VOCABULARY:
            missing[name] += name not in said
    assert missing.pop("species") == 0
    assert all(0.08 < count / len(texts) < 0.19 for count in missing.values()), missing
    rng = np.random.default_rng(0)
    assert len({portraits.random_caption(portrait(0), rng) for _ in range(50)}) > 20


def test_corpus_covers_every_word_of_captions_and_instructions() -> None:
    words = set(portraits.all_words())
    for index in range(800):
        assert set(re.findall(r"[a-z]+", portraits.random_caption(portrait(index)))) <= words
    rng = np.random.default_rng(0)
    for attribute, values in VOCABULARY.items():
        for value in values:
            assert set(portraits.instruction(attribute, value, "dog", rng=rng).split()) <= words


def test_instructions_differ_by_value_and_name_what_they_change() -> None:
    for species in VOCABULARY["species"]:
        spoken = [portraits.instruction(a, v, species) for a, vs in VOCABULARY.items() for v in vs]
        assert len(set(spoken)) == len(spoken)
    assert portraits.instruction("species", "lion", "cat") == "turn the cat into a lion"
    assert "fur" in portraits.instruction("hair", "white", "bear")
    assert "hair" in portraits.instruction("hair", "white", "human")
    assert portraits.instruction("accessory", "none", "cat", previous="hat") == "remove the hat"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: portrait(-1),
        lambda: portraits.split_indices("test"),
        lambda: counterfactual(portrait(0), "shoes", "red"),
        lambda: counterfactual(portrait(0), "species", "horse"),
        lambda: portraits.instruction("species", "horse", "cat"),
    ],
)
def test_errors_say_what_to_use_instead(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="use "):
        wrong()
