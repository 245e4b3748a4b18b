import collections
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_msa.data.mmsa_pickle import PickleSource
from hf_msa.data.pickles import read_pickle
from hf_msa.data.schema import msa_features
from hf_msa.errors import MsaError
from pickle_factory import mmsa, mmsa_split, write

ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["f4", "f8", ">f4", "f2", "i8", "i4", "u1", "?", "U5", "S3", "c8"]),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
)


# --- What may be read ---


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=ARRAYS, protocol=st.integers(2, 5), fortran=st.booleans())
def test_arrays_come_back_as_they_were(tmp_path, array, protocol, fortran):
    array = np.asfortranarray(array) if fortran else array
    (back,) = read_pickle(write(tmp_path / "x.pkl", [array], protocol))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_containers_scalars_and_strings_come_back(tmp_path, protocol):
    content = {
        "a": [1, 2.5, None, True, "ü", b"\xff\x00"],
        "b": (1, [2, {"c": {3}}]),
        "scalars": [np.float32(0.1), np.int64(7), np.str_("x"), np.bool_(True)],
        "objects": np.array(["text", "längerer text", None, np.float32(2)], dtype=object),
        "ordered": collections.OrderedDict(x=1),
        "bytes": bytearray(b"abc"),
        "frozen": frozenset({1}),
    }
    back = read_pickle(write(tmp_path / "x.pkl", content, protocol))
    np.testing.assert_array_equal(back.pop("objects"), content.pop("objects"))
    assert back == content
    assert isinstance(back["scalars"][0], np.float32)


def test_module_paths_of_numpy_1_and_2_are_the_same(tmp_path):
    data = pickle.dumps(np.arange(3), protocol=2)
    assert b"numpy._core.multiarray" in data
    (tmp_path / "old.pkl").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_pickle(tmp_path / "old.pkl").tolist() == [0, 1, 2]


def test_bytes_of_python_2_are_read(tmp_path):
    # What Python 2 writes for np.array([1.0], "<f4"): the bytes are a STRING opcode.
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\n"
        b"dtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04"
        + struct.pack("<f", 1.0)
        + b"tb."
    )
    (tmp_path / "py2.pkl").write_bytes(data)
    back = read_pickle(tmp_path / "py2.pkl")
    assert back.dtype == np.float32
    assert back.tolist() == [1.0]


def test_a_container_that_holds_itself_is_walked_once(tmp_path):
    loop = [np.arange(2)]
    loop.append(loop)
    back = read_pickle(write(tmp_path / "x.pkl", loop))
    assert back[1] is back
    assert back[0].tolist() == [0, 1]


def test_shared_content_does_not_explode(tmp_path):
    bomb = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    back = read_pickle(write(tmp_path / "x.pkl", bomb))
    assert back[0] is back[1]


# --- What is refused ---

CANARY = "HF_MSA_TEST_CANARY"


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def refused(tmp_path, data, name):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(data)
    os.environ.pop(CANARY, None)
    with pytest.raises(MsaError, match="nothing was run") as caught:
        read_pickle(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CANARY not in os.environ
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_os_system_is_refused_by_name(tmp_path, protocol):
    data = pickle.dumps({"train": Calls(os.system, f"touch {tmp_path}/run")}, protocol=protocol)
    refused(tmp_path, data, f"{os.system.__module__}.system")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("builtins", "getattr.__call__"),
        ("builtins", "object"),
        ("builtins", "type"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "memmap"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__"),
        ("numpy.testing", "measure"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "os.system"),
        ("numpy._core.numeric", "fromfunction"),
        ("numpy.f2py.crackfortran", "myeval"),
        ("_codecs", "lookup"),
        ("copyreg", "_reconstructor"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("collections", "defaultdict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("hf_msa.data.pickles", "_encode"),
    ],
)
@pytest.mark.parametrize("form", ["GLOBAL", "STACK_GLOBAL"])
def test_every_other_name_is_refused(tmp_path, module, name, form):
    if form == "GLOBAL":
        data = b"c" + module.encode() + b"\n" + name.encode() + b"\n(Vtouch\ntR."
    else:
        strings = b"".join(pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name))
        data = b"\x80\x04" + strings + b"\x93(X\x01\x00\x00\x00xtR."
    refused(tmp_path, data, f"{module}.{name}")


def test_names_inside_an_object_array_or_behind_another_object_are_refused(tmp_path):
    call = Calls(os.putenv, CANARY, "1")
    refused(tmp_path, pickle.dumps(np.array([call], dtype=object)), "putenv")
    refused(tmp_path, pickle.dumps({"train": mmsa_split("train", 2), "x": [call]}), "putenv")


def broken(tmp_path, data):
    path = tmp_path / "broken.pkl"
    path.write_bytes(data)
    with pytest.raises(MsaError) as caught:
        read_pickle(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def array_of(shape, dtype, data):
    """The opcodes of an array: `shape` and `data` as opcodes, `dtype` as a type code."""
    code = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(dtype)) + dtype + b"tR"
    return b"\x80\x03" + EMPTY_ARRAY + b"(K\x01(" + shape + b"t" + code + b"\x89" + data + b"tb."


EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\x00tC\x01b\x87R"
ONE, HUGE, MINUS_ONE = b"K\x01", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"
EIGHT_BYTES = b"C\x08AAAAAAAA"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("foreign class", b"\x80\x03" + EMPTY_ARRAY.replace(b"cnumpy\nndarray", b"cbuiltins\nbytearray") + b"."),
        ("objects from bytes", array_of(ONE, b"O", EIGHT_BYTES)),
        ("more shape than bytes", array_of(HUGE, b"f4", EIGHT_BYTES)),
        ("negative shape", array_of(MINUS_ONE, b"f4", b"C\x00")),
        ("endless empty strings", array_of(HUGE, b"U0", b"C\x00")),
        ("structured dtype", array_of(ONE, b"f4,f4", EIGHT_BYTES)),
        ("characters beyond Unicode", array_of(ONE, b"U2", b"C\x08" + b"\xff" * 8)),
        ("dates", array_of(ONE, b"M8", EIGHT_BYTES)),
        ("codec that inflates", b"\x80\x03c_codecs\nencode\n(X\x01\x00\x00\x00xX\x04\x00\x00\x00zliptR."),
        ("bytearray of a size", b"\x80\x03cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR."),
        ("set of a string function", b"\x80\x03cbuiltins\nset\n(cnumpy\nndarray\ntR."),
        ("ndarray called", b"\x80\x03cnumpy\nndarray\n((J\xff\xff\xff\x7fttR."),
        ("function as data", b"\x80\x03cnumpy\ndtype\n."),
        ("dtype as data", b"\x80\x03cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR."),
        ("attribute set on a function", b"\x80\x03c_codecs\nencode\nN}X\x05\x00\x00\x00_callK\x01s\x86b."),
        ("state set on a function", b"\x80\x03cnumpy\ndtype\n}X\x05\x00\x00\x00_callK\x01sb."),
        ("new object of a function", b"\x80\x03cnumpy\nndarray\n)\x81."),
        ("persistent id", b"\x80\x03K\x01Q."),
        ("extension registry", b"\x80\x03\x82\x01."),
        ("out-of-band buffer", b"\x80\x05\x97."),
        ("memo that is not there", b"\x80\x03h\x05."),
        ("not a pickle", b"<html><body>404</body></html>"),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tricks_and_damage_are_one_sentence(tmp_path, what, data):
    broken(tmp_path, data)


def test_an_object_dtype_that_claims_plain_bytes_stays_inert(tmp_path):
    """numpy's own dtype state would make pointers of these bytes and crash the process."""
    state = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR" + state
    broken(tmp_path, b"\x80\x03" + EMPTY_ARRAY + b"(K\x01(K\x01t" + dtype + b"\x89" + EIGHT_BYTES + b"tb.")


def test_deep_nesting_is_refused(tmp_path):
    assert "deep" in broken(tmp_path, b"]" * 200 + b"a" * 199 + b".")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.01, 0.99), protocol=st.sampled_from([2, 4, 5]))
def test_a_truncated_file_is_named_as_such(tmp_path, share, protocol):
    whole = pickle.dumps(mmsa(), protocol=protocol)
    message = broken(tmp_path, whole[: max(int(len(whole) * share), 3)])
    assert "ends in the middle" in message


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_flipped_byte_never_gives_another_error(tmp_path, position, value):
    data = bytearray(pickle.dumps({"train": mmsa_split("train", 2, audio=(2, 2), vision=None)}, protocol=4))
    data[position % len(data)] = value
    path = tmp_path / "x.pkl"
    path.write_bytes(bytes(data))
    try:
        PickleSource(path)
    except MsaError:
        pass


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(MsaError, match="no file"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(MsaError, match="no file"):
        read_pickle(tmp_path)


# --- The MMSA schema ---


def rows_of(path):
    source = PickleSource(path)
    return source, {split: list(source.rows(split)) for split in source.splits}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    audio=st.none() | st.tuples(st.integers(1, 6), st.integers(1, 4)),
    vision=st.none() | st.tuples(st.integers(1, 6), st.integers(1, 4)),
    protocol=st.integers(2, 5),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_rows_have_true_lengths_for_any_shape(tmp_path, audio, vision, protocol, dtype):
    content = mmsa(audio=audio, vision=vision)
    for split in content.values():
        split.update({name: split[name].astype(dtype) for name in ("audio", "vision") if name in split})
    source, rows = rows_of(write(tmp_path / "x.pkl", content, protocol))
    shapes = {"audio": audio, "vision": vision}
    assert source.widths == {name: shape[1] for name, shape in shapes.items() if shape is not None}
    for split, raw in zip(("train", "validation", "test"), content.values(), strict=True):
        assert len(rows[split]) == len(raw["raw_text"])
        for index, row in enumerate(rows[split]):
            assert row["text"] == raw["raw_text"][index]
            assert row["label"] == raw["regression_labels"][index]
            for name in source.widths:
                np.testing.assert_array_equal(row[name], raw[name][index][: raw[f"{name}_lengths"][index]])
            assert ("audio" in row, "vision" in row) == (audio is not None, vision is not None)


def test_without_lengths_trailing_zero_frames_go_and_one_frame_stays(tmp_path):
    split = mmsa_split("train", 3, audio=(4, 2), vision=None)
    del split["audio_lengths"]
    split["audio"] = np.array([[[1, 0], [0, 0], [2, 2], [0, 0]], [[0, 0]] * 4, [[1, 1]] * 4], dtype=np.float32)
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [len(row["audio"]) for row in rows["train"]] == [3, 1, 4]
    assert "audio" in source.notes[0]
    assert not source.aligned


# --- Padding ---


def padded(arrays, frames, at_start):
    """Sequences (T, d) as one array, zeros after them or before them."""
    whole = np.zeros((len(arrays), frames, len(arrays[0][0])), dtype=np.float32)
    for index, array in enumerate(arrays):
        whole[index, slice(frames - len(array), None) if at_start else slice(len(array))] = array
    return whole


SEQUENCES = [[[1, 0], [2, 0]], [[3, 1], [0, 0], [4, 1]], [[5, 5]] * 5]


@pytest.mark.parametrize("has_lengths", [True, False])
@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("last_is_full", [True, False])
def test_padding_is_left_out_at_whichever_side_it_is(tmp_path, has_lengths, at_start, last_is_full):
    split = mmsa_split("train", 3, vision=None)
    split["audio"] = padded(SEQUENCES, 5 if last_is_full else 7, at_start)
    split["audio_lengths"] = [2, 3, 5]
    if not has_lengths:
        del split["audio_lengths"]
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [row["audio"].tolist() for row in rows["train"]] == SEQUENCES
    assert any("first" in note or "at the start" in note for note in source.notes) == at_start
    assert any("no lengths" in note for note in source.notes) != has_lengths


def test_the_side_is_that_of_the_file_and_not_of_a_silent_beginning(tmp_path):
    split = mmsa_split("train", 3, vision=None)
    split["audio"] = padded([[[0, 0], [0, 0], [1, 1]], [[2, 2]], [[3, 3], [4, 4]]], 3, False)
    del split["audio_lengths"]
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [len(row["audio"]) for row in rows["train"]] == [3, 1, 2]
    assert "1 samples have all-zero audio frames at the start alone, which were kept" in source.notes[1]


def test_frames_beyond_the_stored_length_are_counted(tmp_path):
    split = mmsa_split("train", 3, vision=None)
    split["audio"] = np.ones((3, 4, 2), dtype=np.float32)
    split["audio_lengths"] = [2, 4, 1]
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [len(row["audio"]) for row in rows["train"]] == [2, 4, 1]
    assert source.notes == [
        "2 samples have audio frames beyond their stored length that are not all zero; they were left out at the end."
    ]


# --- One array for each sample ---


def test_sequences_of_their_own_lengths_are_read(tmp_path):
    arrays = [np.full((frames, 3), frames, dtype=np.float32) for frames in (2, 5, 1, 3)]
    ragged = np.empty(4, dtype=object)
    ragged[:] = arrays
    equal = np.empty((4, 2, 3), dtype=object)
    equal[:] = 1.5
    for audio, lengths in ((ragged, [2, 5, 1, 3]), (arrays, [2, 5, 1, 3]), (equal, [2, 2, 2, 2])):
        split = mmsa_split("train", 4, vision=None) | {"audio": audio}
        del split["audio_lengths"]
        source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
        assert source.widths == {"audio": 3} and "audio_present" not in source.features
        assert [len(row["audio"]) for row in rows["train"]] == lengths
        assert source.notes == []


def test_a_trailing_zero_frame_of_a_sequence_of_its_own_length_is_kept(tmp_path):
    split = mmsa_split("train", 2, vision=None)
    split["audio"] = [np.array([[1.0], [0.0]]), np.array([[0.0]])]
    del split["audio_lengths"]
    _, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [row["audio"].tolist() for row in rows["train"]] == [[[1], [0]], [[0]]]


def test_samples_without_a_sequence_lack_the_modality(tmp_path):
    split = mmsa_split("train", 4, vision=None)
    split["audio"] = [[[1, 2], [3, 4]], None, [], np.zeros((0, 2))]
    del split["audio_lengths"]
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [row["audio_present"] for row in rows["train"]] == [True, False, False, False]
    assert rows["train"][0]["audio"].tolist() == [[1, 2], [3, 4]]
    assert "lacking that modality" in source.notes[0]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([np.ones((2, 3)), np.ones((2, 4))], "4 audio features per frame where others have 3"),
        ([np.ones(2), np.ones(3)], "sequences of one dimension"),
        ([np.ones(2), np.ones((3, 2))], "sequences of one dimension"),
        ([[[1, 2], [3]], [[1, 2]]], "with a sequence that is a list of something else"),
        ([[[1, "x"]], [[1, 2]]], "with a sequence that is a list of something else"),
        ([np.array([["x"]]), np.ones((1, 1))], "with a sequence of <U1"),
        ([None, None], "without a frame; leave it out"),
    ],
)
def test_sequences_that_do_not_fit_each_other_are_refused(tmp_path, audio, message):
    split = mmsa_split("train", 2, vision=None) | {"audio": audio}
    del split["audio_lengths"]
    with pytest.raises(MsaError, match=message):
        PickleSource(write(tmp_path / "x.pkl", {"train": split}))


# --- What is missing, and what is left out ---


def test_texts_and_annotations_that_are_missing_are_none(tmp_path):
    split = mmsa_split("train", 3, vision=None)
    split |= {"raw_text": ["a", None, float("nan")], "annotations": [None, "Positive", b"Negative"]}
    _, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [row["text"] for row in rows["train"]] == ["a", None, None]
    assert [row["annotation"] for row in rows["train"]] == [None, "Positive", "Negative"]


def test_a_missing_id_is_refused(tmp_path):
    split = mmsa_split("train", 2, vision=None) | {"id": ["v$_$1", None]}
    with pytest.raises(MsaError, match="Sample 1 of the split 'train' .*: A sample has no id"):
        rows_of(write(tmp_path / "x.pkl", {"train": split}))


def test_empty_optional_columns_and_unknown_keys_are_left_out_with_a_word(tmp_path):
    split = mmsa_split("train", 2, vision=None)
    split |= {f"regression_labels_{letter}": np.full(2, np.nan) for letter in "TAV"}
    split |= {"annotations": ["", None], "motion": np.zeros((2, 7, 4)), "emotion": ["a", "b"]}
    source = PickleSource(write(tmp_path / "x.pkl", {"train": split, "meta": {"made": "by hand"}}))
    assert source.features == msa_features(5)
    assert source.notes == [
        "No column is made of 'motion' of shape (2, 7, 4), 'emotion'; what it holds was left out.",
        "Beside the splits the file holds 'meta', which was left out.",
        "'regression_labels_T', 'regression_labels_A', 'regression_labels_V' has no value, and was left out.",
        "'annotations' has no value, and was left out.",
    ]


@pytest.mark.parametrize("name", ["val", "Test", "DEV", "training", b"valid"])
def test_names_of_splits_in_other_tools_are_known(tmp_path, name):
    assert len(PickleSource(write(tmp_path / "x.pkl", {name: mmsa_split("x", 2)})).splits) == 1


def test_a_split_of_an_unknown_name_is_not_dropped(tmp_path):
    with pytest.raises(MsaError, match="has the split 'eval', and only train, .* are known; rename it"):
        PickleSource(write(tmp_path / "x.pkl", mmsa() | {"eval": mmsa_split("x", 2)}))
    with pytest.raises(MsaError, match="it holds a single split or sample"):
        PickleSource(write(tmp_path / "y.pkl", mmsa_split("x", 2)))


def test_tensors_and_tables_are_refused_with_what_to_do(tmp_path):
    import pandas as pd
    import torch

    for content, advice in ((torch.ones(2), r"tensor\.numpy\(\)"), (pd.Series([1.0]), "to_numpy")):
        with pytest.raises(MsaError, match=f"nothing was run: it holds .*{advice}"):
            read_pickle(write(tmp_path / "x.pkl", {"train": {"audio": content}}))


def test_texts_of_python_2_are_utf_8(tmp_path):
    text = "很好".encode()
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02U" + bytes([len(text)]) + text + b".")
    assert read_pickle(tmp_path / "x.pkl") == "很好"


def test_alignment_is_seen(tmp_path):
    content = {"train": mmsa_split("train", 3, audio=(4, 2), vision=(4, 3))}
    for name in ("audio_lengths", "vision_lengths"):
        del content["train"][name]
    assert PickleSource(write(tmp_path / "a.pkl", content)).aligned
    content["train"] |= {"audio_lengths": [1, 2, 3], "vision_lengths": [1, 2, 3]}
    assert PickleSource(write(tmp_path / "b.pkl", content)).aligned
    content["train"]["vision_lengths"] = [1, 2, 4]
    assert not PickleSource(write(tmp_path / "c.pkl", content)).aligned


def test_a_length_of_zero_marks_the_modality_as_absent(tmp_path):
    split = mmsa_split("train", 3, audio=(4, 2), vision=None)
    split["audio_lengths"] = [2, 0, 4]
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [row["audio_present"] for row in rows["train"]] == [True, False, True]
    assert [len(row["audio"]) for row in rows["train"]] == [2, 1, 4]
    assert "audio_present" in source.features


def test_dev_is_validation_and_only_one_name_may_be_used(tmp_path):
    content = mmsa()
    content["dev"] = content.pop("valid")
    assert PickleSource(write(tmp_path / "x.pkl", content)).splits == ["train", "validation", "test"]
    with pytest.raises(MsaError, match="twice"):
        PickleSource(write(tmp_path / "y.pkl", {**content, "valid": content["dev"]}))


def test_unimodal_labels_of_sims_are_named_by_modality(tmp_path):
    split = mmsa_split("train", 2)
    split |= {
        f"regression_labels_{letter}": np.array([value, 0.0])
        for letter, value in zip("TAV", (0.1, 0.2, 0.3), strict=True)
    }
    source, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    row = rows["train"][0]
    assert (row["label_text"], row["label_audio"], row["label_vision"]) == (0.1, 0.2, 0.3)
    assert "label_vision" in source.features


def test_object_arrays_lists_columns_and_averaged_features_are_read(tmp_path):
    split = mmsa_split("train", 2, vision=None)
    split["raw_text"] = np.array(["a", "b"], dtype=object)
    split["annotations"] = ["x", "y"]
    split["regression_labels"] = split["regression_labels"].reshape(2, 1)
    split["audio"] = split["audio"][:, 0]
    del split["audio_lengths"]
    _, rows = rows_of(write(tmp_path / "x.pkl", {"train": split}))
    assert [row["text"] for row in rows["train"]] == ["a", "b"]
    assert [row["annotation"] for row in rows["train"]] == ["x", "y"]
    assert rows["train"][0]["audio"].shape == (1, 5)
    assert float(rows["train"][1]["label"]) == 3.0


def change(**columns):
    def apply(split):
        for name, value in columns.items():
            if value is None:
                del split[name]
            else:
                split[name] = value

    return apply


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (change(raw_text=None), "transcripts are needed"),
        (change(id=None), "has no 'id'"),
        (change(regression_labels=None, labels=np.zeros((6, 1, 1))), "older MulT / MMIM schema"),
        (change(regression_labels=None), "has no 'regression_labels'"),
        (change(regression_labels=np.zeros(5)), "6 transcripts but 5 of 'regression_labels'"),
        (change(audio=np.zeros((5, 7, 5), "f4")), "6 transcripts but 5 of 'audio'"),
        (change(audio=np.zeros((6, 7, 6), "f4")), "audio features per frame"),
        (change(audio=np.zeros((6, 0, 5), "f4")), "without a frame"),
        (change(audio=[1, 2]), "with a sequence that is a int"),
        (change(audio=np.array([["a"] * 2] * 6)), "numbers of shape"),
        (change(audio_lengths=[8, 1, 1, 1, 1, 1]), "'trainvideo0\\$_\\$0' has 8 frames, but its array has 7"),
        (change(audio_lengths=[1, -1, 1, 1, 1, 1]), "has -1 frames"),
        (change(audio_lengths=[1]), "1 of 'audio_lengths'"),
        (change(audio_lengths=["x"] * 6), "not numbers"),
        (change(vision=None), "has \\['audio'\\]|has \\['audio', 'vision'\\]"),
        (change(raw_text=[]), "no samples"),
        (change(annotations=3), "a int as 'annotations'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, alter, message):
    content = mmsa()
    alter(content["train"])
    with pytest.raises(MsaError, match=message) as caught:
        PickleSource(write(tmp_path / "x.pkl", content))
    assert "train" in str(caught.value) or "valid" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"a": 1}, "none of the splits"),
        ({"train": [("words", "v", "a")]}, "MMIM's own files"),
        (3.5, "holds a float"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    with pytest.raises(MsaError, match=message):
        PickleSource(write(tmp_path / "x.pkl", content))


def test_rows_of_a_split_let_its_arrays_go(tmp_path):
    source = PickleSource(write(tmp_path / "x.pkl", mmsa()))
    assert len(list(source.rows("train"))) == 6
    assert "train" not in source._data


def test_real_files(real_data):
    source, rows = rows_of(real_data / "mosi" / "mosi_text_audio.pkl")
    assert {split: len(found) for split, found in rows.items()} == {"train": 1284, "validation": 229, "test": 686}
    assert source.widths == {"audio": 73}
    source, rows = rows_of(real_data / "mosi" / "mosi_valid_aligned_sequences.pkl")
    assert source.aligned
    assert {len(row["audio"]) == len(row["vision"]) for row in rows["validation"]} == {True}
    assert max(len(row["audio"]) for row in rows["validation"]) == 44


def test_a_length_beyond_the_file_is_no_allocation(tmp_path):
    broken(tmp_path, b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50))
