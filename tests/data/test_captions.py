"""Listings of captions: what they may hold, and one line for each that holds anything else."""

import pytest
from test_sources import SIZE, make_folder

from sdd_jax.command import is_ours
from sdd_jax.data.sources import ImageData, open_source
from sdd_jax.data.sources.captions import read_listing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", "line 1: not JSON"),
        ("[1]", "line 1: not a JSON object"),
        ('{"file_name": "000.png"}', "none of text, caption, captions, prompt among file_name"),
        ('{"text": "x"}', "none of file_name"),
        ('{"file_name": 3, "text": "x"}', "the file's name is 3"),
        ('{"file_name": "000.png", "text": 3}', "a caption is 3, not a text"),
        ('{"file_name": "../000.png", "text": "x"}', "not a file inside"),
        ('{"file_name": "/etc/passwd.png", "text": "x"}', "not a file inside"),
        ("", "lists no images"),
        ("[" * 10**5, "line 1: not JSON .nested too deep"),
        ('{"file_name": "%s.png", "text": "x"}' % ("a" * 400), "aaa.png: no such image, one of 1 that"),
        ('{"file_name": "none.png", "text": "x"}', "none.png: no such image, one of 1 that"),
    ],
)
def test_a_bad_listing_is_one_line(tmp_path, content, message):
    root = make_folder(tmp_path / "x", "none", 1)
    (root / "metadata.jsonl").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_source(ImageData(path=str(root), size=SIZE))
    assert is_ours(error.value) and "\n" not in str(error.value) and "metadata.jsonl" in str(error.value)


def test_listings_take_lists_and_other_columns(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": ["one", " two "]}\n' * 2)
    assert read_listing(tmp_path / "metadata.jsonl") == [("a.png", ("one", "two", "one", "two"))]
    (tmp_path / "captions.csv").write_text('\ufeff,image,blip\n0,"a, b.png",x\n1,c.png,\n', encoding="utf-8")
    assert read_listing(tmp_path / "captions.csv", "blip") == [("a, b.png", ("x",)), ("c.png", ())]
    with pytest.raises(ValueError, match="line 2: none of text"):
        read_listing(tmp_path / "captions.csv")
