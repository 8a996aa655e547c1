"""Published codes in and out, and everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qinco_core.api import Codec
from qinco_core.errors import ForeignFileError, LineageError, OutputExistsError, QincoError
from qinco_core.interop.codes import export_codes, import_codes, read_published
from qinco_core.interop.detect import detect
from qinco_core.interop.models import import_model
from qinco_core.progress import Silent
from qinco_core.store import load_model, open_codes

MODELS = Path(__file__).parents[1] / "codec" / "golden"
EXPECTED = np.load(MODELS / "ivf_q2.expected.npz")


def bring(db: Path, codec: Codec, out: Path) -> int:
    assert codec.header is not None
    return import_codes(read_published(db), codec.config, codec.header, out, progress=Silent(), force=False)[1]


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

    class Stop(Silent):
        def advance(self, amount: float, **figures: float) -> None:
            raise KeyboardInterrupt

    with open_codes(tmp_path / "codes.h5") as codes:
        export_codes(codes, out, part_rows=700, progress=Silent(), force=False)
        files = export_codes(codes, out, part_rows=2000, progress=Silent(), force=True)
        assert sorted(out.parent.iterdir()) == sorted(files)
        with pytest.raises(KeyboardInterrupt):
            export_codes(codes, out, part_rows=1000, progress=Stop(), force=True)
    # nothing that could be taken for a whole set of codes
    assert not out.exists()


def test_a_flipped_bit_is_noticed(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    part = db.with_name("ivf_db.part_0.npz")
    codes = np.load(part)["codes"]
    np.savez(part, codes=codes)  # not compressed, so that nothing but the checksum tells
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    refuse(db, ivf_codec, tmp_path, "does not have its checksum", "ivf_db.part_0.npz")


def test_damaged_files(db: Path, ivf_codec: Codec, tmp_path: Path) -> None:
    part = db.with_name("ivf_db.part_0.npz")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    refuse(db, ivf_codec, tmp_path, "was cut", "ivf_db.part_0.npz")
    part.write_bytes(whole)
    db.write_bytes(db.read_bytes()[:100])
    refuse(db, ivf_codec, tmp_path, "was cut")


def refuse(db: Path, codec: Codec, tmp_path: Path, said: str, name: str = "ivf_db.npz") -> None:
    """The import fails, names the file and what is wrong, and writes nothing."""
    with pytest.raises(QincoError) as caught:
        bring(db, codec, tmp_path / "codes.h5")
    assert str(caught.value).startswith(str(db.with_name(name)))
    assert said in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ivf_db.npz", "ivf_db.part_0.npz"]
