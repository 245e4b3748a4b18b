"""Tables of OpenFace, openSMILE and pandas, and arrays: as many frames and features as there are, or one sentence."""

import io
import os
import time

import numpy as np
import pandas as pd
import pytest
import scipy.io

from hf_msa.data import mat_files
from hf_msa.data.feature_files import read_feature_file
from hf_msa.data.pickles import read_pickle
from hf_msa.errors import MsaError
from hf_msa.models.msa_audio_features import COVAREP74_COLUMNS
from hf_msa.models.msa_openface import FaceReport

NAN = float("nan")
AUS = ("AU01_r", "AU02_r")
OPENFACE = "frame, face_id, timestamp, confidence, success, AU01_r, AU02_r\n"


def read(tmp_path, text, name="a.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    table = read_feature_file(tmp_path / name)
    return table.values.tolist(), table.names


@pytest.mark.parametrize(
    ("text", "values", "names"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]], None),
        ("0,1,2\n0.5,1,2\n1.5,2,3\n", [[0.5, 1, 2], [1.5, 2, 3]], ("0", "1", "2")),
        (",0,1\n0,0.5,1\n1,0.25,3\n", [[0.5, 1], [0.25, 3]], ("0", "1")),
        (",a,b\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]], ("a", "b")),
        ("Unnamed: 0,a\n1,5\n2,6\n", [[5], [6]], ("a",)),
        (",0.5\n1.0,0.25\n", [[NAN, 0.5], [1, 0.25]], None),
        ("1,2,\n3,4,\n", [[1, 2], [3, 4]], None),
        ("a,b,\n1,2,\n3,4,\n", [[1, 2], [3, 4]], ("a", "b")),
        ("a,b\n1,2,\n3,4,\n", [[1, 2], [3, 4]], ("a", "b")),
        ("a,b,\n1,2\n", [[1, 2]], ("a", "b")),
        ("a,b\n1,\n2,\n", [[1, NAN], [2, NAN]], ("a", "b")),
        ("a,b\n-nan(ind),1\n2,1.#INF\n", [[NAN, 1], [2, float("inf")]], ("a", "b")),
        ("-nan(ind),1\n2,-1.#IND\n", [[NAN, 1], [2, NAN]], None),
        ("frame,0,1\n5,1,2\n", [[1, 2]], ("0", "1")),
        ("index,a\n0,1\n1,2\n", [[1], [2]], ("a",)),
        ("N/A,1\n2,null\n", [[NAN, 1], [2, NAN]], None),
        ("a,b\nnan,1\n,2\n", [[NAN, 1], [NAN, 2]], ("a", "b")),
        ("a\r1\r2\r", [[1], [2]], ("a",)),
        ("a\u2028b,c\n1,2\n", [[1, 2]], ("a\u2028b", "c")),
        (OPENFACE + "1, 0, 0.0, 0.98, 1, 0.5, -nan(ind)\n2, 0, 0.03, 0.98, 1, 0.25, 0\n", [[0.5, NAN], [0.25, 0]], AUS),
        ("name;frameTime;F0\n'x';0.0;1.5\n'x';0.1;2.5\n", [[1.5], [2.5]], ("F0",)),
        ('file,start,end,F0\n"a,b.wav",0 days,0 days 00:00:01,1.5\n', [[1.5]], ("F0",)),
        ("a\tb\n1\t2\n", [[1, 2]], ("a", "b")),
        ("1\r\n2\r\n\r\n", [[1], [2]], None),
    ],
)  # fmt: skip
def test_tables_have_the_frames_and_features_that_they_have(tmp_path, text, values, names):
    found, its_names = read(tmp_path, text)
    np.testing.assert_array_equal(found, values)
    assert its_names == names


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("columns", [None, ["AU01_r", "AU02_r", "AU04_r"]])
def test_what_pandas_writes_by_default_is_read(tmp_path, index, columns):
    table = pd.DataFrame(np.arange(12).reshape(4, 3) / 8, columns=columns)
    table.to_csv(tmp_path / "a.csv", index=index)
    np.testing.assert_array_equal(read_feature_file(tmp_path / "a.csv")[0], table.to_numpy())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", "its header has 2 cells, but row 2 1"),
        ("1,2\n3\n", "its first row has 2 cells, but row 2 1"),
        ("1,2\n3,4,5\n", "but row 2 3"),
        ("1,2\n\n3,4\n", "but row 2 0"),
        ("a,b\n1,x\n1,2\n", "'x' in row 2, column 'b', is not a number"),
        ("1,2\n1,x\n", "'x' in row 2, column 2, is not a number"),
        ("a,note\n1,x\n2,y\n", "'x' in row 2, column 'note', is not a number"),
        ("a;b\n1;0,5\n", "'0,5' in row 2, column 'b', is not a number"),
        ("1,x\n2,3\n", "1, x, has both numbers and words"),
        ("0,.5\n1,.6\n", "first column counts the rows"),
        ("0,5\n1,6\n", "first column counts the rows"),
        ("0\n0.5\n", "may be a header or a frame"),
        ("0,1\n1,1\n", "may be a header or a frame"),
        (",0,1\n5,1,1\n", "may be a header or a frame"),
        (",a\n5,1\n", "column 1 of its header has no name"),
        ("a,,b\n1,2,3\n", "column 2 of its header has no name"),
        ("a,a\n1,2\n", "'a' twice"),
        (OPENFACE + "1, 0, 0, 1, 1, 0.5, 1\n1, 0, 0, 1, 1, 0.5, 1\n", "'frame' does not ascend in row 3"),
        (
            OPENFACE + "1, 0, 0, 1, 1, 0.5, 1\n2, 0, 0, 1, x, 0.5, 1\n",
            "'x' in row 3, column 'success', is not a number",
        ),
        (OPENFACE + "2, 0, 0, 1, 1, 0.5, 1\n1, 0, 0, 1, 1, 0.5, 1\n", "'frame' does not ascend in row 3"),
        ("frame,success\n1,1\n", "none of its columns holds features"),
        ("a,b\n", "no frames"),
        ("", "no frames"),
        ("1,\xff".encode("latin1"), "not UTF-8"),
        ("a\n" + "1" * 200_000, "field larger than field limit"),
    ],
)
def test_tables_of_which_nobody_can_say_what_they_hold_are_refused(tmp_path, text, message):
    with pytest.raises(MsaError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value) and "a.csv" in str(error.value)


def test_frames_without_a_face_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text(
        OPENFACE
        + "1, 0, 0.0, 0.98, 1, 0.5, 1\n2, 0, 0.04, 0, 0, 0, 0\n3, 0, 0.08, 0.9, 1, 0.25, 2\n4, 0, 0.12, 0, 0, 0, 0\n"
    )
    table = read_feature_file(tmp_path / "a.csv")
    assert table.values.tolist() == [[0.5, 1], [0.25, 2]]
    assert table.times.tolist() == [0.0, 0.08]
    assert table.faces == FaceReport(frames=4, frames_with_face=2, faces=1, confidence=pytest.approx(0.94))
    assert table.faces.share == 0.5


def test_of_two_faces_the_one_seen_longest_is_kept(tmp_path):
    (tmp_path / "a.csv").write_text(
        OPENFACE
        + "1, 0, 0.0, 0.9, 1, 0.5, 1\n1, 1, 0.0, 0.8, 1, 3, 1\n2, 0, 0.1, 0, 0, 0, 0\n"
        + "2, 1, 0.1, 0.6, 1, 4, 2\n3, 7, 0.2, 0.9, 0, 1, 1\n"
    )
    table = read_feature_file(tmp_path / "a.csv")
    assert table.values.tolist() == [[3, 1], [4, 2]]
    assert table.faces == FaceReport(frames=3, frames_with_face=2, faces=2, confidence=pytest.approx(0.7))


def test_a_table_without_a_face_has_no_frames(tmp_path):
    (tmp_path / "a.csv").write_text(OPENFACE + "1, 0, 0.0, 0, 0, 0, 0\n2, 0, 0.1, 0, 0, 0, 0\n")
    table = read_feature_file(tmp_path / "a.csv")
    assert table.values.shape == (0, 2) and table.names == AUS
    assert table.faces == FaceReport(frames=2, frames_with_face=0, faces=0)


def npy(array, **header):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1,)} | header)
    return file.getvalue() + array


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(b"1234", shape=(1 << 40, 1 << 10)), "but 4 bytes follow"),
        (npy(b"1234", shape=(2, 2)), "but 4 bytes follow"),
        (npy(b"1234" * 5, shape=(2, 2)), "but 20 bytes follow"),
        (npy(b"1234", shape=(-1, -1)), "but 4 bytes follow"),
        (npy(b"", shape=(0, 1 << 40)), "of one frame at least"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"\x93NUMPY\x01\x00\x05\x00{'a\x00", "damaged"),
        (b"", "cannot be read"),
    ],
)
def test_an_array_that_is_not_what_its_header_says_costs_nothing(tmp_path, content, message):
    start = time.perf_counter()
    with pytest.raises(MsaError, match=message):
        read(tmp_path, content, "a.npy")
    assert time.perf_counter() - start < 1


def test_columns_first_and_doubles_are_read(tmp_path):
    np.save(tmp_path / "a.NPY.npy", np.asfortranarray([[1.0, 2.0], [3.0, 1e300]]))
    (tmp_path / "a.NPY.npy").rename(tmp_path / "a.NPY")
    assert read_feature_file(tmp_path / "a.NPY")[0].tolist() == [[1, 2], [3, float("inf")]]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(MsaError, match="not a regular file"):
        read_feature_file(tmp_path / "a.csv")


# --- COVAREP ---


def mat(tmp_path, variables, name="a.mat", **options):
    scipy.io.savemat(tmp_path / name, variables, **options)
    return tmp_path / name


def cells(*names):
    return np.array(names, dtype=object)


@pytest.mark.parametrize("compressed", [True, False])
def test_features_and_names_of_a_matlab_file_are_what_scipy_reads(tmp_path, compressed):
    features = np.arange(12.0).reshape(4, 3) / 7
    features[1, 2], features[0, 0] = NAN, -np.inf
    for stored in (features, features.astype("f4"), np.arange(12, dtype="i2").reshape(4, 3), np.ones((1, 3), "?")):
        path = mat(tmp_path, {"features": stored, "names": cells("F0", "VUV", "größe")}, do_compression=compressed)
        values, names, *_ = read_feature_file(path)
        assert values.dtype == np.float32 and names == ("F0", "VUV", "größe")
        np.testing.assert_array_equal(values, scipy.io.loadmat(path)["features"].astype(np.float32))
    values, names, *_ = read_feature_file(mat(tmp_path, {"x": "word", "features": features}, "B.MAT", appendmat=False))
    assert values.shape == (4, 3) and names is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"x": 1.0, "y": 2.0}, "it has no matrix 'features', as COVAREP writes it, but x, y"),
        ({}, "it has no matrix 'features', as COVAREP writes it, but nothing"),
        ({"features": np.ones((2, 2)) * 1j}, "its 'features' is no matrix of real numbers"),
        ({"features": "abc"}, "its 'features' is no matrix of real numbers"),
        ({"features": {"a": 1}}, "its 'features' is no matrix of real numbers"),
        ({"features": cells("a")}, "its 'features' is no matrix of real numbers"),
        ({"features": np.ones((2, 2)), "names": cells("a")}, r"it has 1 names for features of shape \(2, 2\)"),
        ({"features": np.ones((2, 2)), "names": cells("a", "a")}, "its header has 'a' twice"),
        ({"features": np.ones((2, 1)), "names": 5.0}, "its 'names' is no cell array of words"),
        ({"features": np.ones((2, 1)), "names": cells(5.0)}, "its 'names' holds what is no word"),
        ({"features": np.ones((2, 2, 2))}, r"shape \(2, 2, 2\)"),
        ({"features": np.ones((0, 2))}, r"shape \(0, 2\)"),
    ],
)
def test_other_matlab_files_are_one_sentence(tmp_path, variables, message):
    with pytest.raises(MsaError, match=message):
        read_feature_file(mat(tmp_path, variables))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89HDF\r\n",
        b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF",
        b"# Created by Octave\n# name: features\n" * 9,
    ],
)
def test_matlab_files_of_other_versions_are_named(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(MsaError, match="it is no MATLAB file of version 5 to 7; save it again with -v7"):
        read_feature_file(tmp_path / "a.mat")


def test_a_matlab_file_that_is_cut_off_is_never_read_in_part(tmp_path):
    whole = mat(tmp_path, {"names": cells("a"), "features": np.random.default_rng(0).random((40, 1))}).read_bytes()
    for end in range(1, len(whole), 9):
        (tmp_path / "a.mat").write_bytes(whole[:end])
        with pytest.raises(MsaError):
            read_feature_file(tmp_path / "a.mat")


def test_a_matlab_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mat_files, "_MAX_BYTES", 2**20)
    half = np.zeros((700, 100))
    path = mat(tmp_path, {"other": half, "features": half}, do_compression=True)
    assert path.stat().st_size < 2**12
    with pytest.raises(MsaError, match="it unpacks to more than 1 MiB"):
        read_feature_file(path)
    with pytest.raises(MsaError, match="it has more than 1 MiB"):
        read_feature_file(mat(tmp_path, {"other": half, "features": half}))
    assert read_feature_file(mat(tmp_path, {"features": half}, do_compression=True))[0].shape == (700, 100)


def test_tables_of_covarep_have_no_header_and_get_its_names(tmp_path):
    rows = np.full((3, 74), 0.25)
    rows[:, 1] = 0, 1, 1
    text = "\n".join(",".join(map(str, row)) for row in rows)
    values, names = read(tmp_path, text)
    assert np.array_equal(values, rows) and names == COVAREP74_COLUMNS
    assert read(tmp_path, ",".join(COVAREP74_COLUMNS) + "\n" + text)[1] == COVAREP74_COLUMNS
    rows[0, 1] = 0.5
    assert read(tmp_path, "\n".join(",".join(map(str, row)) for row in rows))[1] is None


def test_a_file_of_covarep_agrees_with_the_means_that_were_published(real_data):
    """The row of the benchmark has all columns but the last, HMPDD_12, rounded to five digits."""
    values, names, *_ = read_feature_file(real_data / "media/covarep_ZUXBRvtny7o_9.mat")
    assert values.shape == (349, 74) and names == COVAREP74_COLUMNS
    split = read_pickle(real_data / "mosi/mosi_text_audio.pkl")["valid"]
    row = np.asarray(split["audio"])[list(split["id"]).index("ZUXBRvtny7o$_$9")][0]
    np.testing.assert_allclose(values.mean(axis=0, dtype=np.float64)[:73], row, rtol=1e-4, atol=1e-7)
