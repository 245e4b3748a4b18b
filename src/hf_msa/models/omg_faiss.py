"""FAISS for knowledge bases of OMG-Agent that are too large to compare every key with every query: an option."""

import re

import numpy as np
import torch
from torch import Tensor

from .msa_packages import optional_package

# With most sizes of 0 and with graphs of a single link, FAISS ends the process or never comes back.
_DEADLY_FACTORY = re.compile(r"(?<!\d)0+(?!\d)|(?:HNSW|NSG)0*1(?!\d)")


class FaissIndex:
    """An index of keys by inner product.

    Args:
        keys (`torch.FloatTensor` of shape `(N, query_dim)`): Unit vectors.
        factory: FAISS's factory string, e.g. ``"HNSW32"`` or ``"IVF1000,SQ8"``.
        nprobe: Lists of an ``IVF`` index that are looked through; None: FAISS's 1, which misses much.
        ef_search: Keys that an ``HNSW`` graph, also one that finds lists of an ``IVF`` index, keeps in view; None: FAISS's
            16.

    Raises:
        ValueError: If FAISS cannot build that index, or it has no use for one of the numbers.
        ImportError: If FAISS is not installed.
    """

    def __init__(self, keys: Tensor, factory: str, nprobe: int | None = None, ef_search: int | None = None) -> None:
        self._faiss = optional_package("faiss", "hf-msa[kb]", f"The index {factory!r}")
        self._factory, table = factory, np.ascontiguousarray(keys.cpu().numpy(), dtype=np.float32)
        try:
            if _DEADLY_FACTORY.search(factory):
                raise RuntimeError("no size may be 0, and a graph needs at least 2 links per key")
            self.index = self._faiss.index_factory(table.shape[1], factory, self._faiss.METRIC_INNER_PRODUCT)
            if not self.index.is_trained:
                self.index.train(table)
            self.index.add(table)
        except (RuntimeError, MemoryError) as error:
            # The first line of its message, without the place in FAISS's source.
            line = re.sub(r"^Error in .*?\.(?:cpp|h):\d+: (?:Error: '.*' failed: )?", "", str(error).split("\n")[0])
            raise ValueError(
                f"FAISS cannot build the index {factory!r} over {len(table)} keys of width {table.shape[1]} "
                f"({line.removesuffix('.') or 'out of memory'}); 'Flat' works for every knowledge base."
            ) from error
        self.set_effort(nprobe, ef_search)

    def set_effort(self, nprobe: int | None = None, ef_search: int | None = None) -> None:
        """Search more or less thoroughly from now on; see the class."""
        # A graph may be the index, or find the lists of one.
        efforts = (("nprobe", nprobe, ["nprobe"]), ("ef_search", ef_search, ["efSearch", "quantizer_efSearch"]))
        for name, number, parameters in efforts:
            if number is not None and not any(self._takes(parameter, number) for parameter in parameters):
                raise ValueError(
                    f"A search in the index {self._factory!r} takes no {name}; nprobe is for IVF, ef_search for HNSW."
                )

    def _takes(self, parameter: str, number: int) -> bool:
        """Set a parameter of the index's search, if it has it."""
        try:
            self._faiss.ParameterSpace().set_index_parameter(self.index, parameter, number)
        except RuntimeError:
            return False
        return True

    def search(self, queries: Tensor, count: int) -> Tensor:
        """Rows `(batch, count)` of the keys nearest to queries `(batch, query_dim)`, best first; -1 where none is left."""
        table = np.ascontiguousarray(queries.cpu().numpy(), dtype=np.float32)
        rows = self.index.search(table, count)[1]
        return torch.from_numpy(rows).to(queries.device)
