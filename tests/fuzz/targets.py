"""What is fuzzed: each reader of files of strangers, with files that it reads as seeds."""

import csv
import io
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io

from hf_msa.data.feature_files import read_feature_file
from hf_msa.data.mmsa_pickle import PickleSource
from hf_msa.data.schema import RowSource, facts_for, read_facts
from hf_msa.data.sources import CsvSource, ParquetSource
from hf_msa.data.validation import Validator
from hf_msa.label_families import find_label_family
from pickle_factory import mmsa, mmsa_split


@dataclass(frozen=True)
class Target:
    """A reader: `read` may raise an MsaError and nothing else."""

    file_name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    tokens: tuple[bytes, ...]


def _pass_on(source: RowSource) -> int:
    """Take all rows the way that `prepare` does, writing aside."""
    validator = Validator(facts_for("custom", "mosi"), "file", source.widths)
    count = sum(len(list(validator.check(split, source.rows(split)))) for split in source.splits)
    return len(validator.report(source.notes).markdown()) + count


def _pickles() -> Iterator[bytes]:
    small = {
        "train": mmsa_split("train", 2, audio=(2, 2), vision=None),
        "dev": mmsa_split("valid", 1, audio=(2, 2), vision=None),
    }
    ragged = mmsa_split("train", 2, vision=None)
    ragged |= {"audio": [np.ones((2, 3)), np.ones((1, 3))], "raw_text": ["a", None], "annotations": [b"x", "y"]}
    ragged["regression_labels_T"] = ragged["regression_labels_A"] = ragged["regression_labels_V"] = [0.5, -1]
    del ragged["audio_lengths"]
    objects = mmsa_split("train", 2, vision=None) | {"id": np.array([["v", 0, 1], ["w", 2, 3]], dtype=object)}
    for protocol in (0, 2, 4, 5):
        yield pickle.dumps(small, protocol)
    yield pickle.dumps({"train": ragged, "other": {1: (2.5, {"x"})}}, 4)
    yield pickle.dumps({"test": objects}, 2)
    yield pickle.dumps(mmsa(vision=None), 4)


def _arrays() -> Iterator[bytes]:
    for array in (np.ones((3, 2), "<f4"), np.ones(4), np.arange(6, dtype=">i2").reshape(2, 3), np.ones((2, 2), "?")):
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.asfortranarray(array), version)
            yield file.getvalue()


def _matlab_files() -> Iterator[bytes]:
    names = np.array(["F0", "VUV", "peakSlope"], dtype=object)
    for variables in ({"features": np.ones((2, 3))}, {"features": np.eye(3, dtype="i2"), "names": names, "x": 1.5}):
        for compressed in (False, True):
            file = io.BytesIO()
            scipy.io.savemat(file, variables, do_compression=compressed)
            yield file.getvalue()


def _tables() -> Iterator[bytes]:
    yield b"1,2\n3,4\n5,nan\n"
    yield b"frame, face_id, timestamp, success, AU01_r\n1, 0, 0.0, 1, 0.5\n2, 0, 0.1, 1, -nan(ind)\n"
    yield b"frame,face_id,confidence,success,pose_Tz,AU01_r\n1,0,0.9,1,500,1\n1,1,0.9,1,400,2\n2,0,0,0,0,0\n2,1,0.7,1,9,3\n"
    yield b"name;frameTime;F0;energy\n'x';0.0;1.5;2.5\n'x';0.1;3.5;\n"
    yield b",0,1\n0,0.5,1\n1,0.2,3\n"
    yield b"a\tb\t\n1\t2\t\n"


def _labels() -> Iterator[bytes]:
    file = io.StringIO()
    rows = [
        ["v1", 1, "one, two", -1.0, 0, 1.5, -2, "Negative", "train"],
        ["v2", "0001", 'a "b"', 0.5, 1, 0, -1, "", "val"],
    ]
    header = ["video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode"]
    csv.writer(file).writerows([header, *rows])
    yield file.getvalue().encode()
    yield "\ufeffvideo_id,clip_id,text,label,mode\nv,1,好,0.2,test\n".encode()


def _parquets() -> Iterator[bytes]:
    row = {"id": "v$_$1", "text": "good", "label": 0.5, "audio": [[1.0, 2.0]], "audio_present": True}
    rows = [row, row | {"id": "v[2]", "text": None, "audio": None}, row | {"id": "w_3", "audio": [[0.5, 1], [2, 3]]}]
    categories = pa.table(
        {
            "video_id": [1, 2],
            "clip_id": [1, 1],
            "text": pa.array(["x", "y"]).dictionary_encode(),
            "label": [1, -1],
            "annotation": ["A", None],
        }
    )
    for table, compression in ((pa.Table.from_pylist(rows), "none"), (categories, "snappy")):
        file = io.BytesIO()
        pq.write_table(table, file, compression=compression)
        yield file.getvalue()


_FAMILY = b"""name: stars
low: 1
high: 5
neutral: 3
classes: [terrible, poor, fair, good, excellent]
edges: [1.5, 2.5, 3.5, 4.5]
metrics: [fine_acc, mae, corr]
accuracies: {acc2: 1, acc3: [2.5, 3.5]}
main_accuracy: fine_acc
clip: false
"""

_TEXT_TOKENS = (b",", b";", b"\t", b"\n", b'"', b"'", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", "\u2028".encode())
_NUMBER_TOKENS = (b"", b"nan", b"-nan(ind)", b"1e999", b"-inf", b"1_0", b"9" * 400, b"0x1", "٣".encode(), b"None")

TARGETS = {
    "pickle": Target(
        "x.pkl",
        tuple(_pickles()),
        lambda path: _pass_on(PickleSource(path)),
        (b"\x85", b"\x86", b"2", b"0", b"(", b"t", b"R", b"b", b"h\x00", b"r\xff\xff\xff\x7f", b"}", b"]", b"s", b"u")
        + (b"\x8a\x08" + b"\x7f" * 8, b"\x8b\xff\xff\xff\x7f", b"cnumpy\ndtype\n", b"\x8f", b"\x90", b"N", b"\x94"),
    ),
    "feature_csv": Target("x.csv", tuple(_tables()), read_feature_file, _TEXT_TOKENS + _NUMBER_TOKENS),
    "npy": Target(
        "x.npy",
        tuple(_arrays()),
        read_feature_file,
        (b"(", b")", b"-1", b"9" * 20, b"'|O'", b"'<U9'", b"[" * 99, b"True"),
    ),
    "mat": Target(
        "x.mat",
        tuple(_matlab_files()),
        read_feature_file,
        (
            b"\x0e\x00\x00\x00",
            b"\x0f\x00\x00\x00",
            b"\xff" * 4,
            b"\xff\xff\xff\x7f",
            b"\x00" * 8,
            b"\x01\x00\x04\x00",
            b"MI",
        )
        + (b"features", b"\x05\x00\x00\x00" * 9, b"\x02\x00\x00\x00", b"\x11\x00\x00\x00"),
    ),
    "label_csv": Target(
        "label.csv",
        tuple(_labels()),
        lambda path: _pass_on(CsvSource(path)),
        (*_TEXT_TOKENS, *_NUMBER_TOKENS, b"train", b"eval", b"mode", b"text"),
    ),
    "parquet": Target(
        "train.parquet", tuple(_parquets()), lambda path: _pass_on(ParquetSource(path)), (b"PAR1", b"\x00" * 8)
    ),
    "label_family": Target(
        "family.yaml",
        (_FAMILY, b"name: x\nlow: -1\nhigh: 1\n", b"name: y\nlow: 0\nhigh: 2\nclasses: {a: 0, b: 1, c: 2}\n"),
        lambda path: find_label_family(str(path)),
        (
            *_NUMBER_TOKENS,
            b"1: 2\n",
            b"&a [*a]",
            b"[",
            b"{",
            b"- ",
            b"!!python/name:os.system ",
            b"? ",
            b": ",
            b"<<: *a\n",
        )
        + (
            b"2001-99-99",
            b"!!binary x",
            b"\n",
            b"\t",
            b"[[[[" * 500,
            b"null",
            b"~",
            b".inf",
            b"true",
            b"low",
            b"1:30",
        ),
    ),
    "facts": Target(
        "msa_dataset.json",
        (json.dumps(facts_for("mosi").to_dict()).encode(), json.dumps(facts_for("custom", "sims").to_dict()).encode()),
        read_facts,
        (*_NUMBER_TOKENS, b"[" * 5000, b"{", b"}", b"null", b"1", b'"', b"NaN", b"[]", b"{}", b"1e999", b"\\ud800"),
    ),
}
"""Name -> reader."""


@contextmanager
def file_of(target: Target, folder: Path) -> Iterator[Callable[[bytes], Any]]:
    """A function that reads what it is given as a file: the reader's answer, or None where it refuses."""
    from hf_msa.errors import MsaError

    path = folder / target.file_name

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        try:
            return target.read(path)
        except MsaError as error:
            if "\n" in str(error) or not str(error):
                raise AssertionError(f"not one sentence: {error!r}") from error
            return None

    yield read
