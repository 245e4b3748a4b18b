"""Indexes for large knowledge bases: what they find, and what FAISS cannot build, in one sentence."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_msa.models.omg_faiss import FaissIndex

pytest.importorskip("faiss")
WIDTH = 8


def units(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def exact(queries: Tensor, keys: Tensor, count: int) -> Tensor:
    return (queries @ keys.T).topk(count, dim=1).indices


def test_flat_finds_what_a_comparison_with_all_keys_finds() -> None:
    keys, queries = units(40), units(7, seed=1)
    assert torch.equal(FaissIndex(keys, "Flat").search(queries, 5), exact(queries, keys, 5))


def test_where_fewer_are_found_nothing_stands() -> None:
    rows = FaissIndex(units(2), "Flat").search(units(1, seed=1), 4)
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 1] and rows[0, 2:].tolist() == [-1, -1]


@pytest.mark.parametrize("factory", ["HNSW16", "IVF2,Flat", "PQ4x4"])
def test_any_factory_string_gives_the_same_each_time(factory: str) -> None:
    keys = units(200)
    first, second = (FaissIndex(keys, factory).search(keys, 3) for _ in range(2))
    assert torch.equal(first, second) and (first[:, 0] == torch.arange(200)).float().mean() > 0.5


@pytest.mark.parametrize("factory", ["IVF10,Flat", "RR8,IVF10,Flat"])
def test_more_lists_find_more(factory: str) -> None:
    keys, queries = units(400), units(50, seed=1)
    truth = exact(queries, keys, 10)
    once, whole = (FaissIndex(keys, factory, nprobe=nprobe).search(queries, 10) for nprobe in (None, 10))
    assert (whole == truth).float().mean() > 0.99 > (once == truth).float().mean()


@pytest.mark.parametrize("factory", ["HNSW4", "IVF200_HNSW4,Flat"])
def test_a_wider_view_finds_more(factory: str) -> None:
    keys, queries = units(1000), units(50, seed=1)
    index, truth, found = FaissIndex(keys, factory), exact(queries, keys, 1), []
    for ef_search in (1, 500):
        index.set_effort(50 if factory.startswith("IVF") else None, ef_search)
        found.append((index.search(queries, 1) == truth).float().mean())
    assert found[0] < 0.9 < found[1]


@pytest.mark.parametrize(
    ("factory", "effort", "message"),
    [
        ("HNSW4", {"nprobe": 4}, "A search in the index 'HNSW4' takes no nprobe; nprobe is for IVF"),
        ("IVF2,Flat", {"ef_search": 4}, "A search in the index 'IVF2,Flat' takes no ef_search"),
    ],
)
def test_effort_that_an_index_cannot_make(factory: str, effort: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaissIndex(units(200), factory, **effort)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Flatt", "FAISS cannot build the index 'Flatt' .*could not parse.*; 'Flat' works"),
        ("IVF16,Flat", r"FAISS cannot build the index 'IVF16,Flat' over 4 keys .*\(Number of training"),
        ("PQ3", r"width 8 \(The dimension of the vector \(d\) should be a multiple .*\); 'Flat'"),
        ("PQ4", r"width 8 \(Number of training points \(4\) should be .* 'Flat' works"),
        ("IVF1000000000000,Flat", "FAISS cannot build"),
        ("HNSW0", "no size may be 0, and a graph needs at least 2 links"),
        ("IVF4_HNSW1,Flat", "a graph needs at least 2 links"),
        ("PQ4x0", "no size may be 0"),
    ],
)
def test_what_cannot_be_built(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        FaissIndex(units(4), factory)
    assert "\n" not in str(raised.value) and ".cpp" not in str(raised.value) and "rror" not in str(raised.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"needs the package 'faiss'.*: pip install 'hf-msa\[kb\]'"):
        FaissIndex(units(4), "HNSW8")
