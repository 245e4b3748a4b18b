"""The knowledge base: exact search, what it refuses, and that a saved one is the same."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_msa.models.omg_knowledge_base import DESCRIPTION_FILE, INDEX_FILE, KnowledgeBase
from hf_msa.models.omg_retriever import NO_ENTRY, EvidenceRetriever

pytest.importorskip("faiss")
COUNT, WIDTH = 40, 8


def parts(count: int = COUNT, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "ids": [f"clip_{number}" for number in range(count)],
        "keys": draw.normal(size=(count, WIDTH)).astype(np.float32),
        "plans": draw.normal(size=(count, 5)).astype(np.float32),
        "observations": draw.normal(size=(count, 5)).astype(np.float32),
        "values": {
            "text": draw.normal(size=(count, 3, 2)).astype(np.float32),
            "audio": draw.normal(size=(count, 4, 2)).astype(np.float32),
        },
    }


def in_small_chunks(base: KnowledgeBase, folder: Path) -> KnowledgeBase:
    """The same entries saved and loaded in four files."""
    base.save(folder)
    description = json.loads((folder / DESCRIPTION_FILE).read_text())
    dataset = datasets.load_from_disk(str(folder))
    dataset.save_to_disk(str(folder.with_name("shards")), num_shards=4)
    files = sorted(path.name for path in folder.with_name("shards").glob("*.arrow"))
    assert len(files) == 4
    (folder.with_name("shards") / DESCRIPTION_FILE).write_text(json.dumps({**description, "files": files}))
    return KnowledgeBase.load(folder.with_name("shards"))


class TestSearch:
    def test_by_hand(self) -> None:
        keys = np.array([[3, 0], [0, 2], [1, 1]], dtype=np.float32)
        ones = np.ones((3, 1, 1), dtype=np.float32)
        plans = np.eye(3, dtype=np.float32)
        base = KnowledgeBase.build(["a", "b", "c"], keys, plans, plans, {"text": ones})
        scores, rows = base.search(np.array([[0.0, 5.0]], dtype=np.float32), 3)
        assert rows.tolist() == [[1, 2, 0]]
        np.testing.assert_allclose(scores, [[1, np.sqrt(0.5), 0]], atol=1e-6)

    def test_flat_is_exact(self) -> None:
        given = parts()
        queries = np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)
        norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(given["keys"], axis=1)
        cosines = queries @ given["keys"].T / norms
        scores, rows = KnowledgeBase.build(**given).search(queries, 5)
        assert rows.tolist() == np.argsort(-cosines, axis=1)[:, :5].tolist()
        np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)

    def test_fewer_entries_than_asked_for(self) -> None:
        scores, rows = KnowledgeBase.build(**parts(count=2)).search(np.ones((1, WIDTH), dtype=np.float32), 4)
        assert rows[0, 2:].tolist() == [NO_ENTRY, NO_ENTRY] and sorted(rows[0, :2]) == [0, 1]
        assert np.isneginf(scores[0, 2:]).all() and np.isfinite(scores[0, :2]).all()

    @pytest.mark.parametrize("factory", ["HNSW16", "IVF2,Flat", "PQ4x4"])
    def test_any_factory_string(self, factory: str, tmp_path: Path) -> None:
        given = parts(count=200)
        base = KnowledgeBase.build(**given, factory=factory)
        base.save(tmp_path / "kb")
        loaded = KnowledgeBase.load(tmp_path / "kb")
        assert loaded.factory == factory and loaded.with_keys(given["keys"]).factory == factory
        for ours, theirs in zip(base.search(given["keys"], 3), loaded.search(given["keys"], 3), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("factory", ["IVF10,Flat", "RR8,IVF10,Flat"])
    def test_more_lists_find_more(self, factory: str, tmp_path: Path) -> None:
        given = parts(count=400)
        once = KnowledgeBase.build(**given, factory=factory)
        whole = once.with_search(nprobe=10)
        queries = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
        exact = KnowledgeBase.build(**given).search(queries, 10)[1]
        assert (whole.search(queries, 10)[1] == exact).mean() > 0.99 > (once.search(queries, 10)[1] == exact).mean()
        whole.save(tmp_path / "kb")
        for same in (KnowledgeBase.load(tmp_path / "kb"), whole.with_keys(given["keys"])):
            assert (same.nprobe, same.ef_search) == (10, None)
            np.testing.assert_array_equal(same.search(queries, 10)[1], whole.search(queries, 10)[1])

    @pytest.mark.parametrize("factory", ["HNSW4", "IVF200_HNSW4,Flat"])
    def test_a_wider_view_finds_more(self, factory: str) -> None:
        given = parts(count=1000)
        base = KnowledgeBase.build(**given, factory=factory)
        nprobe = 50 if factory.startswith("IVF") else None
        queries = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
        exact = KnowledgeBase.build(**given).search(queries, 1)[1]
        narrow, wide = ((base.with_search(nprobe, ef).search(queries, 1)[1] == exact).mean() for ef in (1, 500))
        assert narrow < 0.9 < wide

    def test_parts_find_together_what_the_whole_finds(self, tmp_path: Path) -> None:
        import faiss

        given = parts()
        whole = KnowledgeBase.build(**given)
        queries = np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)
        scores, rows = whole.search(queries, 5)
        # In one process: an index that was made elsewhere, here of two others.
        shards = faiss.IndexShards(WIDTH, False, True)
        halves = [KnowledgeBase(whole.dataset.select(half)) for half in (range(15), range(15, COUNT))]
        for half in halves:
            shards.add_shard(half.index)
        sharded = KnowledgeBase(whole.dataset, "Flat", shards)
        np.testing.assert_array_equal(sharded.search(queries, 5)[1], rows)
        with pytest.raises(
            ValueError, match=r"FAISS cannot write the index of the knowledge base \(don't know how to"
        ):
            sharded.save(tmp_path / "kb")
        assert not list(tmp_path.iterdir())
        # In several: the best of what each has found.
        found = [half.search(queries, 5) for half in halves]
        together = np.concatenate([scores for scores, _ in found], axis=1)
        best = np.argsort(-together, axis=1)[:, :5]
        named = np.concatenate(
            [np.array(half.ids)[rows] for half, (_, rows) in zip(halves, found, strict=True)], axis=1
        )
        assert np.take_along_axis(named, best, axis=1).tolist() == np.array(whole.ids)[rows].tolist()
        np.testing.assert_array_equal(np.take_along_axis(together, best, axis=1), scores)

    @pytest.mark.parametrize(
        ("factory", "effort", "message"),
        [
            ("Flat", {"nprobe": 4}, "A search in an IndexFlat takes no nprobe; nprobe is for IVF"),
            ("Flat", {"ef_search": 4}, "A search in an IndexFlat takes no ef_search"),
            ("HNSW4", {"nprobe": 4}, "A search in an IndexHNSWFlat takes no nprobe"),
            ("IVF2,Flat", {"ef_search": 4}, "A search in an IndexFlat takes no ef_search"),
            ("IVF2,Flat", {"nprobe": 0}, "nprobe is 0; it must be at least 1"),
            ("IVF2,Flat", {"nprobe": "4"}, "nprobe is '4'; it must be at least 1"),
        ],
    )
    def test_effort_that_an_index_cannot_make(self, factory: str, effort: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            KnowledgeBase.build(**parts(count=200), factory=factory).with_search(**effort)

    def test_own_rows(self) -> None:
        assert KnowledgeBase.build(**parts()).rows_of(["clip_3", "unseen", "clip_0"]).tolist() == [3, NO_ENTRY, 0]


class TestCandidates:
    @pytest.mark.parametrize("sharded", [False, True])
    def test_are_the_numbers_that_were_given(self, sharded: bool, tmp_path: Path) -> None:
        given = parts()
        base = KnowledgeBase.build(**given)
        base = in_small_chunks(base, tmp_path / "kb") if sharded else base
        assert len(base._views["key"]) == (4 if sharded else 1)
        rows = np.array([[39, 0, NO_ENTRY], [9, 10, 11]])
        read = base.candidates(rows)
        assert torch.equal(read.entries, torch.tensor(rows))
        for name, value in read.values.items():
            expected = given["values"][name][rows]
            expected[0, 2] = 0
            np.testing.assert_array_equal(value.numpy(), expected)
        np.testing.assert_array_equal(read.plans.numpy()[1], given["plans"][9:12])
        np.testing.assert_allclose(read.keys[1].norm(dim=1).numpy(), 1, atol=1e-6)

    def test_feed_the_retriever_without_a_samples_own_entry(self) -> None:
        given = parts()
        base = KnowledgeBase.build(**given)
        _, rows = base.search(given["keys"], 6)
        assert (rows[:, 0] == np.arange(COUNT)).all()
        own = torch.from_numpy(base.rows_of(given["ids"]))
        retriever = EvidenceRetriever(embedding_dim=5, query_dim=WIDTH, top_k=5)
        queries, plans = torch.from_numpy(given["keys"]), torch.from_numpy(given["plans"])
        found = retriever(queries, plans, base.candidates(rows), own)
        assert found.entries.tolist() == rows[:, 1:].tolist()
        assert found.values["audio"].shape == (COUNT, 4, 2)

    @pytest.mark.parametrize("row", [COUNT, -2])
    def test_of_rows_that_are_not_there(self, row: int) -> None:
        with pytest.raises(ValueError, match=f"Row {row} is asked for; the knowledge base has the rows 0 to 39"):
            KnowledgeBase.build(**parts()).candidates(np.array([[0, row]]))


class TestNewKeys:
    @pytest.mark.parametrize("sharded", [False, True])
    def test_replace_the_old_and_leave_the_rest(self, sharded: bool, tmp_path: Path) -> None:
        given, fresh = parts(), parts(seed=5)
        old = KnowledgeBase.build(**given)
        old = in_small_chunks(old, tmp_path / "kb") if sharded else old
        new = old.with_keys(fresh["keys"])
        assert (new.search(fresh["keys"], 1)[1][:, 0] == np.arange(COUNT)).all()
        assert (old.search(given["keys"], 1)[1][:, 0] == np.arange(COUNT)).all()
        rows = np.arange(COUNT)[None]
        expected = KnowledgeBase.build(**{**given, "keys": fresh["keys"]}).candidates(rows)
        torch.testing.assert_close(new.candidates(rows), expected, rtol=0, atol=0)
        for ours, theirs in zip(old._views["plan"], new._views["plan"], strict=True):
            assert np.shares_memory(ours, theirs)

    def test_may_have_another_width(self) -> None:
        base = KnowledgeBase.build(**parts()).with_keys(np.eye(COUNT, dtype=np.float32))
        assert base.shapes["key"] == (COUNT,)
        assert base.search(np.eye(COUNT, dtype=np.float32)[3:4], 1)[1].tolist() == [[3]]

    def test_must_be_as_many(self) -> None:
        with pytest.raises(ValueError, match="The column 'key' has the shape .3, 8."):
            KnowledgeBase.build(**parts()).with_keys(np.ones((3, WIDTH), dtype=np.float32))


class TestFiles:
    def test_loaded_is_saved(self, tmp_path: Path) -> None:
        base = KnowledgeBase.build(**parts())
        base.save(tmp_path / "kb")
        loaded = KnowledgeBase.load(tmp_path / "kb")
        rows = np.arange(COUNT)[None]
        torch.testing.assert_close(loaded.candidates(rows), base.candidates(rows), rtol=0, atol=0)
        assert loaded.ids == base.ids and loaded.shapes == base.shapes and loaded.modalities == ("audio", "text")
        assert loaded.dataset.cache_files, "the entries are mapped, not read"
        assert not loaded._views["value_text"][0].flags.writeable

    def test_holds_no_pickle_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".arrow", ".json", ".faiss"}
        assert [path.name for path in tmp_path.iterdir()] == ["kb"]

    def test_may_be_saved_over_itself(self, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        fresh = parts(seed=5)["keys"]
        loaded = KnowledgeBase.load(tmp_path / "kb")
        loaded.with_keys(fresh).save(tmp_path / "kb")
        assert (KnowledgeBase.load(tmp_path / "kb").search(fresh, 1)[1][:, 0] == np.arange(COUNT)).all()
        assert (loaded.search(parts()["keys"], 1)[1][:, 0] == np.arange(COUNT)).all()

    def test_an_error_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = KnowledgeBase.build(**parts())
        base.save(tmp_path / "kb")

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("faiss.write_index", fail)
        with pytest.raises(OSError, match="disk full"):
            base.with_keys(parts(seed=5)["keys"]).save(tmp_path / "kb")
        assert [path.name for path in tmp_path.iterdir()] == ["kb"]
        assert (KnowledgeBase.load(tmp_path / "kb").search(parts()["keys"], 1)[1][:, 0] == np.arange(COUNT)).all()

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no knowledge base"):
            KnowledgeBase.load(tmp_path)

    def test_the_index_is_built_of_the_keys_unless_asked_for(self, tmp_path: Path) -> None:
        given, fresh = parts(), parts(seed=5)
        KnowledgeBase.build(**given).save(tmp_path / "kb")
        KnowledgeBase.build(**fresh).save(tmp_path / "fresh")
        (tmp_path / "fresh" / INDEX_FILE).replace(tmp_path / "kb" / INDEX_FILE)
        assert (KnowledgeBase.load(tmp_path / "kb").search(given["keys"], 1)[1][:, 0] == np.arange(COUNT)).all()
        trusting = KnowledgeBase.load(tmp_path / "kb", read_index=True)
        assert (trusting.search(fresh["keys"], 1)[1][:, 0] == np.arange(COUNT)).all()

    def test_may_be_had_file_by_file(self, tmp_path: Path) -> None:
        base = KnowledgeBase.build(**parts())
        base.save(tmp_path / "kb")
        asked: list[str] = []

        def get(name: str) -> Path | None:
            asked.append(name)
            # As the cache of the Hub does it, under another name.
            other = tmp_path / f"blob{len(asked)}"
            (tmp_path / "kb" / name).rename(other)
            return other

        fetched = KnowledgeBase.fetch(get)
        assert fetched is not None
        assert asked == [DESCRIPTION_FILE, "data-00000-of-00001.arrow"]
        rows = np.arange(COUNT)[None]
        torch.testing.assert_close(fetched.candidates(rows), base.candidates(rows), rtol=0, atol=0)
        assert KnowledgeBase.fetch(lambda name: None) is None

    @pytest.mark.parametrize(
        "name", ["../kb/data-00000-of-00001.arrow", "/etc/x.arrow", "..", ".x.arrow", "C:x.arrow", ""]
    )
    def test_files_have_plain_names(self, name: str, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        description = json.loads((tmp_path / "kb" / DESCRIPTION_FILE).read_text())
        asked: list[str] = []

        def get(name: str) -> Path:
            asked.append(name)
            return tmp_path / "kb" / name

        (tmp_path / "kb" / DESCRIPTION_FILE).write_text(json.dumps({**description, "files": [name]}))
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
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        description = json.loads((tmp_path / "kb" / DESCRIPTION_FILE).read_text())
        (tmp_path / "kb" / DESCRIPTION_FILE).write_text(json.dumps({**description, **changes}))
        with pytest.raises(ValueError, match=message):
            KnowledgeBase.load(tmp_path / "kb")

    @pytest.mark.parametrize("file", [INDEX_FILE, DESCRIPTION_FILE, "data-00000-of-00001.arrow"])
    def test_broken_files(self, file: str, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        (tmp_path / "kb" / file).write_bytes(b"[1]broken")
        with pytest.raises(ValueError, match="cannot be read .*; build it again"):
            KnowledgeBase.load(tmp_path / "kb", read_index=True)

    def test_a_file_that_ends_early(self, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        file = tmp_path / "kb" / "data-00000-of-00001.arrow"
        file.write_bytes(file.read_bytes()[:-2000])
        with pytest.raises(ValueError, match="cannot be read .*; build it again"):
            KnowledgeBase.load(tmp_path / "kb")

    def test_a_file_that_states_lengths_beyond_what_it_holds(self, tmp_path: Path) -> None:
        given = parts()
        KnowledgeBase.build(**given).save(tmp_path / "kb")
        file = tmp_path / "kb" / "data-00000-of-00001.arrow"
        ends = np.cumsum([0, *map(len, given["ids"])]).astype(np.int32)
        longer = ends.copy()
        longer[-1] += 2
        content = file.read_bytes()
        assert content.count(ends.tobytes()) == 1
        file.write_bytes(content.replace(ends.tobytes(), longer.tobytes()))
        with pytest.raises(ValueError, match="cannot be read .*; build it again"):
            KnowledgeBase.load(tmp_path / "kb")

    def test_another_format(self, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        (tmp_path / "kb" / DESCRIPTION_FILE).write_text(json.dumps({"format": 99}))
        with pytest.raises(ValueError, match="has format 99, this version of hf_msa reads 1"):
            KnowledgeBase.load(tmp_path / "kb")

    def test_an_index_of_other_keys(self, tmp_path: Path) -> None:
        KnowledgeBase.build(**parts()).save(tmp_path / "kb")
        KnowledgeBase.build(**parts(count=30)).save(tmp_path / "other")
        (tmp_path / "other" / INDEX_FILE).replace(tmp_path / "kb" / INDEX_FILE)
        with pytest.raises(ValueError, match="The index has 30 keys of width 8, the knowledge base 40"):
            KnowledgeBase.load(tmp_path / "kb", read_index=True)

    def test_columns_of_another_type(self, tmp_path: Path) -> None:
        base = KnowledgeBase.build(**parts())
        wrong = base.dataset.cast_column("plan", datasets.List(datasets.Value("float64"), length=5))
        with pytest.raises(ValueError, match="The column 'plan' of the knowledge base is .*float32 in lists of fixed"):
            KnowledgeBase(wrong)
        with pytest.raises(ValueError, match="has no column 'key'"):
            KnowledgeBase(base.dataset.remove_columns("key"))
        with pytest.raises(ValueError, match="has no column 'value_<modality>'"):
            KnowledgeBase(base.dataset.remove_columns(["value_text", "value_audio"]))


def changed(**changes: Any) -> dict[str, Any]:
    return {**parts(count=4), **changes}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(ids=["a", "b", "a", "c"]), "The id 'a' occurs twice"),
        (changed(ids=["a", "b", "", "c"]), "The id '' is not a name"),
        (changed(ids=[]), "of 0 entries and 2 modalities"),
        (changed(values={}), "of 4 entries and 0 modalities"),
        (changed(ids=["a", "b", "c"]), "The column 'key' has the shape .4, 8.; it needs 2 dimensions.* of 3 entries"),
        (changed(plans=np.ones((4, 0))), "The column 'plan' has the shape .4, 0."),
        (changed(values={"text": np.ones((4, 3))}), "The column 'value_text' has the shape .4, 3.; it needs 3"),
        (changed(keys=np.full((4, 2), np.nan)), "The column 'key' holds numbers that are not finite"),
        (changed(factory="Flatt"), "FAISS cannot build the index 'Flatt' .*could not parse.*; 'Flat' works"),
        (
            changed(factory="IVF16,Flat"),
            r"FAISS cannot build the index 'IVF16,Flat' over 4 keys .*\(Number of training",
        ),
        (changed(factory="PQ3"), r"width 8 \(The dimension of the vector \(d\) should be a multiple .*\); 'Flat'"),
        (changed(factory="PQ4"), r"width 8 \(Number of training points \(4\) should be .* 'Flat' works"),
        (changed(factory="IVF1000000000000,Flat"), "FAISS cannot build"),
        (changed(factory="HNSW0"), "no size may be 0, and a graph needs at least 2 links"),
        (changed(factory="IVF4_HNSW1,Flat"), "a graph needs at least 2 links"),
        (changed(factory="PQ4x0"), "no size may be 0"),
    ],
)
def test_what_cannot_be_built(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        KnowledgeBase.build(**given)
    assert "\n" not in str(raised.value) and ".cpp" not in str(raised.value) and "rror" not in str(raised.value)


def test_what_cannot_be_searched() -> None:
    base = KnowledgeBase.build(**parts(count=4))
    with pytest.raises(ValueError, match="The queries have the shape .1, 3.; this knowledge base's keys have width 8"):
        base.search(np.ones((1, 3), dtype=np.float32), 1)
    with pytest.raises(ValueError, match="k is 0; at least 1"):
        base.search(np.ones((1, WIDTH), dtype=np.float32), 0)


@pytest.mark.parametrize("package", ["faiss", "datasets", "pyarrow"])
def test_without_a_package_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package '{package}'.*: pip install 'hf-msa\[omg\]'"):
        KnowledgeBase.build(**parts(count=4))


def test_all_numbers_of_a_column(tmp_path: Path) -> None:
    given = parts()
    base = KnowledgeBase.build(**given)
    np.testing.assert_array_equal(base.numbers("observation"), given["observations"])
    sharded = in_small_chunks(base, tmp_path / "kb")
    assert len(sharded._views["plan"]) == 4
    for name, expected in (("observation", given["observations"]), ("value_text", given["values"]["text"])):
        np.testing.assert_array_equal(sharded.numbers(name), expected)
    with pytest.raises(
        ValueError, match="no column 'id' of numbers, only key, plan, observation, value_audio, value_text"
    ):
        base.numbers("id")
