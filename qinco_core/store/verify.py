"""Check everything about a file that qinco wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qinco_core.errors import ArtifactError, QincoError
from qinco_core.files import existing_file
from qinco_core.store import centroids, checkpoint, codes, folder, index, model, pairwise, results, shards
from qinco_core.store.artifact import Header, read_header
from qinco_core.store.spec import ContentHash
from qinco_core.store.stream import StreamReader, is_stream


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `detail` says what was found."""

    name: str
    ok: bool
    detail: str


@dataclass
class Report:
    """The outcome of `verify`; `header` is None for a stream or an unreadable header."""

    path: Path
    kind: str = "unknown"
    header: Header | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def add(self, name: str, ok: bool, detail: str) -> None:
        """Note the outcome of a check."""
        self.checks.append(Check(name, ok, detail))

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note a check that failed where the block raises an error of this library."""
        try:
            yield
        except QincoError as error:
            self.add(name, False, str(error))


def verify(path: str | Path) -> Report:
    """Check digests, fingerprint and sizes of an artifact of any kind, or of a saved stream of codes.

    An index and codes in parts are named by their folder.

    What is wrong with the file is in the report; only a missing file raises.

    Raises:
        InputNotFoundError: it is not there.
    """
    report = Report(existing_file(index.manifest_of(path)))
    with report.step("readable"):
        if is_stream(report.path):
            _stream(report)
        else:
            _artifact(report)
    return report


def _artifact(report: Report) -> None:
    with report.step("header"):
        header = read_header(report.path)
        report.header, report.kind = header, header.kind
        report.add("header", True, f"{header.kind}, format {header.format_version}, qinco {header.writer}")
        kinds: dict[str, Callable[[Report], None]] = {
            model.KIND: _model,
            codes.KIND: _codes,
            folder.KIND: _folder,
            checkpoint.KIND: _checkpoint,
            centroids.KIND: _centroids,
            results.KIND: _results,
            pairwise.KIND: _pairwise,
            index.KIND: _index,
            shards.KIND: _shards,
        }
        if header.kind not in kinds:
            raise ArtifactError(f"{report.path} is of the unknown kind {header.kind!r}")
        kinds[header.kind](report)


def _model(report: Report) -> None:
    with report.step("content"):
        stored = model.load_model(report.path)
        numbers = sum(tensor.size for tensor in stored.tensors.values())
        report.add("tensors", True, f"{len(stored.tensors)} tensors, {numbers} finite numbers, digests right")
        report.add("fingerprint", True, stored.header.fingerprint)


def _results(report: Report) -> None:
    with report.step("content"):
        stored = results.load_results(report.path)
        report.add("arrays", True, f"{len(stored.ids)} queries, {stored.ids.shape[1]} results each, digests right")
        report.add("fingerprint", True, stored.header.fingerprint)


def _pairwise(report: Report) -> None:
    with report.step("content"):
        stored = pairwise.load_pairwise(report.path)
        pairwise.check_tables(report.path)
        report.add("tables", True, f"{len(stored.tables_TRD)} tables and additive codebooks, digests right")
        report.add("fingerprint", True, stored.header.fingerprint)


def _index(report: Report) -> None:
    with report.step("manifest"):
        stored = index.load_index(report.path)
        report.add("manifest", True, f"{len(stored.flat['ids'])} entries, {len(stored.front)} operating points")
        for name, right in index.check_files(stored):
            report.add(name, right, "digest right" if right else "does not have its digest; build the index again")
        report.add("fingerprint", True, stored.header.fingerprint)


def _shards(report: Report) -> None:
    with report.step("manifest"):
        stored = shards.load_shards(report.path)
        count = sum(len(shard.flat["ids"]) for shard in stored.shards)
        report.add("manifest", True, f"{count} entries in {len(stored.shards)} shards")
        for shard in stored.shards:
            for name, right in index.check_files(shard):
                detail = "digest right" if right else "does not have its digest; build the index again"
                report.add(f"{shard.folder.name}/{name}", right, detail)
        report.add("fingerprint", True, stored.header.fingerprint)


def _checkpoint(report: Report) -> None:
    with report.step("content"):
        _, arrays, _ = checkpoint.load_checkpoint(report.path)
        report.add("arrays", True, f"{len(arrays)} arrays, digests right")
        if report.header is not None:
            report.add("fingerprint", True, report.header.fingerprint)


def _centroids(report: Report) -> None:
    with report.step("content"):
        stored = centroids.load_centroids(report.path)
        ivf_K, D = stored.centroids.shape
        report.add("arrays", True, f"{ivf_K} centroids of {D} finite numbers, digests right")
        report.add("fingerprint", True, stored.header.fingerprint)


def _codes(report: Report) -> None:
    with report.step("layout"), codes.open_codes_file(report.path) as file:
        report.add("layout", True, f"{len(file)} codes of {file.spec.code_bytes} bytes, {file.chunks} chunks")
        content = ContentHash(with_ids=file.with_ids, with_lists=file.with_lists)
        for number in range(file.chunks):
            with report.step(f"chunk {number}"):
                content.update(file.chunk(number))
        if not report.ok:
            return
        report.add("chunks", True, "digests right")
        found, said = content.fingerprint(file.spec), file.header.fingerprint
        report.add("fingerprint", found == said, said if found == said else f"{said} said, {found} found")
        lineage = [parent.fingerprint for parent in file.header.parents if parent.kind == model.KIND]
        report.add("lineage", lineage == [file.spec.model], f"made by the model {file.spec.model}")


def _folder(report: Report) -> None:
    with report.step("manifest"):
        place = report.path.parent
        manifest = folder.read_manifest(place)
        report.add("manifest", True, f"{manifest.count} codes of {manifest.spec.code_bytes} bytes")
        for number in range(len(manifest.parts)):
            with report.step(folder.part_path(place, number).name):
                folder.check_part(place, manifest, number)
        if report.ok:
            report.add("parts", True, f"{len(manifest.parts)} parts, digests and fingerprints right")


def _stream(report: Report) -> None:
    report.kind = "stream"
    with report.step("stream"), report.path.open("rb") as handle:
        reader = StreamReader(handle)
        count = sum(len(rows.codes) for rows in reader)
        report.add("stream", True, f"{count} codes of {reader.spec.code_bytes} bytes, closed, checksum right")
        rest = len(handle.read(1))
        report.add("end", not rest, "bytes follow the stream" if rest else "nothing follows the stream")
