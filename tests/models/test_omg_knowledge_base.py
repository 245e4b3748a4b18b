"""The knowledge base: what it holds and refuses, that a saved one is the same, and that an older one is still read."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_msa.models.omg_knowledge_base import DESCRIPTION_FILE, ENTRIES_FILE, NO_ENTRY, KnowledgeBase

COUNT = 40
SHAPES = {"plan": (5,), "observation": (5,), "value_audio": (4, 2), "value_text": (3, 2)}


def parts(count: int = COUNT, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    tables = {name: torch.randn(count, *shape, generator=draw) for name, shape in SHAPES.items()}
    return {
        "ids": [f"clip_{number}" for number in range(count)],
        "plans": tables["plan"],
        "observations": tables["observation"],
        "values": {"text": tables["value_text"], "audio": tables["value_audio"]},
    }


def tables(base: KnowledgeBase) -> dict[str, torch.Tensor]:
    return {"plan": base.plans, "observation": base.observations, **base.values}


def write_older(folder: Path, shards: int = 1) -> dict[str, Any]:
    """A knowledge base as version 0.1.0.dev0 wrote it, but for its index, and the parts of it."""
    given = parts()
    columns = {"key": torch.zeros(COUNT, 8), "plan": given["plans"], "observation": given["observations"]}
    columns |= {f"value_{name}": value for name, value in given["values"].items()}
    features: dict[str, Any] = {"id": datasets.Value("string")}
    for name, column in columns.items():
        features[name] = datasets.Value("float32")
        for width in reversed(column.shape[1:]):
            features[name] = datasets.List(features[name], length=width)
    rows = {"id": given["ids"], **{name: column.numpy().tolist() for name, column in columns.items()}}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(str(folder), num_shards=shards)
    files = sorted(path.name for path in folder.glob("*.arrow"))
    about = {"format": 1, "factory": "Flat", "nprobe": None, "ef_search": None, "entries": COUNT, "files": files}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(about))
    (folder / "keys.faiss").write_bytes(b"an index")
    return given


def change_description(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / DESCRIPTION_FILE).read_text())
    (folder / DESCRIPTION_FILE).write_text(json.dumps({**about, **changes}))


def test_own_rows() -> None:
    base = KnowledgeBase(**parts())
    assert base.rows_of(["clip_3", "unseen", "clip_0"]).tolist() == [3, NO_ENTRY, 0] and len(base) == COUNT


class TestFiles:
    def test_loaded_is_saved(self, tmp_path: Path) -> None:
        base = KnowledgeBase(**parts())
        base.save(tmp_path / "kb")
        loaded = KnowledgeBase.load(tmp_path / "kb")
        torch.testing.assert_close(tables(loaded), tables(base), rtol=0, atol=0)
        assert loaded.ids == base.ids
        assert [path.name for path in tmp_path.iterdir()] == ["kb"]
        assert {path.name for path in (tmp_path / "kb").iterdir()} == {ENTRIES_FILE, DESCRIPTION_FILE}

    def test_entries_are_mapped_and_not_read(self, tmp_path: Path) -> None:
        KnowledgeBase(**parts()).save(tmp_path / "kb")
        loaded = KnowledgeBase.load(tmp_path / "kb")
        assert loaded is loaded.to(torch.device("cpu"))
        assert str(tmp_path / "kb" / ENTRIES_FILE) in Path("/proc/self/maps").read_text()

    def test_may_be_saved_over_itself_and_over_an_older_one(self, tmp_path: Path) -> None:
        given = write_older(tmp_path / "kb")
        for _ in range(2):
            loaded = KnowledgeBase.load(tmp_path / "kb")
            loaded.save(tmp_path / "kb")
            assert {path.name for path in (tmp_path / "kb").iterdir()} == {ENTRIES_FILE, DESCRIPTION_FILE}
            assert torch.equal(loaded.plans, given["plans"])

    def test_an_error_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        KnowledgeBase(**parts()).save(tmp_path / "kb")

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("safetensors.numpy.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            KnowledgeBase(**parts(seed=5)).save(tmp_path / "kb")
        assert {path.name for path in (tmp_path / "kb").iterdir()} == {ENTRIES_FILE, DESCRIPTION_FILE}
        assert torch.equal(KnowledgeBase.load(tmp_path / "kb").plans, parts()["plans"])

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the file 'knowledge_base.json' is not there"):
            KnowledgeBase.load(tmp_path)

    def test_may_be_fetched_file_by_file(self, tmp_path: Path) -> None:
        base = KnowledgeBase(**parts())
        base.save(tmp_path / "kb")
        asked: list[str] = []

        def get(name: str) -> Path | None:
            asked.append(name)
            # As the cache of the Hub does it, under another name.
            other = tmp_path / f"blob{len(asked)}"
            (tmp_path / "kb" / name).rename(other)
            return other

        fetched = KnowledgeBase.fetch(get)
        assert asked == [DESCRIPTION_FILE, ENTRIES_FILE]
        torch.testing.assert_close(tables(fetched), tables(base), rtol=0, atol=0)

    @pytest.mark.parametrize("file", [DESCRIPTION_FILE, ENTRIES_FILE])
    def test_broken_files(self, file: str, tmp_path: Path) -> None:
        KnowledgeBase(**parts()).save(tmp_path / "kb")
        whole = (tmp_path / "kb" / file).read_bytes()
        # Another content, an early end, a header that states more than there is, nothing at all.
        for content in (b"[1]broken", whole[:-20], b"\xff" * 7 + whole[7:], b""):
            (tmp_path / "kb" / file).write_bytes(content)
            with pytest.raises(ValueError, match="cannot be read .*; build it again") as error:
                KnowledgeBase.load(tmp_path / "kb")
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": 99}, "it has the format 99, this version of hf_msa reads 2"),
            ({"ids": ["a"]}, r"'plan' is torch.float32 of the shape \(40, 5\).* the first of 1 entries"),
            ({"ids": 7}, "cannot be read"),
        ],
    )
    def test_a_wrong_description(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        KnowledgeBase(**parts()).save(tmp_path / "kb")
        change_description(tmp_path / "kb", **changes)
        with pytest.raises(ValueError, match=message):
            KnowledgeBase.load(tmp_path / "kb")

    def test_entries_that_lack_a_column(self, tmp_path: Path) -> None:
        KnowledgeBase(**parts()).save(tmp_path / "kb")
        columns = load_file(tmp_path / "kb" / ENTRIES_FILE)
        del columns["plan"]
        save_file(columns, tmp_path / "kb" / ENTRIES_FILE)
        with pytest.raises(ValueError, match="cannot be read .'plan'.; build it again"):
            KnowledgeBase.load(tmp_path / "kb")


class TestOlderFiles:
    """Arrow files, which earlier versions wrote."""

    @pytest.mark.parametrize("shards", [1, 4])
    def test_are_the_numbers_that_were_written(self, shards: int, tmp_path: Path) -> None:
        base, read = KnowledgeBase(**write_older(tmp_path / "kb", shards)), KnowledgeBase.load(tmp_path / "kb")
        torch.testing.assert_close(tables(read), tables(base), rtol=0, atol=0)
        assert read.ids == base.ids and set(read.values) == {"text", "audio"}

    @pytest.mark.parametrize(
        "name", ["../kb/data-00000-of-00001.arrow", "/etc/x.arrow", "..", ".x.arrow", "C:x.arrow", ""]
    )
    def test_have_plain_names(self, name: str, tmp_path: Path) -> None:
        write_older(tmp_path / "kb")
        change_description(tmp_path / "kb", files=[name])
        asked: list[str] = []

        def get(name: str) -> Path:
            asked.append(name)
            return tmp_path / "kb" / name

        with pytest.raises(ValueError, match=r"cannot be read \('.*' is not the plain name of an Arrow file\); build"):
            KnowledgeBase.fetch(get)
        assert asked == [DESCRIPTION_FILE]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"entries": 41}, "it has 40 of 41 entries"),
            ({"files": []}, "cannot be read"),
            ({"files": ["absent.arrow"]}, "the file 'absent.arrow' is not there"),
            ({"files": [3]}, "cannot be read"),
        ],
    )
    def test_a_wrong_description(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        write_older(tmp_path / "kb")
        change_description(tmp_path / "kb", **changes)
        with pytest.raises(ValueError, match=message):
            KnowledgeBase.load(tmp_path / "kb")

    def test_a_file_that_ends_early(self, tmp_path: Path) -> None:
        write_older(tmp_path / "kb")
        file = tmp_path / "kb" / "data-00000-of-00001.arrow"
        file.write_bytes(file.read_bytes()[:-2000])
        with pytest.raises(ValueError, match="cannot be read .*; build it again"):
            KnowledgeBase.load(tmp_path / "kb")

    def test_a_file_that_states_lengths_beyond_what_it_holds(self, tmp_path: Path) -> None:
        given = write_older(tmp_path / "kb")
        file = tmp_path / "kb" / "data-00000-of-00001.arrow"
        ends = np.cumsum([0, *map(len, given["ids"])]).astype(np.int32)
        longer = ends.copy()
        longer[-1] += 2
        content = file.read_bytes()
        assert content.count(ends.tobytes()) == 1
        file.write_bytes(content.replace(ends.tobytes(), longer.tobytes()))
        with pytest.raises(ValueError, match="cannot be read .*; build it again"):
            KnowledgeBase.load(tmp_path / "kb")

    def test_without_datasets_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_older(tmp_path / "kb")
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ImportError, match=r"needs the package 'datasets'.*: pip install 'datasets'"):
            KnowledgeBase.load(tmp_path / "kb")

    def test_nothing_but_torch_and_safetensors_reads_today_s(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        KnowledgeBase(**parts()).save(tmp_path / "kb")
        for package in ("datasets", "pyarrow", "faiss"):
            monkeypatch.setitem(sys.modules, package, None)
        assert len(KnowledgeBase.load(tmp_path / "kb")) == COUNT


def changed(**changes: Any) -> dict[str, Any]:
    return {**parts(count=4), **changes}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(ids=["a", "b", "a", "c"]), "The id 'a' occurs twice"),
        (changed(ids=[]), "0 entries of 2 modalities"),
        (changed(values={}), "4 entries of 0 modalities"),
        (
            changed(ids=["a", "b", "c"]),
            "'plan' is .* of the shape .4, 5.; it needs float32 in 2 dimensions.* of 3 entries",
        ),
        (changed(plans=torch.ones(4, 0)), "'plan' is torch.float32 of the shape .4, 0."),
        (changed(observations=torch.ones(4, 5).double()), "'observation' is torch.float64"),
        (changed(values={"text": torch.ones(4, 3)}), "'value_text' is .* of the shape .4, 3.; it needs float32 in 3"),
    ],
)
def test_what_cannot_be_one(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        KnowledgeBase(**given)
    assert "\n" not in str(raised.value)
