"""Plans on disk: what one process wrote another finds, and neither a kill nor a damaged file does any harm."""

import gc
import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_msa.data import plan_cache
from hf_msa.data.plan_cache import PlanCache
from hf_msa.errors import MsaError

ANSWERS = {"a": (("Entity: x; ...", -1.25), ("\u597d \n", -0.1)), "b": ()}


def vectors(*names: str, width: int = 3) -> dict[str, np.ndarray]:
    """A vector of each key's own."""
    return {name: np.full(width, sum(map(ord, name)) / 8, dtype=np.float16) for name in names}


def assert_known(cache: PlanCache, expected: dict[str, np.ndarray]) -> None:
    found = cache.vectors(expected)
    assert found.keys() == expected.keys()
    for key, vector in expected.items():
        assert found[key].dtype == np.float16 and np.array_equal(found[key], vector)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


class TestKeeping:
    def test_what_was_written_is_read_again(self, tmp_path: Path) -> None:
        cache = PlanCache(tmp_path / "new" / "folder")
        cache.add_proposals(ANSWERS)
        cache.add_vectors(vectors("a", "b"))
        cache.flush()
        again = PlanCache(tmp_path / "new" / "folder")
        assert again.proposals(["b", "a", "c"]) == ANSWERS
        assert_known(again, vectors("b", "a"))
        assert again.vectors(["c"]) == {} and again.entries == 4

    def test_is_known_before_it_is_written(self, tmp_path: Path) -> None:
        cache = PlanCache(tmp_path)
        cache.add_proposals(ANSWERS)
        cache.add_vectors(vectors("a"))
        assert not shards(tmp_path)
        assert cache.proposals(["a"]) == {"a": ANSWERS["a"]} and cache.entries == 3
        assert_known(cache, vectors("a"))

    def test_widths_may_differ(self, tmp_path: Path) -> None:
        both = vectors("a", "b") | vectors("c", width=5)
        PlanCache(tmp_path).add_vectors(both)
        gc.collect()
        assert len(shards(tmp_path)) == 2
        assert_known(PlanCache(tmp_path), both)

    def test_a_shard_is_written_when_it_is_full_or_old(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan_cache, "ENTRIES_PER_SHARD", 2)
        cache = PlanCache(tmp_path)
        cache.add_vectors(vectors("a"))
        assert not shards(tmp_path)
        cache.add_vectors(vectors("b"))
        assert len(shards(tmp_path)) == 1
        monkeypatch.setattr(plan_cache, "SECONDS_PER_SHARD", 0.0)
        cache.add_vectors(vectors("c"))
        assert len(shards(tmp_path)) == 2

    def test_known_entries_are_not_written_twice(self, tmp_path: Path) -> None:
        cache = PlanCache(tmp_path)
        for _ in range(2):
            cache.add_vectors(vectors("a"))
            cache.flush()
        assert len(shards(tmp_path)) == 1

    def test_memory_may_be_too_small_for_all_shards(self, tmp_path: Path) -> None:
        cache = PlanCache(tmp_path, max_bytes=1)
        for name in "abc":
            cache.add_vectors(vectors(name))
            cache.flush()
        for _ in range(2):
            assert_known(cache, vectors("a", "b", "c"))

    def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(MsaError, match="cannot be made"):
            PlanCache(tmp_path / "file")


class TestSharing:
    def test_what_another_process_writes_is_found_without_opening_anew(self, tmp_path: Path) -> None:
        one, other = PlanCache(tmp_path), PlanCache(tmp_path)
        one.add_vectors(vectors("a"))
        other.add_vectors(vectors("b"))
        assert one.vectors(["b"]) == other.vectors(["a"]) == {}
        one.flush()
        other.flush()
        assert_known(one, vectors("a", "b"))
        assert_known(other, vectors("a", "b"))

    def test_of_entries_that_two_wrote_all_readers_take_the_first(self, tmp_path: Path) -> None:
        one, other = PlanCache(tmp_path), PlanCache(tmp_path)
        first, second = {"a": np.ones(2, np.float16)}, {"a": np.zeros(2, np.float16)}
        one.add_vectors(first)
        other.add_vectors(second)
        one.flush()
        other.flush()
        assert len(shards(tmp_path)) == 2
        assert_known(PlanCache(tmp_path), first)

    def test_ends_by_itself_and_a_kill_costs_only_what_was_not_written(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, sys, numpy as np\n"
            "from hf_msa.data.plan_cache import PlanCache\n"
            "for folder in sys.argv[1:]:\n"
            "    cache = PlanCache(folder)\n"
            "    cache.add_vectors({'a': np.ones(2, np.float16)})\n"
            "    if folder == sys.argv[2]:\n"
            "        cache.flush()\n"
            "        cache.add_vectors({'b': np.ones(2, np.float16)})\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    cache = None\n"
        )
        ended, killed = tmp_path / "ended", tmp_path / "killed"
        done = subprocess.run([sys.executable, "-c", code, str(ended), str(killed)], check=False)
        assert done.returncode == -signal.SIGKILL
        for folder in (ended, killed):
            assert_known(PlanCache(folder), {"a": np.ones(2, np.float16)})
            assert PlanCache(folder).vectors(["b"]) == {}

    def test_a_folder_that_was_deleted_does_not_come_back_by_itself(self, tmp_path: Path) -> None:
        cache = PlanCache(tmp_path / "cache")
        cache.add_vectors(vectors("a"))
        (tmp_path / "cache").rmdir()
        del cache
        gc.collect()
        assert not (tmp_path / "cache").exists()

    def test_half_written_files_are_passed_over(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / ".vectors-1.parquet.x.parquet").write_bytes(b"PAR1")
        assert PlanCache(tmp_path).entries == 0 and not caplog.records


class TestDamage:
    def written(self, folder: Path) -> Path:
        cache = PlanCache(folder)
        cache.add_vectors(vectors("a", "b"))
        cache.flush()
        (file,) = shards(folder)
        return file

    def assert_asked_again(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        """What was in the damaged shard is unknown, which is said once, and can be kept anew."""
        cache = PlanCache(folder)
        with caplog.at_level(logging.WARNING):
            assert cache.vectors(["a"]) == cache.vectors(["a", "b"]) == {}
        assert [record.message.count("asked again") for record in caplog.records] == [1]
        cache.add_vectors(vectors("a"))
        cache.flush()
        assert_known(PlanCache(folder), vectors("a"))

    def test_a_file_that_was_cut_off(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = self.written(tmp_path)
        file.write_bytes(file.read_bytes()[:-40])
        self.assert_asked_again(tmp_path, caplog)

    def test_a_flipped_bit_among_the_vectors(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = self.written(tmp_path)
        column = pq.ParquetFile(file).metadata.row_group(0).column(1)
        begin = column.data_page_offset
        content = bytearray(file.read_bytes())
        content[begin + column.total_compressed_size - 1] ^= 4
        file.write_bytes(content)
        self.assert_asked_again(tmp_path, caplog)

    @pytest.mark.parametrize(
        "table",
        [
            pa.table({"key": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float64()))}),
            pa.table({"key": ["a"]}),
            pa.table({"key": ["a", "a"], "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float16(), 1))}),
        ],
        ids=["numbers of another kind", "no vectors", "a key twice"],
    )
    def test_a_file_of_another_make(self, table: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        metadata = {b"hf_msa_plan_cache": b"1"}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "vectors-0.parquet")
        self.assert_asked_again(tmp_path, caplog)

    def test_a_file_of_another_format(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = self.written(tmp_path)
        pq.write_table(pq.read_table(file).replace_schema_metadata({b"hf_msa_plan_cache": b"2"}), file)
        self.assert_asked_again(tmp_path, caplog)

    def test_a_folder_that_was_deleted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        cache = PlanCache(tmp_path / "cache", max_bytes=1)
        for name in "ab":
            cache.add_vectors(vectors(name))
            cache.flush()
        for file in shards(tmp_path / "cache"):
            file.unlink()
        (tmp_path / "cache").rmdir()
        assert cache.vectors(["a"]) == {} and "asked again" in caplog.text
        cache.add_vectors(vectors("a"))
        cache.flush()
        assert_known(PlanCache(tmp_path / "cache"), vectors("a"))
