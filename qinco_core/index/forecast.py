"""How large an index is going to be, and how long building it takes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from qinco_core.api import Codec
from qinco_core.errors import UsageError
from qinco_core.index.build import Estimator, Scale
from qinco_core.index.coarse import Coarse
from qinco_core.index.lists import passes
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.rewrite import GRAPH_FROM, Writer
from qinco_core.store import StoredCodes
from qinco_core.store.index import smallest_ids

_GRAPH = 1024  # centroids in a graph that is built to see how long it takes


def bytes_per_entry(codec: Codec, pairwise: str | Path | None, largest_id: int) -> int:
    """Bytes of an entry in the flat arrays of an index.

    Args:
        codec: the saved model.
        pairwise: the pairwise decoder's artifact, if the index is to have one.
        largest_id: of the entries.

    Raises:
        LineageError: the decoder is of another model.
        UsageError: the model was not saved.
    """
    if codec.header is None:
        raise UsageError("save the model first: an index names the model that made its codes")
    decoder = None if pairwise is None else Pairwise.load(pairwise, codec.header, codec.centroids)
    nothing = np.empty((0, codec.config.D), np.float32)
    estimator = Estimator(codec, nothing, np.empty((0, 0, 0), np.float32), decoder)
    columns = estimator.columns(smallest_ids(largest_id), dict.fromkeys(estimator.looks, Scale(0.0, 0.0)))
    return sum(int(np.prod(c.shape, dtype=np.int64)) * np.dtype(c.dtype).itemsize for c in columns.values())


def building_seconds(codec: Codec, codes: StoredCodes, pairwise: str | Path | None, memory: int, width: int) -> float:
    """What building takes, from short measurements: passes over the codes, norms, and the graph of the centroids.

    Args:
        codec: the saved model.
        codes: its codes.
        pairwise: the pairwise decoder's artifact, if the index is to have one.
        memory: bytes that sorting may take.
        width: bytes of an entry.
    """
    c = codec.config
    assert codec.header is not None
    decoder = None if pairwise is None else Pairwise.load(pairwise, codec.header, codec.centroids).for_search()
    additive = np.zeros((c.M, c.K, c.D), np.float32) if decoder is None else decoder.additive_MKD
    estimator = Writer(Path(), codec, additive, decoder, memory).estimator
    estimator.norms(codes.rows(0, min(len(codes), 64)))  # the first call compiles
    started = time.perf_counter()
    rows = codes.rows(0, min(len(codes), codes.chunk_rows))
    read = time.perf_counter()
    estimator.norms(rows)
    # read once to be counted and once in every pass; one of them computes a code's norms
    spent = (1 + passes(len(codes), width, memory)) * (read - started) + time.perf_counter() - read
    return spent * len(codes) / max(1, len(rows.codes)) + _graph_seconds(codec)


def _graph_seconds(codec: Codec) -> float:
    """What the graph of the centroids takes, by that of some of them."""
    centroids = codec.centroids
    if centroids is None or len(centroids) < GRAPH_FROM:
        return 0.0
    some = Coarse(centroids[:_GRAPH], threads=codec.plan.threads, device="cpu")
    started = time.perf_counter()
    some.nearest(centroids[:1], 1, ef=1)  # builds it
    return (time.perf_counter() - started) * len(centroids) / len(some.centroids)
