"""FAISS for knowledge bases of OMG-Agent that are too large to compare every key with every query: an option."""

import importlib
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        try:
            self._faiss = importlib.import_module("faiss")
        except ImportError as error:
            raise ImportError(
                f"The index {factory!r} needs the package 'faiss', which is not installed: pip install 'hf-msa[kb]'; 'Flat' "
                "needs none."
            ) from error
        table = np.ascontiguousarray(keys.cpu().numpy(), dtype=np.float32)
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
        self._parameters = self._search_parameters(self.index, nprobe, ef_search)

    def _search_parameters(self, index: Any, nprobe: int | None, ef_search: int | None) -> Any:
        """FAISS's parameters of a search, handed down to the parts of an index that read them."""
        faiss = self._faiss
        index = faiss.downcast_index(index)
        if nprobe is None and ef_search is None:
            return None
        if isinstance(index, faiss.IndexPreTransform):
            inner = self._search_parameters(index.index, nprobe, ef_search)
            return faiss.SearchParametersPreTransform(index_params=inner)
        if isinstance(index, faiss.IndexIVF):
            inner = self._search_parameters(index.quantizer, None, ef_search)
            return faiss.SearchParametersIVF(nprobe=nprobe or index.nprobe, quantizer_params=inner)
        if isinstance(index, faiss.IndexHNSW) and nprobe is None:
            return faiss.SearchParametersHNSW(efSearch=ef_search)
        raise ValueError(
            f"A search in an {type(index).__name__} takes no {'ef_search' if nprobe is None else 'nprobe'}; nprobe is for "
            "IVF indexes, ef_search for HNSW."
        )

    def search(self, queries: Tensor, count: int) -> Tensor:
        """Rows of the keys nearest to each of the `queries` `(batch, query_dim)`, best first.

        Returns:
            `torch.LongTensor` of shape `(batch, count)`; -1 where the index has found fewer.
        """
        table = np.ascontiguousarray(queries.cpu().numpy(), dtype=np.float32)
        rows = self.index.search(table, count, params=self._parameters)[1]
        return torch.from_numpy(rows).to(queries.device)
