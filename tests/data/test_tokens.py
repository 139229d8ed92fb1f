"""Token streams against the counts of the specification, the cache, and calibration windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.data import byte_count, calibration_windows, text, token_ids, tokens
from jaxlab.errors import InputError
from jaxlab.models.gguf import read_gguf
from jaxlab.models.packages import weight_file
from jaxlab.models.tokenizers import tokenizer_from_gguf


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_from_gguf(read_gguf(weight_file("smollm2")).metadata, source="smollm2")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sotu:calib", 551_867),
        ("sotu:valid", 54_704),
        ("sotu:test", 116_122),
        ("sotu:fresh", 15_003),
        pytest.param("moby", 312_006, marks=pytest.mark.slow),  # needs npm
    ],
)
def test_corpora_have_the_known_number_of_tokens(tokenizer, name, count):
    ids = token_ids(name, tokenizer)
    assert ids.dtype == np.int32
    assert ids.shape == (count,)


def test_test_stream_begins_as_known(tokenizer):
    known = [24405, 332, 32436, 28, 20605, 4267, 40406, 28, 16647, 282]
    assert token_ids("sotu:test", tokenizer)[:10].tolist() == known


def test_stream_is_cached_by_text_and_tokenizer(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "t.txt"
    file.write_text("One text.")
    first = token_ids(file, tokenizer)
    assert first.tolist() == tokenizer("One text.", add_special_tokens=False)["input_ids"]
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1

    def fail(*arguments):
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(tokens.np, "array", fail)
        np.testing.assert_array_equal(token_ids(file, tokenizer), first)
    file.write_text("Another text.")
    assert token_ids(file, tokenizer).tolist() != first.tolist()
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


def test_no_special_token_is_put_in_front(tmp_path):
    from toy_tokenizer import toy_tokenizer

    toy = toy_tokenizer()
    (tmp_path / "t.txt").write_text("w5 w6")
    assert token_ids(tmp_path / "t.txt", toy).tolist() == [5, 6]


def test_bytes_of_the_whole_stream_are_those_of_the_text(tokenizer):
    assert byte_count(token_ids("sotu:fresh", tokenizer), tokenizer) == len(text("sotu:fresh").encode())
    assert byte_count(np.array([[2, 504], [3575, 2]], np.int32), tokenizer) == len("The capital")


@given(
    length=st.integers(8, 50),
    context=st.integers(2, 8),
    count=st.integers(1, 9),
    seed=st.integers(0, 9),
    bos=st.booleans(),
)
def test_windows_are_pieces_of_the_stream(length, context, count, seed, bos):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    windows = calibration_windows(ids, context=context, count=count, seed=seed, bos_id=7 if bos else None)
    assert windows.shape == (count, context)
    assert windows.dtype == np.int32
    if bos:
        assert (windows[:, 0] == 7).all()
        windows = windows[:, 1:]
    assert (np.diff(windows, axis=1) == 1).all()
    assert windows.min() >= 100
    assert windows.max() < 100 + length


def test_offsets_are_uniform_over_all_positions_and_follow_the_seed():
    ids = np.arange(13, dtype=np.int32)
    starts = calibration_windows(ids, context=4, count=20_000, seed=1)[:, 0]
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)
    again = calibration_windows(ids, context=4, count=20_000, seed=1)[:, 0]
    other = calibration_windows(ids, context=4, count=20_000, seed=2)[:, 0]
    np.testing.assert_array_equal(starts, again)
    assert (starts != other).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0, "count": 1}, "context is 0, expected at least 1"),
        ({"context": 1, "count": 1, "bos_id": 2}, "context is 1, expected at least 2"),
        ({"context": 4, "count": 0}, "count is 0"),
        ({"context": 11, "count": 1}, "the text has 10 tokens, fewer than one window of 11"),
    ],
)
def test_impossible_windows_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        calibration_windows(np.arange(10, dtype=np.int32), seed=0, **options)


def test_window_may_be_the_whole_text():
    ids = np.arange(10, dtype=np.int32)
    np.testing.assert_array_equal(calibration_windows(ids, context=10, count=2, seed=0), np.stack([ids, ids]))
