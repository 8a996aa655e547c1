"""An index for Faiss alone: `IVF{L}_HNSW32,RQ{M}x{bits}_Nqint8` with additive codebooks and codes put in (method §6).

It searches as the first look does; pairwise decoder and network stay here. Faiss builds its look-up table for every
list, of q − c, so the norm it wants of an entry is that of its residual's reconstruction alone, ‖r‖².
Fewer than 256 lists have no graph: all their centroids are compared.
Shapes: n entries of a batch, M symbols, K codewords, D dimension, L lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.packing import unpack
from qinco_core.errors import UsageError
from qinco_core.files import atomic_output, check_output, storage_errors, write_all
from qinco_core.index.additive import additive_sums
from qinco_core.index.rewrite import GRAPH_FROM
from qinco_core.optional import import_faiss
from qinco_core.store.index import StoredIndex

Array = NDArray[Any]
_ROWS = 1 << 16
# norms that Faiss's 256 levels are placed by
_NORMS = 1 << 18
_LINKS = 32


def export_faiss(stored: StoredIndex, path: str | Path, *, force: bool = False) -> None:
    """Write an index that `faiss.read_index` reads; all of it is made in memory.

    Raises:
        DependencyError: Faiss is not installed.
        OutputExistsError: `path` exists and `force` is false.
        UsageError: symbols are of more than 8 bits, which such an index has no room for.
        StorageError: the disk is full or read-only.
    """
    faiss = check_export(stored.arrays["additive"].shape[1], path, force=force)
    with atomic_output(path, force=force) as temporary:
        raw = faiss.serialize_index(_index(faiss, stored))
        with storage_errors(path), temporary.open("wb") as handle:
            write_all(handle, raw)


def check_export(K: int, path: str | Path, *, force: bool) -> Any:
    """Refuse what cannot be exported, with the errors of `export_faiss`; gives the module of Faiss."""
    if K > 256:
        raise UsageError(f"symbols of K = {K} codewords do not fit an index of Faiss: it has 8 bits for one at most")
    check_output(path, force=force)
    return import_faiss()


def _index(faiss: Any, stored: StoredIndex) -> Any:
    additive, centroids = stored.arrays["additive"], stored.arrays["centroids"]
    M, K, D = additive.shape
    quantizer = faiss.IndexHNSWFlat(D, _LINKS) if len(centroids) >= GRAPH_FROM else faiss.IndexFlatL2(D)
    quantizer.add(centroids)
    bits = K.bit_length() - 1
    form = faiss.AdditiveQuantizer.ST_norm_qint8
    index = faiss.IndexIVFResidualQuantizer(quantizer, D, len(centroids), M, bits, faiss.METRIC_L2, form)
    quantizer.this.disown()
    index.own_fields = True
    rq = index.rq
    faiss.copy_array_to_vector(additive.ravel(), rq.codebooks)
    offsets, codes = stored.arrays["offsets"], stored.flat["codes"]
    norms = _norms(additive, unpack(np.asarray(codes[:: max(1, len(codes) // _NORMS)]), M, K))
    rq.train_norm(len(norms), faiss.swig_ptr(norms))
    rq.is_trained = index.is_trained = True
    for number in np.flatnonzero(np.diff(offsets)):
        for start in range(int(offsets[number]), int(offsets[number + 1]), _ROWS):
            rows = slice(start, min(start + _ROWS, int(offsets[number + 1])))
            symbols = np.ascontiguousarray(unpack(np.asarray(codes[rows]), M, K), dtype=np.int32)
            norms = _norms(additive, symbols)
            packed = np.empty((len(symbols), rq.code_size), np.uint8)
            pointers = faiss.swig_ptr(symbols), faiss.swig_ptr(packed), -1, faiss.swig_ptr(norms), None
            rq.pack_codes(len(symbols), *pointers)
            ids = np.asarray(stored.flat["ids"][rows]).astype(np.int64)
            index.invlists.add_entries(int(number), len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(packed))
    index.ntotal = len(codes)
    return index


def _norms(additive_MKD: Array, symbols_nM: Array) -> NDArray[np.float32]:
    r_nD = additive_sums(additive_MKD, symbols_nM)
    norms: NDArray[np.float32] = np.einsum("nd,nd->n", r_nD, r_nD)
    return norms
