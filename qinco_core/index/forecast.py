"""How fast an index is built, from short measurements."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qinco_core.api import Codec
from qinco_core.errors import UsageError
from qinco_core.index.build import CodesSource, Scale
from qinco_core.index.coarse import Coarse
from qinco_core.index.lists import count_lists, write_lists
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.rewrite import GRAPH_FROM, Writer
from qinco_core.progress import Silent
from qinco_core.store import StoredCodes
from qinco_core.store.index import smallest_ids

_CHUNKS = 4  # of codes that are put into an index to see how long it takes
_GRAPH = 1024  # centroids in a graph that is built to see how long it takes


class Pace(NamedTuple):
    """Seconds of building an index: `read` of a code in each pass, `norms` of a code once, `graph` in all.

    With its norms a code is put in order and written.

    `tables` is how many the pairwise decoder has.
    """

    read: float
    norms: float
    graph: float
    tables: int


def building_pace(codec: Codec, codes: StoredCodes, pairwise: str | Path | None) -> Pace:
    """Measure it on a few chunks of the codes.

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
    writer = Writer(Path(), codec, additive, decoder, 0)
    source = CodesSource(codes, writer.estimator)
    _seconds(source.part(range(min(len(codes), 64))), writer)  # the first call compiles
    n = min(len(codes), _CHUNKS * codes.chunk_rows)
    read, all_of_it = _seconds(source.part(range(n)), writer)
    tables = 0 if decoder is None else len(decoder.tables_TRD)
    return Pace(read / max(1, n), (all_of_it - read) / max(1, n), _graph_seconds(codec), tables)


def _seconds(source: CodesSource, writer: Writer) -> tuple[float, float]:
    """Seconds of counting the lists of a few codes, and of putting the codes into a folder that is then removed."""
    scales = {look: Scale(0.0, 1.0) for look in writer.estimator.looks}
    source.use(scales)
    started = time.perf_counter()
    counts, largest = count_lists([source], len(writer.centroids))
    counted = time.perf_counter()
    columns = writer.estimator.columns(smallest_ids(largest), scales)
    with tempfile.TemporaryDirectory() as folder:
        write_lists([source], counts, columns, lambda name: Path(folder, f"{name}.npy"), 1 << 30, Silent())
        return counted - started, time.perf_counter() - counted


def _graph_seconds(codec: Codec) -> float:
    """What the graph of the centroids takes, by that of some of them."""
    centroids = codec.centroids
    if centroids is None or len(centroids) < GRAPH_FROM:
        return 0.0
    some = Coarse(centroids[:_GRAPH], threads=codec.plan.threads, device="cpu")
    started = time.perf_counter()
    some.nearest(centroids[:1], 1, ef=1)  # builds it
    return (time.perf_counter() - started) * len(centroids) / len(some.centroids)
