"""Grids put pixels where they belong, and PNGs give them back."""

import numpy as np
import pytest
from PIL import Image

from sdd_jax.images import make_grid, to_uint8, write_grid, write_png


def test_to_uint8_maps_the_ends_clips_and_inverts():
    np.testing.assert_array_equal(to_uint8(np.array([-1.0, 0.0, 1.0, 2.0, -3.0, np.nan])), [0, 128, 255, 255, 0, 0])
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(pixels / np.float32(127.5) - 1), pixels)
    np.testing.assert_array_equal(to_uint8(pixels), pixels)


def test_unlabelled_grid_is_the_images_with_gaps():
    rows = [np.random.default_rng(0).integers(256, size=(n, 4, 5, 3), dtype=np.uint8) for n in (3, 2)]
    grid = make_grid(rows)
    assert grid.shape == (4 + 2 + 4, 3 * 5 + 2 * 2, 3)
    np.testing.assert_array_equal(grid[6:10, 7:12], rows[1][1])
    assert (grid[:, 5:7] == 255).all() and (grid[6:, 14:] == 255).all()


def test_labels_take_a_margin_with_ink_and_leave_images_alone(tmp_path):
    row = np.full((2, 24, 24, 3), 7, np.uint8)
    write_grid(tmp_path / "samples" / "grid.png", [row, row], ["4 steps", "1"], ["a", "b"])
    grid = np.asarray(Image.open(tmp_path / "samples" / "grid.png"))
    sevens = np.argwhere((grid == 7).all(-1))
    assert len(sevens) == 4 * 24 * 24
    top, left = sevens.min(0)
    assert top > 0 and left > 0 and grid[:, :left].min() < 100 and grid[:top].min() < 100


def test_a_columns_label_may_have_several_lines():
    """One above the other, each as it is alone; a shorter one starts at the top."""
    row = np.full((2, 24, 24, 3), 7, np.uint8)
    one, two = (make_grid([row], columns=columns) for columns in (["a", "b"], ["a\nc", "b"]))
    line = len(two) - len(one)
    assert line > 5
    np.testing.assert_array_equal(two[:line], one[:line])
    assert two[line + 4 : -24, :24].min() < 100 and two[line + 4 : -24, 26:].min() == 255


def test_png_round_trip_in_colour_and_grey(tmp_path):
    for channels in (3, 1):
        image = np.random.default_rng(0).integers(256, size=(4, 6, channels), dtype=np.uint8)
        write_png(tmp_path / "x.png", image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")).reshape(image.shape), image)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_uneven_rows_are_one_line():
    with pytest.raises(ValueError, match="one size"):
        make_grid([np.zeros((1, 4, 4, 3)), np.zeros((1, 8, 8, 3))])
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        make_grid([np.zeros((1, 4, 4, 3))] * 2, ["x"])
