"""Pickles that would cost far more than their size are refused before they do."""

import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

from hf_msa.data.mmsa_pickle import PickleSource
from hf_msa.data.pickles import read_pickle
from hf_msa.errors import MsaError
from pickle_factory import mmsa_split, write

MEGABYTE = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
HUGE_KEYS = b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(1, 30_000))


def nested(depth):
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def objects(*values):
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04Nr\x00\x00\x00\x40.", "memo of gigabytes"),
        (b"Np1000000000\n.", "memo of gigabytes"),
        (b"\x80\x04}K\x01\x85" + b"2\x86" * 60 + b"K\x01s.", "neither a text nor a small number"),
        (b"\x80\x04\x8f(K\x01\x85" + b"2\x86" * 60 + b"\x90.", "neither a text nor a small number"),
        (b"\x80\x04(K\x01\x85" + b"2\x86" * 60 + b"\x91.", "neither a text nor a small number"),
        (b"\x80\x03cbuiltins\nset\n]K\x01\x85" + b"2\x86" * 60 + b"a\x85R.", "set of something else"),
        (b"\x80\x04}(" + HUGE_KEYS + b"u.", "neither a text nor a small number"),
        (b"\x80\x03c_codecs\nencode\nq\x00" + MEGABYTE + b"q\x01](" + b"h\x00h\x01\x85R" * 5000 + b"e.", "far more memory"),
        (b"\x80\x04(" + b"]" * 2_000_000 + b"t.", "far more memory|small pieces"),
        (b"\x80\x04(" + b"\x8f" * 2_000_000 + b"t.", "far more memory|small pieces"),
        (b"\x80\x04" + b"N0" * 2_000_000 + b"N.", "small pieces"),
        (b"\x80\x04]" + b"\x85" * 200_000 + b".", "nested too deep"),
        (b"\x80\x04\x8b" + struct.pack("<I", 1 << 20) + b"\x01" * (1 << 20) + b".", "many digits"),
        (b"L" + b"9" * 100_000 + b"L\n.", "many digits"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "ends in the middle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"N.", "ends in the middle"),
        (b"(iposix\nsystem\n.", "an object of 'posix system'|opcode INST"),
        (b"\x80\x02N)\x81.", "not a readable feature pickle"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"Pid\n.", "the opcode PERSID"),
        (b"\x80\x04h\x07.", "reference to nothing"),
        (b"\x80\x04a.", "without operands"),
        (b"\x80\x04\xff.", "opcode"),
        (b"", "ends in the middle"),
        (pickle.dumps({}) + pickle.dumps({}), "several objects in one file"),
    ],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_costs_anything(tmp_path, data, message):
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(MsaError, match=message) as error:
        read_pickle(path)
    assert time.perf_counter() - start < 2
    assert "\n" not in str(error.value)


def test_the_memory_of_a_refusal_is_less_than_twice_the_file(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(
        b"\x80\x03c_codecs\nencode\nq\x00" + MEGABYTE * 20 + b"q\x01](" + b"h\x00h\x01\x85R" * 500 + b"e."
    )
    tracemalloc.start()
    with pytest.raises(MsaError):
        read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size


@pytest.mark.parametrize(
    "key", ["raw_text", "id", "regression_labels", "annotations", "audio", "audio_lengths", "other"]
)
@pytest.mark.parametrize("bomb", [nested(40), objects(nested(40), 1), [nested(30)] * 2])
def test_nested_lists_are_no_column(tmp_path, key, bomb):
    split = mmsa_split("train", 2, vision=None) | {key: bomb}
    start = time.perf_counter()
    try:
        list(PickleSource(write(tmp_path / "x.pkl", {"train": split})).rows("train"))
        assert key == "other"
    except MsaError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("key", ["raw_text", "audio"])
def test_one_content_for_all_samples_does_not_fill_the_disk(tmp_path, key):
    split = mmsa_split("train", 2, vision=None)
    del split["audio_lengths"]
    big = np.ones((1000, 100)) if key == "audio" else "x" * 800_000
    names = [f"v{index}$_$1" for index in range(1000)]
    split |= {"raw_text": names, "id": names, "regression_labels": [0.5] * 1000, "annotations": names}
    split |= {"audio": [np.ones((1, 100))] * 1000, key: [big] * 1000}
    with pytest.raises(MsaError, match="far more memory than the file"):
        list(PickleSource(write(tmp_path / "x.pkl", {"train": split})).rows("train"))
