"""Words of the command line as values, and what is said of words that are none."""

from pathlib import Path

import pytest

from peregrine.cli.parse import (
    existing_file,
    parse_batches,
    parse_pairs,
    parse_precisions,
    parse_size_mb,
)
from peregrine.errors import OptionError
from peregrine.types import Precision


@pytest.mark.parametrize(
    ("text", "mib"),
    [("500", 500), ("500MB", 500), ("4GiB", 4096), (" 2 g ", 2048), ("512k", 0.5), ("1TB", 2**20)],
)
def test_sizes(text, mib):
    assert parse_size_mb(text) == mib


@pytest.mark.parametrize("text", ["much", "", "-1GB", "0", "nan", "3 parsecs"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError) as caught:
        parse_size_mb(text)
    assert caught.value.fix


def test_batches_come_once_in_the_order_given():
    assert parse_batches("8,1, 32,8") == (8, 1, 32)
    with pytest.raises(OptionError, match="one"):
        parse_batches("one")


def test_precisions_come_once_in_the_order_given():
    assert parse_precisions("fp16, fp32,fp16") == (Precision.FP16, Precision.FP32)
    with pytest.raises(OptionError) as caught:
        parse_precisions("fp31")
    assert "fp32" in caught.value.fix
    assert parse_precisions("auto") == ("auto",)
    with pytest.raises(OptionError):
        parse_precisions("auto,fp16")


def test_pairs():
    assert parse_pairs(["width=320", "steps=8"], "--dim", int) == {"width": 320, "steps": 8}
    assert parse_pairs(["cosine=0.5"], "--threshold", float) == {"cosine": 0.5}


@pytest.mark.parametrize("pair", ["width", "width=", "width=wide"])
def test_what_is_no_pair(pair):
    with pytest.raises(OptionError) as caught:
        parse_pairs([pair], "--dim", int)
    assert "--dim" in caught.value.fix


def test_a_file_is_named_in_full(tmp_path, monkeypatch):
    (tmp_path / "feeds.npz").touch()
    monkeypatch.chdir(tmp_path)
    assert existing_file(Path("feeds.npz")) == str(tmp_path / "feeds.npz")
    with pytest.raises(OptionError, match=r"other\.npz"):
        existing_file(Path("other.npz"))
