"""What a planner remembers in memory."""

import numpy as np

from hf_msa.models.omg_plan_store import MemoryStore, to_half


def vector(value: float) -> np.ndarray:
    return np.full(4, value, dtype=np.float16)


class TestMemoryStore:
    def test_finds_what_was_added_and_nothing_else(self) -> None:
        store = MemoryStore()
        store.add_vectors({"a": vector(1.0)})
        store.add_proposals({"a": (("plan", -1.0),)})
        assert store.proposals(["a", "b"]) == {"a": (("plan", -1.0),)}
        assert store.vectors(["b"]) == {}
        assert np.array_equal(store.vectors(["a"])["a"], vector(1.0))

    def test_the_first_answer_stays(self) -> None:
        store = MemoryStore()
        for value in (1.0, 2.0):
            store.add_vectors({"a": vector(value)})
            store.add_proposals({"a": (("plan", value),)})
        assert store.vectors(["a"])["a"][0] == 1.0 and store.proposals(["a"])["a"][0][1] == 1.0

    def test_forgets_what_was_not_asked_for_longest(self) -> None:
        store = MemoryStore(max_bytes=2 * 308)  # two vectors of 8 bytes each
        store.add_vectors({"a": vector(1.0), "b": vector(2.0)})
        store.vectors(["a"])
        store.add_vectors({"c": vector(3.0)})
        assert store.vectors(["a", "b", "c"]).keys() == {"a", "c"}

    def test_forgets_proposals_too(self) -> None:
        store = MemoryStore(max_bytes=1000)
        for number in range(50):
            store.add_proposals({str(number): (("x" * 100, -1.0),)})
        assert 0 < len(store.proposals(map(str, range(50)))) < 4
        assert store.proposals(["49"])

    def test_is_no_view_of_a_batch(self) -> None:
        store, batch = MemoryStore(), np.stack([vector(1.0), vector(2.0)])
        store.add_vectors(dict(zip("ab", batch, strict=True)))
        batch[:] = 0
        assert store.vectors(["b"])["b"][0] == 2.0


def test_what_is_too_large_for_half_precision_stays_finite() -> None:
    half = to_half(np.array([[1e9, -1e9, 0.1]], dtype=np.float32))
    assert half.dtype == np.float16 and half.tolist() == [[65504.0, -65504.0, float(np.float16(0.1))]]
