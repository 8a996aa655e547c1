"""How fast an index is built, from short measurements."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qinco_core.api import Codec
from qinco_core.errors import UsageError
from qinco_core.index.coarse import Coarse
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.rewrite import GRAPH_FROM, Writer
from qinco_core.store import StoredCodes

_GRAPH = 1024  # centroids in a graph that is built to see how long it takes


class Pace(NamedTuple):
    """Seconds of building an index: `read` of a code in each pass, `norms` of a code once, `graph` in all.

    `tables` is how many the pairwise decoder has.
    """

    read: float
    norms: float
    graph: float
    tables: int


def building_pace(codec: Codec, codes: StoredCodes, pairwise: str | Path | None) -> Pace:
    """Measure it on a chunk of the codes.

    Args:
        codec: the saved model.
        codes: its codes.
        pairwise: the pairwise decoder's artifact, if the index is to have one.

    Raises:
        LineageError: the decoder is of another model.
        UsageError: the model was not saved.
    """
    c = codec.config
    if codec.header is None:
        raise UsageError("save the model first: an index names the model that made its codes")
    decoder = None if pairwise is None else Pairwise.load(pairwise, codec.header, codec.centroids).for_search()
    additive = np.zeros((c.M, c.K, c.D), np.float32) if decoder is None else decoder.additive_MKD
    estimator = Writer(Path(), codec, additive, decoder, 0).estimator
    estimator.norms(codes.rows(0, min(len(codes), 64)))  # the first call compiles
    started = time.perf_counter()
    rows = codes.rows(0, min(len(codes), codes.chunk_rows))
    read = time.perf_counter()
    estimator.norms(rows)
    n = max(1, len(rows.codes))
    tables = 0 if decoder is None else len(decoder.tables_TRD)
    return Pace((read - started) / n, (time.perf_counter() - read) / n, _graph_seconds(codec), tables)


def _graph_seconds(codec: Codec) -> float:
    """What the graph of the centroids takes, by that of some of them."""
    centroids = codec.centroids
    if centroids is None or len(centroids) < GRAPH_FROM:
        return 0.0
    some = Coarse(centroids[:_GRAPH], threads=codec.plan.threads, device="cpu")
    started = time.perf_counter()
    some.nearest(centroids[:1], 1, ef=1)  # builds it
    return (time.perf_counter() - started) * len(centroids) / len(some.centroids)
