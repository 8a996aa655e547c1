"""What a job takes: bytes of each artifact from the model's sizes, time from measured rates, on one machine or many.

N vectors, D dimension, M symbols, K codewords, L lists, T pairwise tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qinco_core.config import ModelConfig
from qinco_core.index.coarse import LINKS
from qinco_core.index.lists import passes
from qinco_core.index.rewrite import GRAPH_FROM
from qinco_core.store.artifact import DIGEST_BYTES
from qinco_core.store.codes import CHUNK_ROWS
from qinco_core.store.folder import Parts
from qinco_core.store.index import smallest_ids
from qinco_core.store.lists import list_bits

# a process with torch, numba and Faiss loaded; copies of a model's tensors, the engine's tables among them
_PROCESS, _COPIES = 400 << 20, 3
# bytes of work for each dimension of a vector in a batch
_WORK = 16
# vectors that a rate is measured on, at most
MEASURED = 4096


@dataclass(frozen=True)
class Sizes:
    """Bytes of artifacts.

    Attributes:
        D: dimension of the vectors.
        model: the model, with its centroids.
        code: of a vector in a file of codes: symbols and list number.
        id: of a vector's id there; 0 without ids.
        entry: of a vector in an index: symbols, id, and a byte for each look-up decoder (two where vectors lie so far
            from the origin that a byte is too coarse).
        lists: of an index whatever the number of its vectors: centroids, their groups and graph, offsets, codebooks.
        tables: of the pairwise decoder.
    """

    D: int
    model: int
    code: float
    id: int
    entry: int
    lists: int
    tables: int

    @classmethod
    def of(cls, config: ModelConfig, *, ids: bool = False, largest_id: int = 0, tables: int = 0) -> Sizes:
        """Sizes for a model, with or without ids in the codes, and an index with T pairwise tables.

        Args:
            config: the model's.
            ids: whether the codes carry ids.
            largest_id: of the index; up to 2³¹ − 1 an id takes 4 bytes there, else 8.
            tables: T; 0: the additive decoder alone.
        """
        D, L = config.D, max(1, config.ivf_K)
        links = 4 * (2 * LINKS + LINKS / (LINKS - 1)) + 12
        graph = int(L * (4 * D + links)) if L >= GRAPH_FROM else 0
        return cls(
            D=D,
            model=4 * (config.parameters + config.ivf_K * D),
            code=config.code_bytes + list_bits(config.ivf_K) / 8,
            id=8 * ids,
            entry=config.code_bytes + smallest_ids(largest_id).itemsize + 1 + (tables > 0),
            lists=L * (4 * D + 4 + 8) + 4 * config.M * config.K * D + graph,
            tables=tables * config.K**2 * D,
        )


@dataclass(frozen=True)
class Rates:
    """Measured seconds of one core.

    Attributes:
        encode: of a vector.
        read: of a code in each pass of building an index.
        norms: of computing a code's residual norms.
        graph: of the graph of the centroids.
        query: of a query, whatever it scans.
        scan: of an entry that a query scans.
    """

    encode: float = 0.0
    read: float = 0.0
    norms: float = 0.0
    graph: float = 0.0
    query: float = 0.0
    scan: float = 0.0


@dataclass(frozen=True)
class Machines:
    """Where the work is done: equal machines, which share it, with so many cores and bytes to sort an index in each."""

    count: int = 1
    cores: int = 1
    memory: int = 1 << 30


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
        vectors: how many; None where only the end of a stream will tell.
        bytes_per_vector: of what is written.
        output_bytes: what is written, in all.
        disk_bytes: what that needs on the disks at most while it is written, in all.
        memory_bytes: of each machine.
        vectors_per_second: of all machines together.
        seconds: until the last one is done.
        passes: over the codes, of building an index.
    """

    vectors: int | None
    bytes_per_vector: float
    output_bytes: int | None
    disk_bytes: int | None
    memory_bytes: int
    vectors_per_second: float
    seconds: float | None
    passes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if name != "passes" or value is not None}


def pace(work: Callable[[int], float]) -> float:
    """Seconds for one vector.

    Args:
        work: does n vectors, at most `MEASURED`, and gives the seconds that it took.
    """
    work(64)  # the first call also builds caches
    n = 256
    while (seconds := work(n)) < 0.2 and n < MEASURED:  # too short to be measured
        n *= 4
    return max(seconds, 1e-9) / n


def streaming(
    N: int | None, width: float, rate: float, sizes: Sizes, machines: Machines, *, rows: int, spare: int | None
) -> Cost:
    """A job that goes through the vectors once, as many at a time as fit.

    Args:
        N: vectors in all, if that is known.
        width: bytes written for each.
        rate: seconds of one core for each.
        sizes: of the model's artifacts.
        machines: where; their cores share every batch.
        rows: vectors in memory at a time.
        spare: bytes on the disk beside what is written; None: as many as are written.
    """
    speed = machines.count * machines.cores / max(rate, 1e-12)
    memory = _PROCESS + _COPIES * sizes.model + rows * sizes.D * _WORK
    if N is None:
        return Cost(None, width, None, None, memory, speed, None)
    output = round(N * width)
    disk = output + (output if spare is None else spare)
    return Cost(N, width, output, disk, memory, speed, N / speed)


def encoding(
    N: int | None, sizes: Sizes, rates: Rates, machines: Machines, *, rows: int = 2048, parts: int | None = None
) -> Cost:
    """Encoding: to one file, or where `parts` says to how many vectors' parts these belong, to parts of a folder.

    Args:
        N: vectors to encode, if that is known.
        sizes: of the model's artifacts.
        rates: `encode`.
        machines: where.
        rows: vectors in memory at a time.
        parts: vectors of the whole folder.
    """
    width = sizes.code + sizes.id
    # what is unfinished is copied when it is finished: all of a file, or one part on each machine
    spare = None if parts is None else round(machines.count * min(parts, Parts(parts).rows) * width)
    return streaming(N, width, rates.encode, sizes, machines, rows=rows, spare=spare)


def indexing(N: int, sizes: Sizes, rates: Rates, machines: Machines) -> Cost:
    """Building an index, for several machines in shards, one after the other; one core does the work.

    Args:
        N: codes.
        sizes: of the model's artifacts.
        rates: `read`, `norms` and `graph`.
        machines: how many are to have a shard, and the memory to sort in.
    """
    share = -(-N // machines.count)
    times = passes(share, sizes.entry, machines.memory)
    # once more to count the lists
    seconds = N * ((1 + times) * rates.read + rates.norms) + rates.graph
    memory = min(machines.memory, 2 * share * sizes.entry) + 2 * (sizes.lists + sizes.tables)
    output = N * sizes.entry + machines.count * sizes.lists
    return Cost(
        vectors=N,
        bytes_per_vector=sizes.entry,
        output_bytes=output,
        disk_bytes=output,
        memory_bytes=_PROCESS + _COPIES * sizes.model + memory,
        vectors_per_second=N / max(seconds, 1e-9),
        seconds=seconds,
        passes=times,
    )


def searching(N: int, queries: int, sizes: Sizes, rates: Rates, machines: Machines, *, share: float) -> Cost:
    """Searching: every machine has a shard of the index and takes every query; `vectors` are the queries.

    Args:
        N: entries of the index.
        queries: how many.
        sizes: of the model's artifacts.
        rates: `query` and `scan`.
        machines: where.
        share: of the entries that a query scans, nprobe / L where lists are of one length.
    """
    entries = -(-N // machines.count)
    seconds = queries * (rates.query + rates.scan * entries * share) / machines.cores
    memory = entries * sizes.entry + 2 * (sizes.lists + sizes.tables)
    return Cost(
        vectors=queries,
        bytes_per_vector=0.0,
        output_bytes=0,
        disk_bytes=N * sizes.entry + machines.count * sizes.lists,
        memory_bytes=_PROCESS + _COPIES * sizes.model + memory,
        vectors_per_second=queries / max(seconds, 1e-9),
        seconds=seconds,
    )


def codes_file_bytes(N: int, sizes: Sizes) -> int:
    """Bytes of a file of codes, but for the few thousand of its head."""
    return round(N * (sizes.code + sizes.id)) + -(-N // CHUNK_ROWS) * DIGEST_BYTES
