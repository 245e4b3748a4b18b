"""Search in knowledge bases of growing size: ``python -m benchmarks.retrieval``; see docs/retrieval.md.

Generated keys are searched as OMG-Agent does it, exactly (``Flat``) or by an index of FAISS: queries per second, how many of
the exact ten nearest are found, what building the index takes (whenever the keys are made anew), and its size. Beside it the
reading of what was found from a mapped file, with latents of the true shapes.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.omg_faiss import FaissIndex
from hf_msa.models.omg_knowledge_base import KnowledgeBase

from .report import write_both
from .throughput import machine, peak_memory, quiet, spread

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Result = TypeVar("Result")

FOUND = 10
EFFORTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "HNSW": ("ef_search", (16, 64, 256)),
    "IVF": ("nprobe", (1, 16, 64)),
}
"""How thoroughly is searched, by the beginning of the factory string; the first is FAISS's default."""
CLUSTERS = 1000
DIMENSIONS = 32
"""Of the generated keys: as many clusters, which lie in a space of so few dimensions."""


@dataclass(frozen=True)
class Setting:
    """What is measured; the defaults are those of the full benchmark.

    Args:
        sizes: Entries of the knowledge bases.
        indexes: FAISS factory strings, in which ``{lists}`` stands for the root of the number of entries.
        width: Of the keys.
        queries: How many are searched for.
        batch_size: Queries that are searched for together.
        single_queries: How many are searched for one at a time.
        embedding_dim: Width of plans and observations, for the reading of entries.
        latent_shape: Shape of an entry's latents of each modality, for the same.
        repeats: Measured turns.
        threads: Threads of torch and FAISS.
    """

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    indexes: tuple[str, ...] = ("Flat", "HNSW32", "IVF{lists},Flat", "IVF{lists},SQ8")
    width: int = 256
    queries: int = 256
    batch_size: int = 128
    single_queries: int = 32
    embedding_dim: int = 2048
    latent_shape: tuple[int, int] = (25, 32)
    repeats: int = 3
    threads: int = 1


def clustered(count: int, width: int, seed: int) -> Floats:
    """Unit vectors in clusters that overlap: of few dimensions of their own, each with as much noise as its centre has.

    Args:
        count: How many.
        width: Their width.
        seed: Of the draws; the centres, and the dimensions' directions, are the same for all.

    Returns:
        `(count, width)`, float32.
    """
    fixed, draw = np.random.default_rng(0), np.random.default_rng([1, seed])
    centres = fixed.standard_normal((CLUSTERS, DIMENSIONS), dtype=np.float32)
    points = draw.standard_normal((count, DIMENSIONS), dtype=np.float32)
    points += centres[draw.integers(CLUSTERS, size=count)]
    vectors = points @ fixed.standard_normal((DIMENSIONS, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def found_share(rows: Rows, exact: Rows) -> float:
    """Recall: how many of the exact nearest entries are among those that were found, of all `(queries, k)`."""
    return float(np.mean([len(np.intersect1d(ours, theirs)) for ours, theirs in zip(rows, exact, strict=True)])) / len(
        exact[0]
    )


def computing(run: Callable[..., Result], *arguments: Any) -> tuple[float, Result]:
    """Seconds that this process computes in a call, which other load on the machine hardly changes, and what it gives."""
    started = time.process_time()
    result = run(*arguments)
    return time.process_time() - started, result


def exact_rows(keys: Floats, queries: Floats) -> Rows:
    """The nearest keys, as `EvidenceRetriever` finds them without an index."""
    rows: Rows = (torch.from_numpy(queries) @ torch.from_numpy(keys).T).topk(FOUND, dim=1).indices.numpy()
    return rows


def searched(search: Callable[[Floats], Rows], queries: Floats, exact: Rows, setting: Setting) -> dict[str, Any]:
    """Speed and recall of one search.

    Args:
        search: Finds rows `(batch, FOUND)` for queries.
        queries: `(queries, width)`.
        exact: Rows of the true nearest entries `(queries, FOUND)`.
        setting: Says how much is measured.
    """

    def found(size: int, count: int) -> list[Rows]:
        return [search(queries[start : start + size]) for start in range(0, count, size)]

    batch, single = [], []
    rows: list[Rows] = []
    for _ in range(setting.repeats):
        seconds, rows = computing(found, setting.batch_size, len(queries))
        batch.append(len(queries) / seconds)
        count = min(setting.single_queries, len(queries))
        single.append(count / computing(found, 1, count)[0])
    return {
        "recall": found_share(np.concatenate(rows), exact),
        "batch_per_second": spread(batch),
        "single_per_second": spread(single),
    }


def measure_size(entries: int, setting: Setting) -> dict[str, Any]:
    """Every index over as many entries.

    Args:
        entries: How many.
        setting: What to measure.

    Returns:
        Factory string -> what was measured.
    """
    import faiss

    keys, queries = clustered(entries, setting.width, 1), clustered(setting.queries, setting.width, 2)
    exact = exact_rows(keys, queries)
    measured: dict[str, Any] = {}
    for pattern in setting.indexes:
        factory = pattern.format(lists=round(math.sqrt(entries)))
        if factory == "Flat":
            search = {"effort": {}, **searched(lambda some: exact_rows(keys, some), queries, exact, setting)}
            measured[factory] = {"build_seconds": 0.0, "index_bytes": keys.nbytes, "searches": [search]}
            continue
        seconds, index = computing(FaissIndex, torch.from_numpy(keys), factory)
        name, numbers = next((effort for start, effort in EFFORTS.items() if factory.startswith(start)), ("", (0,)))
        searches = []
        for number in numbers:
            effort = {name: number} if name else {}
            index.set_effort(**effort)

            def search_index(some: Floats, index: FaissIndex = index) -> Rows:
                rows: Rows = index.search(torch.from_numpy(some), FOUND).numpy()
                return rows

            searches.append({"effort": effort, **searched(search_index, queries, exact, setting)})
        size = len(faiss.serialize_index(index.index))
        measured[factory] = {"build_seconds": seconds, "index_bytes": size, "searches": searches}
    return measured


def measure_reading(setting: Setting) -> dict[str, Any]:
    """Reading of entries with latents of the true shapes from a mapped file: of the smallest size."""
    entries = min(setting.sizes)
    draw = torch.Generator().manual_seed(3)
    wide = torch.randn(entries, setting.embedding_dim, generator=draw)
    values = {name: torch.randn(entries, *setting.latent_shape, generator=draw) for name in MODALITIES}
    with tempfile.TemporaryDirectory() as folder:
        KnowledgeBase([str(row) for row in range(entries)], wide, wide, values).save(folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        base = KnowledgeBase.load(folder)

        def read(rows: Tensor) -> list[Tensor]:
            return [table[rows] for table in (base.plans, *base.values.values())]

        batches = torch.randint(entries, (setting.repeats, setting.batch_size, FOUND + 1), generator=draw)
        seconds = [computing(read, rows)[0] for rows in batches]
    return {
        "entries": entries,
        "bytes_per_entry": size / entries,
        "samples_per_second": spread(setting.batch_size / each for each in seconds),
    }


def measure(setting: Setting) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        setting: What to measure.

    Returns:
        What retrieval.json holds.
    """
    import faiss

    quiet()
    torch.set_num_threads(setting.threads)
    faiss.omp_set_num_threads(setting.threads)
    return {
        "schema_version": 1,
        "machine": {**machine(setting.threads), "faiss": faiss.__version__},
        "setting": {field.name: getattr(setting, field.name) for field in fields(setting)},
        "reading": measure_reading(setting),
        "measured": {str(entries): measure_size(entries, setting) for entries in setting.sizes},
        "peak_memory": peak_memory(),
    }


def _per_second(values: dict[str, float]) -> str:
    return f"{values['median']:,.0f} ({values['low']:,.0f} to {values['high']:,.0f})"


def markdown(content: dict[str, Any]) -> str:
    """The table and its conditions as Markdown."""
    about, where, reading = content["setting"], content["machine"], content["reading"]
    batch, single = (f"queries/s, {size} at a time" for size in (about["batch_size"], "one"))
    lines = [
        f"| entries | index | effort | {batch} | {single} | recall@{FOUND} | built in | index |",
        "|" + "---|" * 8,
    ]
    for entries, indexes in content["measured"].items():
        for factory, found in indexes.items():
            for search in found["searches"]:
                effort = ", ".join(f"{name} {number}" for name, number in search["effort"].items()) or "exact"
                lines.append(
                    f"| {int(entries):,} | {factory} | {effort} | {_per_second(search['batch_per_second'])} | "
                    f"{_per_second(search['single_per_second'])} | {search['recall']:.3f} | "
                    f"{found['build_seconds']:.1f} s | {found['index_bytes'] / 2**20:,.0f} MiB |"
                )
    frames, channels = about["latent_shape"]
    lines += [
        "",
        f"Unit keys of width {about['width']} in {CLUSTERS:,} overlapping clusters of {DIMENSIONS} dimensions, "
        f"{about['queries']} queries of the same kind "
        f"({min(about['single_queries'], about['queries'])} of them one at a time), the {FOUND} nearest of each; medians, "
        f"lowest and highest of {about['repeats']} turns.",
        "",
        f"Reading {FOUND + 1} entries per sample from a mapped file of {reading['entries']:,}, with embeddings of width "
        f"{about['embedding_dim']} and latents {frames} x {channels} of each of the {len(MODALITIES)} modalities: "
        f"{_per_second(reading['samples_per_second'])} samples/s; on disk an entry has "
        f"{reading['bytes_per_entry'] / 1024:.1f} KiB.",
        "",
        f"CPU, {where['architecture']} {where['system']}, {where['cpu capability']}, {where['threads']} of {where['cpus']} "
        f"CPUs, seconds of computing, faiss {where['faiss']}; peak memory of the process "
        f"{content['peak_memory'] / 2**30:.1f} GiB.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the benchmark."""
    defaults = Setting()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=defaults.sizes, help="entries (default %(default)s)")
    parser.add_argument(
        "--indexes",
        nargs="+",
        default=defaults.indexes,
        help="FAISS factory strings, {lists} is the root of the entries",
    )
    for name, text in (("width", "of the keys"), ("queries", "searched for"), ("repeats", "measured turns")):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(defaults, name), help=f"{text} (default %(default)s)"
        )
    parser.add_argument("--threads", type=int, default=defaults.threads, help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that the benchmark runs")
    parser.add_argument("--output", type=Path, help="folder for retrieval.json and retrieval.md")
    given = parser.parse_args(arguments)
    for name in ("width", "queries", "repeats", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}; give at least 1.")
    if min(given.sizes) < 2 * FOUND:
        parser.error(f"--sizes has {min(given.sizes)}; give at least {2 * FOUND} entries.")
    asked = {name: value for name, value in vars(given).items() if name not in ("quick", "output")}
    asked |= {name: tuple(asked[name]) for name in ("sizes", "indexes")}
    if given.quick:
        asked |= {"sizes": (500, 1000), "width": 16, "queries": 20, "repeats": 1, "embedding_dim": 8}
    content = measure(Setting(**asked))
    print(markdown(content))
    if given.output is not None:
        write_both(given.output, "retrieval", content, markdown(content))


if __name__ == "__main__":
    main()
