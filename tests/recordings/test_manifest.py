"""Lists of recordings: what is read, and what is refused with its line."""

import json
from pathlib import Path

import pytest

from hf_msa.errors import MsaError
from hf_msa.recordings.manifest import find_file, read_manifest


def listed(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_folder_is_all_of_its_recordings(tmp_path: Path) -> None:
    for name in ("v/1.wav", "v/2.MP4", "w.flac", "notes.txt", "v/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(clip.id, clip.path.name) for clip in read_manifest(tmp_path)] == [
        ("v$_$1", "1.wav"),
        ("v$_$2", "2.MP4"),
        ("w", "w.flac"),
    ]


def test_a_table_says_more(tmp_path: Path) -> None:
    file = listed(
        tmp_path,
        'Path,text,label,mode,start,end,speaker\nv/1.wav,"good, very",1.5,train,,,ann\nv/1.wav,,-2,valid,2.5,4,\n',
    )
    first, second = read_manifest(file)
    assert (first.id, first.path, first.text, first.label, first.split) == (
        *("v$_$1", tmp_path / "v/1.wav", "good, very", 1.5, "train"),
    )
    assert (first.start, first.end, first.extra) == (0.0, None, {"speaker": "ann"})
    assert (second.id, second.text, second.split, second.start, second.end) == (
        "v$_$1$_$2.5",
        None,
        "validation",
        2.5,
        4.0,
    )


def test_lines_of_json_say_the_same(tmp_path: Path) -> None:
    lines = [{"path": "a.wav", "id": "v[3]", "text": "good\u2028bad", "label": 0}, {"path": "b.wav", "label": None}]
    file = listed(tmp_path, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "list.jsonl")
    first, second = read_manifest(file)
    assert (first.id, first.text, first.label) == ("v[3]", "good\u2028bad", 0.0)
    assert (second.id, second.label, second.split) == ("b", None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,1\n", "list.csv has no column path; it has text, label."),
        ("path,label\n,1\n", "Line 2 of list.csv has no path"),
        ("path,label\na.wav,x\n", "Line 2 of list.csv: the label is 'x', which is no number"),
        ("path,label\na.wav,nan\n", "the label is 'nan'"),
        ("path,start,end\na.wav,3,2\n", r"the part from 3.0 s to 2.0 s cannot be"),
        ("path,split\na.wav,eval\n", "Line 2 of list.csv has the split 'eval'"),
        ("path,label\na.wav\n", "Line 2 of list.csv has not as many cells as the header"),
        ("path,label\na.wav,1,2\n", "Line 2 of list.csv has not as many cells"),
        ("path\na.wav\na.wav\n", "a.wav and a.wav have the id 'a'; give each clip an id of its own"),
        ("path\n", "lists no recordings"),
        (
            "path\n\xff".encode("latin1").decode("latin1").replace("\xff", "\0"),
            "list of recordings|no recordings|path",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MsaError, match=message) as error:
        for clip in read_manifest(listed(tmp_path, text)):
            find_file(clip)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["[1]", "{", '"a"'])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(MsaError, match="cannot be read as a list of recordings"):
        read_manifest(listed(tmp_path, line, "list.jsonl"))


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.wav"
    inside.mkdir()
    outside.touch()
    (inside / "link.wav").symlink_to(outside)
    for name in ("link.wav", "../secret.wav", str(outside)):
        with pytest.raises(MsaError, match="leads out of the folder"):
            find_file(read_manifest(listed(inside, f"path\n{name}\n"))[0])
    with pytest.raises(MsaError, match="leads out of the folder"):
        find_file(read_manifest(inside)[0])


@pytest.mark.parametrize("name", ["none", "none.csv", "notes.txt"])
def test_what_is_no_list_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MsaError, match="There is no list of recordings at|No such file"):
        read_manifest(tmp_path / name)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="holds no recordings; their names end in .wav"):
        read_manifest(tmp_path)
