"""Encoding on a Ray cluster: workers encode blocks of vectors, and this process writes them to parts of a folder.

The parts are byte for byte those that `scale.shards.encode_to_folder` makes. A worker that dies costs the block that
it was at, which another one encodes.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.config import EncodeConfig
from qinco_core.jobs import ENCODE_ROWS, Rows, assigner, encode_to_sink
from qinco_core.optional import import_ray
from qinco_core.progress import Progress, Silent
from qinco_core.scale.cluster import RETRIES, check_version, connected, cpus_of, results_in_order
from qinco_core.scale.shards import begin_parts
from qinco_core.store import CodeRows, CodesWriter, create_codes
from qinco_core.store.artifact import writer_version
from qinco_core.store.codes import CHUNK_ROWS
from qinco_core.store.folder import Manifest, has_part, part_notes, part_path
from qinco_core.vectors import VectorFile
from qinco_core.vectors.reader import Place


@dataclass(frozen=True)
class _Job:
    """What all blocks have in common; `model` refers to the bytes of the model's file."""

    model: Any
    device: str
    precision: str
    threads: int
    search: EncodeConfig
    assign: str
    with_ids: bool
    version: str


class _Block(NamedTuple):
    """Rows start..stop − 1 of the vectors, of one part."""

    part: int
    start: int
    stop: int


class _Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self._rows: list[CodeRows] = []

    def append(
        self,
        codes: NDArray[np.uint8],
        ids: NDArray[np.int64] | None = None,
        lists: NDArray[np.int32] | None = None,
    ) -> None:
        """Take more codes."""
        self._rows.append(CodeRows(codes, ids, lists))

    @property
    def rows(self) -> CodeRows:
        """All of them."""
        return CodeRows.joined(self._rows)


def encode_on_cluster(
    codec: Codec,
    rows: Rows,
    folder: Path,
    *,
    search: EncodeConfig,
    progress: Progress,
    assign: str = "exact",
    address: str | None = None,
    workers: int | None = None,
) -> int:
    """Encode vectors to the parts of a folder of codes that are not there yet, on a Ray cluster.

    The vectors are read by the workers: their file, or folder, has to be where all machines see it.

    Args:
        codec: a saved model; each worker has as many threads, and its device and precision.
        rows: what to encode, a file of vectors.
        folder: where the manifest and the parts lie, on this machine.
        search: A, B, T.
        progress: told of every block.
        assign: as of `encode_to_artifact`.
        address: of the cluster, as of `scale.cluster.connected`.
        workers: how many work at the same time; by default as many as the cluster has room for at the time.

    Returns:
        How many parts were made.

    Raises:
        ClusterError: the cluster cannot be reached, or is too small, or a block makes every worker die.
        DependencyError: Ray is not installed; else as of `scale.shards.encode_to_folder`.
    """
    source = rows.source
    manifest = begin_parts(codec, rows, folder, search=search, assign=assign)
    missing = [number for number in range(len(manifest.parts)) if not has_part(folder, manifest, number)]
    if not missing:
        return 0
    assert isinstance(source, VectorFile) and codec.path is not None
    threads = codec.plan.threads
    with connected(address, cpus=None if workers is None else workers * threads) as ray:
        cpus_of(ray, threads)  # refuses a cluster that is too small
        job = _Job(
            model=ray.put(np.fromfile(codec.path, np.uint8)),
            device=codec.plan.device.type,
            precision=codec.plan.precision,
            threads=threads,
            search=search,
            assign=assign,
            with_ids=rows.ids is not None,
            version=writer_version(),
        )
        progress.begin("encoding", sum(np.diff(manifest.parts.span(n))[0] for n in missing), "vectors")
        with _Parts(folder, manifest, rows, resume=assign == "exact") as parts:
            blocks = parts.blocks(missing, max(CHUNK_ROWS, ENCODE_ROWS[job.device]), progress)
            # twice what there is room for: nobody waits, and a cluster that can grow learns that there is work
            room = functools.partial(int, workers) if workers else lambda: 2 * max(1, cpus_of(ray) // threads)
            for block, (measured, found) in results_in_order(ray, _submitter(ray, job, rows), blocks, room):
                parts.append(block, measured, found)
                progress.advance(len(found.codes))
        progress.end()
    return len(missing)


class _Parts:
    """The parts that are being written, the next ones to be finished."""

    def __init__(self, folder: Path, manifest: Manifest, rows: Rows, *, resume: bool) -> None:
        self._folder, self._manifest, self._rows, self._resume = folder, manifest, rows, resume
        self._open: dict[int, CodesWriter] = {}

    def blocks(self, missing: list[int], size: int, progress: Progress) -> Iterator[_Block]:
        """What is to be encoded, in order; what was left of a part when a job was interrupted is taken over."""
        for number in missing:
            writer = self._open[number] = self._writer(number)
            start, stop = self._manifest.parts.span(number)
            progress.advance(writer.done)
            for at in range(start + writer.done, stop, size):
                yield _Block(number, at, min(at + size, stop))
            self._finish(number)

    def _writer(self, number: int) -> CodesWriter:
        spec = self._manifest.spec
        return create_codes(
            part_path(self._folder, number),
            spec=spec.model_copy(update={"encoder": spec.encoder | part_notes(number)}),
            count=int(np.diff(self._manifest.parts.span(number))[0]),
            with_ids=self._manifest.with_ids,
            source_stamp=self._rows.section(*self._manifest.parts.span(number)).stamp,
            resume=self._resume,
            force=not self._resume,
            created=self._manifest.created,
        )

    def append(self, block: _Block, measured: dict[str, Any], found: CodeRows) -> None:
        """Take the codes of the next block."""
        writer = self._open[block.part]
        if not len(writer):
            writer.record(**measured)
        writer.append(*found)
        self._finish(block.part)

    def _finish(self, number: int) -> None:
        """Put a part into its place, if it is whole."""
        start, stop = self._manifest.parts.span(number)
        if number in self._open and len(self._open[number]) == stop - start:
            with self._open.pop(number):
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._open.values():  # whole chunks stay beside their places
            writer.__exit__(kind, error, trace)


def _submitter(ray: ModuleType, job: _Job, rows: Rows) -> Any:
    """What has a block encoded somewhere."""
    gpus = 1 if job.device == "cuda" else 0
    task = ray.remote(_encode).options(num_cpus=job.threads, num_gpus=gpus, max_retries=RETRIES)

    def submit(block: _Block) -> Any:
        section = rows.section(block.start, block.stop)
        assert isinstance(section.source, VectorFile)
        return task.remote(job, section.source.place, section.first, section.ids)

    return submit


def _encode(
    job: _Job, place: Place, first: int, ids: NDArray[np.integer[Any]] | None
) -> tuple[dict[str, Any], CodeRows]:
    """Encode a block, in a worker: what was measured on the way, and the codes."""
    check_version(job.version)
    codec = _codec(job.model, job.device, job.precision, job.threads)
    rows, kept = Rows(place.open(), first, ids), _Kept()
    lists, _ = assigner(codec, rows.source, job.assign, Silent())
    encode_to_sink(codec, rows, kept, job.search, Silent(), lists, with_ids=job.with_ids)
    return lists.measured, kept.rows


@functools.lru_cache(maxsize=1)
def _codec(model: Any, device: str, precision: str, threads: int) -> Codec:
    """The model, which a worker loads once."""
    ray = import_ray()
    with tempfile.NamedTemporaryFile(suffix=".h5") as file:
        file.write(ray.get(model))
        file.flush()
        return Codec.load(file.name, device=device, precision=precision, threads=threads)
