"""A stream of codes becomes a file, in one go or in several."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qinco_core.errors import LineageError, OutputExistsError, StreamError
from qinco_core.progress import Silent
from qinco_core.scale.collect import receive_codes, remainder
from qinco_core.store import CodesSpec, StreamReader, StreamWriter, open_codes, partial_path
from qinco_core.store.codes import CHUNK_ROWS

SPEC = CodesSpec(model="ab" * 16, D=6, M=3, K=256, dtype="uint8", encoder={"A": 2})
IVF = SPEC.model_copy(update={"ivf_K": 5, "encoder": {"A": 2, "agreement": 0.9}})
N = 2 * CHUNK_ROWS + 100
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 256, (N, 3), np.uint8)
IDS, LISTS = RNG.integers(0, 1 << 40, N), RNG.integers(0, 5, N)


def stream(
    first: int = 0, *, stop: int = N, origin: int = 0, spec: CodesSpec = SPEC, ids: bool = False, **change: Any
) -> bytes:
    """Rows first..stop − 1 of the codes, of a source in which they begin at row `origin`."""
    sink = io.BytesIO()
    place: dict[str, Any] = {"count": stop - first, "first": origin + first, "row_ids": not ids} | change
    with StreamWriter(sink, spec, with_ids=True, **place) as out:
        for at in range(first, stop, 2048):
            part = slice(at, min(at + 2048, stop))
            numbers = IDS[part] if ids else np.arange(part.start, part.stop) + origin
            out.append(CODES[part], numbers, LISTS[part] if spec.ivf_K else None)
    return sink.getvalue()


def receive(raw: bytes, path: Path, **options: bool) -> str:
    return receive_codes(StreamReader(io.BytesIO(raw)), path, progress=Silent(), **options)


def cut(path: Path, share: float = 0.7, **how: Any) -> str:
    """Receive a stream that was cut; gives the message."""
    raw = stream(**how)
    with pytest.raises(StreamError) as caught:
        receive(raw[: int(share * len(raw))], path)
    return str(caught.value)


@pytest.mark.parametrize("how", [{}, {"ids": True}, {"origin": 1000}, {"spec": IVF}, {"count": None}], ids=str)
def test_two_parts_are_as_one(how: dict[str, Any], tmp_path: Path) -> None:
    whole = receive(stream(**how), tmp_path / "whole.h5")
    out = tmp_path / "out.h5"
    row = CHUNK_ROWS + how.get("origin", 0)
    assert f" from row {row} on: qinco encode ... --skip {row} -o - | qinco merge - -o {out} --resume" in cut(
        out, **how
    )
    assert not out.exists()
    if "spec" in how:  # what HNSW finds is a figure of the rows it was measured on
        how = how | {"spec": IVF.model_copy(update={"encoder": {"A": 2, "agreement": 0.8}})}
    assert receive(stream(CHUNK_ROWS, **how), out, resume=True) == whole
    with open_codes(out) as codes:
        rows = codes.rows(0, N)
        assert np.array_equal(rows.codes, CODES)
        assert rows.lists is None or np.array_equal(rows.lists, LISTS)
        if "ids" in how or "origin" in how:
            assert rows.ids is not None
            assert np.array_equal(rows.ids, IDS if "ids" in how else np.arange(1000, 1000 + N))
        else:
            assert rows.ids is None
    assert not partial_path(out).exists()


def test_a_stream_that_lost_its_end_alone_leaves_a_rest_to_send(tmp_path: Path) -> None:
    out, stop = tmp_path / "out.h5", 2 * CHUNK_ROWS
    assert f"--skip {CHUNK_ROWS} " in cut(out, 0.9999, stop=stop)
    assert receive(stream(CHUNK_ROWS, stop=stop), out, resume=True) == receive(stream(stop=stop), tmp_path / "whole.h5")


def test_what_came_before_a_damaged_batch_is_kept(tmp_path: Path) -> None:
    out, raw = tmp_path / "out.h5", bytearray(stream())
    raw[raw.index(CODES[CHUNK_ROWS + 3000].tobytes() + CODES[CHUNK_ROWS + 3001].tobytes())] ^= 1
    with pytest.raises(StreamError, match=rf"checksum is wrong; send it again from row {CHUNK_ROWS} on"):
        receive(bytes(raw), out)
    assert receive(stream(CHUNK_ROWS), out, resume=True) == receive(stream(), tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ({"first": 0}, f"the first that is not here yet is {CHUNK_ROWS}: send it with --skip {CHUNK_ROWS}"),
        ({"first": CHUNK_ROWS + 1}, f"begins with row {CHUNK_ROWS + 1}, but"),
        ({"spec": SPEC.model_copy(update={"model": "cd" * 16})}, "model 'abab"),
        ({"spec": SPEC.model_copy(update={"encoder": {"A": 4}})}, "'A': 4"),
        ({"stop": N - 1}, f"count {N} then, {N - 1} now"),
        ({"ids": True}, "with ids from row 0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_the_rest_is_refused_and_changes_nothing(rest: dict[str, Any], says: str, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    cut(out)
    before = partial_path(out).read_bytes()
    with pytest.raises(LineageError) as caught:
        receive(stream(**{"first": CHUNK_ROWS} | rest), out, resume=True)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == [partial_path(out)] and partial_path(out).read_bytes() == before
    receive(stream(CHUNK_ROWS), out, resume=True)


def test_a_rest_without_a_beginning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineageError, match=r"no .*out\.h5\.partial to go on with"):
        receive(stream(CHUNK_ROWS), tmp_path / "out.h5", resume=True)
    assert remainder(tmp_path / "out.h5") == "" and list(tmp_path.iterdir()) == []
    receive(stream(), tmp_path / "out.h5", resume=True)  # as with other jobs


def test_what_is_there_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    cut(out)
    with pytest.raises(OutputExistsError, match="--resume continues it, --force starts over"):
        receive(stream(), out)
    whole = receive(stream(), out, force=True)
    with pytest.raises(OutputExistsError, match="--force"):
        receive(stream(), out)
    with open_codes(out) as codes:
        assert codes.header.fingerprint == whole


def test_a_stream_of_an_old_version_is_not_stored(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with StreamWriter(sink, SPEC, with_ids=True, count=None) as out:
        out.append(CODES[:9], IDS[:9])
    with pytest.raises(StreamError, match="this version of qinco"):
        receive(sink.getvalue(), tmp_path / "out.h5")
