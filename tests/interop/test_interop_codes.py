"""Published codes in and out, and everything that can be wrong with them."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qinco_core.api import Codec
from qinco_core.errors import ForeignFileError, LineageError, OutputExistsError, QincoError, UsageError
from qinco_core.interop.codes import export_codes, import_codes, read_published
from qinco_core.interop.detect import detect
from qinco_core.interop.models import import_model
from qinco_core.progress import Progress, Silent
from qinco_core.store import create_codes, load_model, open_codes, partial_path

MODELS = Path(__file__).parents[1] / "codec" / "golden"
EXPECTED = np.load(MODELS / "ivf_q2.expected.npz")


class Stop(Silent):
    """Interrupts the work called so."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._now = ""

    def begin(self, what: str, total: float | None, unit: str) -> None:
        self._now = what

    def advance(self, amount: float, **figures: float) -> None:
        if self._now == self._work and amount:
            raise KeyboardInterrupt


def bring(db: Path, codec: Codec, out: Path, progress: Progress | None = None, *, force: bool = False) -> int:
    assert codec.header is not None
    published = read_published(db)
    return import_codes(published, codec.config, codec.header, out, progress=progress or Silent(), force=force)[1]


def test_published_codes_are_those_of_their_vectors(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    assert bring(db, ivf_codec, tmp_path / "codes.h5") == 3000
    with open_codes(tmp_path / "codes.h5") as codes:
        ivf_codec.check_codes(codes.spec, "codes")
        found = ivf_codec.unpack_rows(codes.rows(0, 1000))
    assert np.array_equal(found, EXPECTED["codes"])
    decoded = ivf_codec.decode(found)
    assert np.abs(decoded - EXPECTED["decoded"]).max() <= 1e-3 * np.abs(EXPECTED["decoded"]).max()


@pytest.mark.parametrize("part_rows", [1000, 700, 5000])
def test_a_round_trip_gives_equal_codes(part_rows: int, db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    bring(db, ivf_codec, tmp_path / "codes.h5")
    out = tmp_path / "out" / "again.npz"
    with open_codes(tmp_path / "codes.h5") as codes:
        files = export_codes(codes, out, part_rows=part_rows, progress=Silent(), force=False)
        with pytest.raises(OutputExistsError):
            export_codes(codes, out, part_rows=part_rows, progress=Silent(), force=False)
    parts = [np.load(path)["codes"] for path in files[:-1]]
    assert [len(part) for part in parts] == [min(part_rows, 3000 - at) for at in range(0, 3000, part_rows)]
    assert {part.dtype for part in parts} == {np.dtype(np.int64)}
    assert np.array_equal(np.concatenate(parts), np.load(db.with_name("ivf_db.part_0.npz"))["codes"])
    theirs, ours = np.load(db), np.load(out)
    assert {key: int(ours[key]) for key in ("K", "M", "D")} == {key: int(theirs[key]) for key in ("K", "M", "D")}
    assert int(ours["n_parts"]) == len(parts)
    assert bring(out, ivf_codec, tmp_path / "twice.h5") == 3000
    with open_codes(tmp_path / "codes.h5") as a, open_codes(tmp_path / "twice.h5") as b:
        assert a.header.fingerprint == b.header.fingerprint


def test_codes_without_lists(tmp_path: Path) -> None:
    import_model(detect(MODELS / "q2.pt"), tmp_path / "model.h5")
    model, symbols = load_model(tmp_path / "model.h5"), np.load(MODELS / "q2.expected.npz")["codes"]
    np.savez(tmp_path / "db.part_0.npz", codes=symbols[:600].astype(np.int64))
    np.savez_compressed(tmp_path / "db.part_1.npz", codes=symbols[600:].astype(np.int64))
    np.savez(tmp_path / "db.npz", n_parts=2, K=64, M=4, D=48)
    out = tmp_path / "codes.h5"
    published = read_published(tmp_path / "db.npz")
    import_codes(published, model.config, model.header, out, progress=Silent(), force=False)
    codec = Codec.load(tmp_path / "model.h5", threads=1)
    with open_codes(out) as codes:
        assert np.array_equal(codec.unpack_rows(codes.rows(0, 1000)), symbols)


def test_codes_of_another_model_are_refused(db: Path, tmp_path: Path) -> None:
    import_model(detect(MODELS / "q1.pt"), tmp_path / "model.h5")
    with pytest.raises(LineageError, match=r"codes with K = 64, but the model D = 48, M = 4, K = 32"):
        bring(db, Codec.load(tmp_path / "model.h5", threads=1), tmp_path / "codes.h5")


def test_a_missing_part_is_named(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    np.savez(db, n_parts=3, K=64, M=4, D=48)
    with pytest.raises(ForeignFileError, match=r"3 parts, but .*ivf_db\.part_1\.npz is missing, and 1 more"):
        bring(db, ivf_codec, tmp_path / "codes.h5")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_parts": 1, "K": 64, "M": 4}, "D is missing"),
        ({"n_parts": 0, "K": 64, "M": 4, "D": 48}, "n_parts is 0, which cannot be"),
        ({"n_parts": 1.5, "K": 64, "M": 4, "D": 48}, "n_parts is float64 of shape"),
        ({"n_parts": np.array([1, 2]), "K": 64, "M": 4, "D": 48}, "n_parts is int64 of shape"),
        ({"n_parts": np.array(1, object), "K": 64, "M": 4, "D": 48}, "cannot be read"),
    ],
)
def test_a_wrong_index_file(fields: dict[str, object], said: str, db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    np.savez(db, **fields)  # type: ignore[arg-type]
    refuse(db, ivf_codec, tmp_path, said)


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.zeros((3, 4), np.int64), "4 columns; codes of this model are integers with 5"),
        (np.zeros((3, 5), np.float32), "float32 with 5 columns"),
        (np.full((3, 5), 64), "symbols from 64 to 64"),
        (np.array([[300, 0, 0, 0, 0]]), "list numbers from 300 to 300"),
        (np.array([[0, -1, 0, 0, 0]]), "symbols from -1 to 0"),
        (np.array([[0, 0, 0, 0, 0]], object), "an array of dtype '|O'"),
        (np.zeros((0, 5), np.int64), "no vectors"),
    ],
)
def test_a_wrong_part(codes: np.ndarray, said: str, db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    np.savez(db.with_name("ivf_db.part_0.npz"), codes=codes)
    refuse(db, ivf_codec, tmp_path, said, "ivf_db.part_0.npz")


def test_an_export_replaces_all_of_an_earlier_one(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    bring(db, ivf_codec, tmp_path / "codes.h5")
    out = tmp_path / "out" / "a[1].npz"
    with open_codes(tmp_path / "codes.h5") as codes:
        export_codes(codes, out, part_rows=700, progress=Silent(), force=False)
        files = export_codes(codes, out, part_rows=2000, progress=Silent(), force=True)
        before = contents(out.parent)
        assert sorted(before) == sorted(files)
        with pytest.raises(KeyboardInterrupt):
            export_codes(codes, out, part_rows=1000, progress=Stop("exporting"), force=True)
        with pytest.raises(UsageError, match="a part of 0 codes"):
            export_codes(codes, out, part_rows=0, progress=Silent(), force=True)
    assert contents(out.parent) == before


def test_when_putting_in_place_fails_nothing_is_taken_for_a_whole_set(
    db: Path, ivf_codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(db, ivf_codec, tmp_path / "codes.h5")
    out = tmp_path / "out" / "a.npz"

    def failing(temporary: Path, path: Path) -> None:
        if path == out.with_name("a.part_0.npz"):
            raise OSError("the disk is gone")
        temporary.replace(path)

    with open_codes(tmp_path / "codes.h5") as codes:
        export_codes(codes, out, part_rows=2000, progress=Silent(), force=False)
        monkeypatch.setattr("qinco_core.files.commit", failing)
        with pytest.raises(OSError, match="gone"):
            export_codes(codes, out, part_rows=1000, progress=Silent(), force=True)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.suffix == ".tmp"]


def test_an_export_touches_nothing_but_its_own_files(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    bring(db, ivf_codec, tmp_path / "codes.h5")
    place = tmp_path / "out"
    place.mkdir()
    for name in ("base.part_of_speech.npz", "base.part_007.npz", "database.part_7.npz", "base.part_7.npz"):
        (place / name).write_bytes(b"mine")
    before = contents(place)
    with open_codes(tmp_path / "codes.h5") as codes:
        with pytest.raises(OutputExistsError, match=r"base\.part_7\.npz exists"):
            export_codes(codes, place / "base.npz", part_rows=5000, progress=Silent(), force=False)
        assert contents(place) == before
        files = export_codes(codes, place / "base.npz", part_rows=5000, progress=Silent(), force=True)
    assert contents(place).keys() == before.keys() - {place / "base.part_7.npz"} | set(files)


def test_an_interrupted_import_leaves_nothing(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    many(db)
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        bring(db, ivf_codec, tmp_path / "new" / "sub" / "codes.h5", Stop("importing"))
    assert contents(tmp_path) == before


def test_what_a_killed_import_left_is_no_obstacle(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    count = many(db)
    out, kept = tmp_path / "codes.h5", tmp_path / "kept"

    class Killed(Stop):
        def advance(self, amount: float, **figures: float) -> None:
            try:
                super().advance(amount)
            except KeyboardInterrupt:
                shutil.copy(partial_path(out), kept)
                raise

    with pytest.raises(KeyboardInterrupt):
        bring(db, ivf_codec, out, Killed("importing"))
    kept.rename(partial_path(out))
    assert bring(db, ivf_codec, out) == count
    assert not partial_path(out).exists()
    bring(db, ivf_codec, tmp_path / "at_once.h5")
    with open_codes(out) as a, open_codes(tmp_path / "at_once.h5") as b:
        assert a.header.fingerprint == b.header.fingerprint


def test_an_unfinished_encoding_is_not_dropped_without_force(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    bring(db, ivf_codec, tmp_path / "codes.h5")
    with open_codes(tmp_path / "codes.h5") as codes:
        spec, rows = codes.spec.model_copy(update={"encoder": {"A": 8}}), codes.rows(0, 1000)
    out = tmp_path / "again.h5"
    job = create_codes(out, spec=spec, count=3000, with_ids=False, source_stamp="vectors", chunk_rows=1000)
    with pytest.raises(KeyboardInterrupt), job:
        job.append(rows.codes, None, rows.lists)
        raise KeyboardInterrupt
    unfinished = partial_path(out).read_bytes()
    with pytest.raises(LineageError, match=r"begun for another job .*start over with --force"):
        bring(db, ivf_codec, out)
    assert partial_path(out).read_bytes() == unfinished
    assert bring(db, ivf_codec, out, force=True) == 3000
    assert not partial_path(out).exists()


def test_a_flipped_bit_is_noticed(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    part = db.with_name("ivf_db.part_0.npz")
    codes = np.load(part)["codes"]
    np.savez(part, codes=codes)  # not compressed, so that nothing but the checksum tells
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    refuse(db, ivf_codec, tmp_path, "does not have its checksum", "ivf_db.part_0.npz")


def test_a_flipped_bit_of_lzma_is_noticed(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    part = db.with_name("ivf_db.part_0.npz")
    with zipfile.ZipFile(part) as archive:
        content = archive.read("codes.npy")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("codes.npy", content)
    packed = bytearray(part.read_bytes())
    packed[len(packed) // 2] ^= 1
    part.write_bytes(packed)
    refuse(db, ivf_codec, tmp_path, "is damaged", "ivf_db.part_0.npz")


def test_damaged_files(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    part = db.with_name("ivf_db.part_0.npz")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    refuse(db, ivf_codec, tmp_path, "was cut", "ivf_db.part_0.npz")
    part.write_bytes(whole)
    db.write_bytes(db.read_bytes()[:100])
    refuse(db, ivf_codec, tmp_path, "was cut")


def many(db: Path) -> int:
    """Make the published codes so many that an import is done by several batches and chunks; returns how many."""
    part = db.with_name("ivf_db.part_0.npz")
    codes = np.tile(np.load(part)["codes"], (24, 1))
    np.savez(part, codes=codes)
    return len(codes)


def contents(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.iterdir()}


def refuse(db: Path, codec: Codec, tmp_path: Path, said: str, name: str = "ivf_db.npz") -> None:
    """The import fails, names the file and what is wrong, and writes nothing."""
    with pytest.raises(QincoError) as caught:
        bring(db, codec, tmp_path / "new" / "sub" / "codes.h5")
    assert str(caught.value).startswith(str(db.with_name(name)))
    assert said in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ivf_db.npz", "ivf_db.part_0.npz"]
