"""Files of results: every format gives back what was written, however it was cut into batches."""

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qinco_core.errors import ArtifactError, OutputExistsError, StorageError, UsageError
from qinco_core.store import Parent, Store, create_results, load_results, read_header, verify
from qinco_core.store.artifact import create_artifact, digest
from qinco_core.vectors import open_vectors

PARENTS = (Parent("index", "ab" * 16), Parent("model", "cd" * 16))


def write(target, ids, distances, batch=3, **options):
    with create_results(target, k=ids.shape[1], **options) as sink:
        for at in range(0, len(ids), batch):
            sink.append(ids[at : at + batch], distances[at : at + batch])


@pytest.fixture
def found(rng):
    """Results of ten queries; the last lacks two."""
    ids = rng.integers(0, 2**31 - 1, (10, 4))
    distances = np.sort(rng.random((10, 4)).astype(np.float32) * 1e5, axis=1)
    ids[-1, 2:], distances[-1, 2:] = -1, np.inf
    return ids, distances


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".jsonl", ".ivecs"])
def test_their_folder_comes_and_goes_with_them(tmp_path, found, suffix):
    path = tmp_path / "new" / "sub" / f"r{suffix}"
    with pytest.raises(KeyboardInterrupt), create_results(path, k=4) as sink:
        sink.append(*found)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    write(path, *found)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@st.composite
def any_results(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    ids = draw(hnp.arrays(np.int64, shape, elements=st.integers(-1, 2**63 - 1)))
    distances = draw(hnp.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False)))
    return ids, distances


@given(results=any_results(), batch=st.integers(1, 13))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_comes_back(tmp_path, results, batch):
    ids, distances = results
    for name in ("r.h5", "r.npz", "r.jsonl"):
        write(tmp_path / name, ids, distances, batch, force=True)
    stored = load_results(tmp_path / "r.h5")
    np.testing.assert_array_equal(stored.ids, ids)
    np.testing.assert_array_equal(stored.distances, distances)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["I"], ids)
        np.testing.assert_array_equal(arrays["D"], distances)
        assert (arrays["I"].dtype, arrays["D"].dtype) == (np.int64, np.float32)
    if not np.isfinite(distances[ids >= 0]).all():
        return  # infinity is no JSON, and no distance of a result
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == list(range(len(ids)))
    for line, i, d in zip(lines, ids, distances, strict=True):
        assert line["ids"] == i[i >= 0].tolist()
        np.testing.assert_array_equal(np.array(line["distances"], np.float32), d[i >= 0])


def test_ivecs_hold_the_ids(tmp_path, found):
    write(tmp_path / "r.ivecs", *found)
    with open_vectors(tmp_path / "r.ivecs") as file:
        np.testing.assert_array_equal(file.read(0, len(file)), found[0])


def test_ivecs_refuse_large_ids(tmp_path, found):
    ids, distances = found
    ids[4, 2] = 2**31
    with pytest.raises(UsageError, match=r"2147483648 does not fit the 32 bits of ivecs; write \.h5"):
        write(tmp_path / "r.ivecs", ids, distances)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_gets_json_lines(tmp_path, found):
    stream = io.BytesIO()
    write(stream, *found)
    write(tmp_path / "r.jsonl", *found)
    assert stream.getvalue() == (tmp_path / "r.jsonl").read_bytes()
    assert json.loads(stream.getvalue().splitlines()[-1])["ids"] == found[0][-1, :2].tolist()


def test_the_artifact_says_where_it_came_from(tmp_path, found):
    write(tmp_path / "a.h5", *found, config={"queries": "q.fvecs"}, parents=PARENTS)
    write(tmp_path / "b.h5", *found, batch=10)
    header = read_header(tmp_path / "a.h5")
    assert (header.kind, header.parents) == ("results", PARENTS)
    assert header.config == {"queries": "q.fvecs", "count": 10, "k": 4}
    assert header.fingerprint == read_header(tmp_path / "b.h5").fingerprint
    report = verify(tmp_path / "a.h5")
    assert (report.ok, report.kind, len(report.checks)) == (True, "results", 3)


@pytest.mark.parametrize("name", ["ids", "distances"])
def test_damage_is_found(tmp_path, found, name):
    path = tmp_path / "r.h5"
    write(path, *found)
    with h5py.File(path) as file:
        place = file[name].id.get_offset()
    data = bytearray(path.read_bytes())
    data[place + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} does not have its digest; search again"):
        load_results(path)
    assert not verify(path).ok


def test_a_foreign_fingerprint_is_found(tmp_path, found):
    path = tmp_path / "r.h5"
    with create_artifact(path) as out:
        for name, array in zip(("ids", "distances"), found, strict=True):
            dataset = out.dataset(name, array.shape, array.dtype)
            out.write(dataset, array)
            out.attribute(dataset, "digest", digest(array))
        out.finish("results", "ab" * 16, {"count": 10, "k": 4}, ())
    with pytest.raises(ArtifactError, match="does not have its fingerprint; search again"):
        load_results(path)


@pytest.mark.parametrize("name", ["r.h5", "r.npz", "r.ivecs", "r.jsonl"])
def test_outputs_are_whole_or_not_there(tmp_path, found, name):
    path = tmp_path / name
    with pytest.raises(KeyError), create_results(path, k=4) as sink:
        sink.append(*found)
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="--force"):
        write(path, *found)
    assert path.read_bytes() == b"mine"
    write(path, *found, force=True)
    assert path.read_bytes() != b"mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"r\.csv: results are written as \.h5, \.npz, \.ivecs, \.jsonl"):
        write(tmp_path / "r.csv", np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))


def test_a_full_disk_says_so(found):
    with pytest.raises(StorageError, match="no room left"), Path("/dev/full").open("wb", buffering=0) as full:
        write(full, *found)


def test_the_store_has_places_for_them(tmp_path):
    store = Store(tmp_path)
    assert store.index == tmp_path / "index"
    assert store.results("first") == tmp_path / "results" / "first.h5"
    with pytest.raises(UsageError, match="cannot name results"):
        store.results("../first")
    assert store.code_files == []
    store.codes("b").parent.mkdir()
    for name in ("b", "a"):
        store.codes(name).touch()
    (tmp_path / "codes" / "c.h5.partial").touch()
    (tmp_path / "codes" / ".d.h5").touch()
    assert store.code_files == [store.codes("a"), store.codes("b")]
