import numpy as np
import pytest

from sdd_jax.sampling.prompt_alignment import (
    align,
    local_blend,
    prompt_to_prompt,
    refinement,
    replacement,
    word_mask,
    word_tokens,
)

N, START, END, PAD = 12, 1, 2, 0


def tokenize(texts):
    """Words in pieces of three letters, a comma a piece of its own: [start, pieces, end, padding]."""
    rows = np.full((len(texts), N), PAD)
    for row, text in zip(rows, texts, strict=True):
        pieces = []
        for word in text.split():
            bare = word.rstrip(",")
            pieces += [bare[i : i + 3] for i in range(0, len(bare), 3)] + [","] * (len(word) - len(bare))
        ids = [START, *(3 + int.from_bytes(piece.encode(), "big") for piece in pieces)][: N - 1] + [END]
        row[: len(ids)] = ids
    return rows


def test_a_words_tokens():
    assert word_tokens(tokenize, "a smiling lion, red") == [[1], [2, 3, 4], [5, 6, 7], [8]]
    assert word_tokens(tokenize, "") == []
    np.testing.assert_array_equal(
        np.flatnonzero(word_mask(tokenize, "a smiling lion, red", ["lion", "A"])), [1, 5, 6, 7]
    )
    with pytest.raises(ValueError, match="'tiger' is not in the prompt"):
        word_mask(tokenize, "a lion", ["tiger"])


@pytest.mark.parametrize(
    "source, target, partner",
    [
        ([1, 5, 6, 2], [1, 5, 6, 2], [0, 1, 2, 3]),
        ([1, 5, 6, 2], [1, 5, 9, 6, 2], [0, 1, -1, 2, 3]),
        ([1, 5, 9, 6, 2], [1, 5, 6, 2], [0, 1, 3, 4]),
        ([1, 5, 2], [1, 7, 2], [0, -1, 2]),
        ([1, 5, 6, 2], [1, 8, 5, 6, 7, 2], [0, -1, 1, 2, -1, 3]),
    ],
)
def test_alignment_by_hand(source, target, partner):
    assert align(source, target).tolist() == partner


def test_alignment_finds_as_many_matches_as_the_longest_common_subsequence():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(0, 4, 8).tolist(), rng.integers(0, 4, 7).tolist()
        longest = np.zeros((9, 8), int)
        for i, j in np.ndindex(8, 7):
            same = longest[i, j] + 1 if a[i] == b[j] else 0
            longest[i + 1, j + 1] = max(longest[i, j + 1], longest[i + 1, j], same)
        partner = align(a, b)
        matched = partner[partner >= 0]
        assert len(matched) == longest[-1, -1] and (np.diff(matched) > 0).all()
        assert all(a[i] == b[j] for j, i in enumerate(partner) if i >= 0)


def test_refinement_keeps_old_words_and_padding_and_frees_new_ones():
    mapper, keep = refinement(tokenize, "a red cat", "a big red cat")
    assert keep.tolist() == [1, 1, 0, 1, 1, 1] + [1] * 6
    columns = {j: np.flatnonzero(mapper[:, j]).tolist() for j in range(N)}
    assert columns == {0: [0], 1: [1], 2: [], 3: [2], 4: [3], 5: [4], **{j: [j - 1] for j in range(6, N)}}
    back, keep = refinement(tokenize, "a big red cat", "a red cat")
    assert keep.all() and np.flatnonzero(back[:, N - 1]).tolist() == [N - 1]
    assert {j: np.flatnonzero(back[:, j]).tolist() for j in (2, 3, 4, 5)} == {2: [3], 3: [4], 4: [5], 5: [6]}
    assert refinement(tokenize, "a red cat", "a red cat")[0].tolist() == np.eye(N).tolist()


def test_replacement_keeps_the_sum_of_a_words_maps():
    mapper, keep = replacement(tokenize, "a cat here", "a squirrel here")
    assert keep.all() and np.flatnonzero(mapper[2]).tolist() == [2, 3, 4] and np.allclose(mapper[2, 2:5], 1 / 3)
    assert mapper[3, 5] == mapper[4, 6] == 1, "'here' moves by two tokens"
    assert mapper[5, 7] == mapper[6, 8] == 1, "the end of text and padding move along"
    maps = np.random.default_rng(0).random(N)
    maps[7:] = 0
    np.testing.assert_allclose((maps @ mapper).sum(), maps.sum(), rtol=1e-6)
    assert replacement(tokenize, "a cat", "a dog")[0].tolist() == np.eye(N).tolist()
    with pytest.raises(ValueError, match="use refinement"):
        replacement(tokenize, "a cat", "a big cat")


def test_a_control_of_two_pairs():
    control = prompt_to_prompt(
        tokenize, ["a cat", "a cat"], ["a dog", "a big cat"], 4, cross=0.3, self_=0.6, emphasis={"big": 3.0}
    )
    assert control.mapper.shape == (2, N, N) and (control.cross_steps, control.self_steps) == (1, 2)
    np.testing.assert_array_equal(control.keep[0], 1.0)
    np.testing.assert_array_equal(np.flatnonzero(control.keep[1] == 0), [2])
    np.testing.assert_array_equal(control.equalizer[0], 1.0)
    assert control.equalizer[1].tolist() == [1, 1, 3] + [1] * 9
    with pytest.raises(ValueError, match=r"\['blue'\] are in no target prompt"):
        prompt_to_prompt(tokenize, ["a cat"], ["a dog"], 4, emphasis={"blue": 2.0})


def test_the_blended_words_of_both_prompts():
    blend = local_blend(tokenize, ["a cat"], ["a big dog"], [["cat"]], [["big", "dog"]], 50)
    assert [np.flatnonzero(row).tolist() for row in np.asarray(blend.words)] == [[2], [2, 3]]
    assert (blend.start_step, blend.threshold, blend.size) == (10, 0.3, 16)
