import numpy as np
import pytest

from sdd_jax.data import portraits
from sdd_jax.data.edit_pairs import EDITS, difference_mask, edit_pairs, parse_edit


@pytest.fixture(scope="module")
def pairs():
    return edit_pairs(("accessory=hat", "weather=snowing"), 3)


def test_pairs_are_the_same_individual_with_one_attribute_changed(pairs):
    assert pairs.edits == ("accessory=hat",) * 3 + ("weather=snowing",) * 3
    assert pairs.image.shape == pairs.counterfactual.shape == (6, 64, 64, 3) and pairs.mask.shape == (6, 64, 64, 1)
    for i, edit in enumerate(pairs.edits):
        attribute, value = parse_edit(edit)
        source = portraits.portrait(int(pairs.index[i]))
        assert source.index in portraits.split_indices("heldout")
        assert getattr(source.attributes, attribute) != value
        before, after = (portraits.parse_caption(text[i]) for text in (pairs.source, pairs.target))
        assert after == {**before, attribute: value}
        assert pairs.labels[i].tolist() == portraits.labels(source.attributes).tolist()
        assert list(portraits.VOCABULARY)[pairs.attribute[i]] == attribute
        assert portraits.VOCABULARY[attribute][pairs.value[i]] == value
        np.testing.assert_array_equal(pairs.image[i], portraits.image(source) / np.float32(127.5) - 1)


def test_blocks_follow_each_other(pairs):
    later = edit_pairs(("accessory=hat",), 1, block=2)
    assert list(later.index) == [pairs.index[2]] and later.target == pairs.target[2:3]


def test_nothing_differs_outside_of_the_mask_and_a_hat_is_above_the_chin(pairs):
    differs = (pairs.image != pairs.counterfactual).any(-1)
    assert not differs[pairs.mask[..., 0] == 0].any() and differs.any((1, 2)).all()
    hats = pairs.mask[:3, ..., 0]
    assert 0.02 < hats.mean() < 0.6 and hats[:, -8:].sum() < 0.02 * hats.sum()


def test_a_mask_is_the_difference_widened():
    a, b = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)
    b[4, 0, 1] = 1
    mask = difference_mask(a, b, 2)[..., 0]
    want = np.zeros((9, 9))
    want[2:7, :3] = 1
    np.testing.assert_array_equal(mask, want)


def test_edits_are_known_and_counted():
    assert {parse_edit(edit)[0] for edit in EDITS} == {"hair", "expression", "accessory", "species", "weather"}
    for edit in ("hat", "accessory=crown", "mood=happy"):
        with pytest.raises(ValueError, match="is no edit of a portrait: give attribute=value, of species: human"):
            parse_edit(edit)
    with pytest.raises(ValueError, match="0 pairs of 9 edits"):
        edit_pairs(count=0)
