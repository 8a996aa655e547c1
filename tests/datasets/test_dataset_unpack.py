"""Packed sources: gzip files, tar archives, one archive for several parts."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from servers import Ftp, Surroundings, Web

from qinco_core.datasets import dataset, fetch, plan
from qinco_core.errors import ChecksumError, ForeignFileError, StorageError
from qinco_core.files import storage_errors

ROWS = np.arange(6 * 4, dtype="<f4").reshape(6, 4)
SET = """
[datasets.small]
dim = 4
"""


def fvecs(rows: np.ndarray) -> bytes:
    return b"".join(np.int32(rows.shape[1]).tobytes() + row.tobytes() for row in rows)


def tar(members: dict[str, bytes | str], mode: str = "w:gz") -> bytes:
    """An archive; a member that is a str is a link to that."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("encoding", [None, "x-gzip", "gzip"])
def test_gzip_over_http(encoding: str | None, here: Surroundings, web: Web) -> None:
    web.encoding = encoding
    web.files["base.fvecs.gz"] = gzip.compress(fvecs(ROWS))
    here.register(SET + f'base = "{web.url("base.fvecs.gz")}"')
    (found,) = fetch("small")
    assert found.path == here.cache / "small" / "base.fvecs"
    assert found.bytes == len(fvecs(ROWS))
    assert sorted(path.name for path in found.path.parent.iterdir()) == [".lock", "base.fvecs", "checksums.json"]
    assert set(json.loads((found.path.parent / "checksums.json").read_text())) == {"base.fvecs", "base.fvecs.gz"}
    np.testing.assert_array_equal(dataset("small").base().read(0, 6), ROWS)
    assert [one.state for one in fetch("small")] == ["checked"]
    found.path.unlink()
    web.files["base.fvecs.gz"] = gzip.compress(fvecs(ROWS + 1))
    with pytest.raises(ChecksumError, match=r"base.fvecs.gz from http.* --force"):
        fetch("small")


def test_gzip_over_ftp_with_a_cut(here: Surroundings, ftp: Ftp) -> None:
    rows = np.random.default_rng(0).standard_normal((5000, 4)).astype("<f4")
    (ftp.folder / "base.fvecs.gz").write_bytes(gzip.compress(fvecs(rows)))
    here.register(SET + f'base = "{ftp.url("base.fvecs.gz")}"')
    ftp.cuts = [20_000]
    (found,) = fetch("small")
    assert found.path.read_bytes() == fvecs(rows)
    assert ftp.restarts[-1] == "20000"


PARTS = """
base = {{ source = "{url}", member = "sift/base.fvecs" }}
queries = {{ source = "{url}", member = "./sift/query.fvecs" }}
train = {{ source = "{other}" }}
"""


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_one_archive_for_several_parts_comes_once(mode: str, here: Surroundings, web: Web) -> None:
    name = "sift.tar.gz" if mode == "w:gz" else "sift.tar"
    web.files[name] = tar(
        {"sift/readme": b"", "./sift/base.fvecs": fvecs(ROWS), "sift/query.fvecs": fvecs(-ROWS)}, mode
    )
    web.files["learn.fvecs"] = fvecs(2 * ROWS)
    here.register(SET + PARTS.format(url=web.url(name), other=web.url("learn.fvecs")))
    found = fetch("small", parts=["queries"])
    assert [(one.parts, one.path.name) for one in found] == [(("base",), "base.fvecs"), (("queries",), "query.fvecs")]
    assert len(web.requests) == 1
    np.testing.assert_array_equal(dataset("small").queries().read(0, 6), -ROWS)
    assert {row.parts: row.state for row in plan("small", ask=False)} == {
        ("train",): "missing",
        ("base",): "here",
        ("queries",): "here",
    }
    assert [one.state for one in fetch("small")] == ["fetched", "checked", "checked"]
    assert len(web.requests) == 2


def test_two_spellings_of_one_member(here: Surroundings, web: Web) -> None:
    web.files["x.tar"] = tar({"s/a.fvecs": fvecs(ROWS)}, "w")
    members = {"base": "s/a.fvecs", "train": "./s/a.fvecs", "queries": "s/t/../a.fvecs"}
    here.register(
        SET + "\n".join(f'{part} = {{ source = "{web.url("x.tar")}", member = "{m}" }}' for part, m in members.items())
    )
    (found,) = fetch("small")
    assert (found.parts, found.path.name) == (("train", "base", "queries"), "a.fvecs")
    assert set(json.loads((found.path.parent / "checksums.json").read_text())) == {"a.fvecs", "x.tar"}
    assert dataset("small").train().shape == (6, 4)


def test_the_size_of_what_is_packed_and_here_is_not_asked_for(here: Surroundings, web: Web) -> None:
    web.files["base.fvecs.gz"] = gzip.compress(fvecs(ROWS))
    here.register(SET + f'base = "{web.url("base.fvecs.gz")}"')
    fetch("small")
    (row,) = plan("small")
    assert (row.state, row.bytes, row.unpacked) == ("here", len(web.files["base.fvecs.gz"]), len(fvecs(ROWS)))
    assert len(web.requests) == 1


def test_an_archive_decides_neither_where_nor_what(here: Surroundings, web: Web, tmp_path) -> None:
    here.register(SET + f'base = {{ source = "{web.url("x.tar")}", member = "../../base.fvecs" }}')
    web.files["x.tar"] = tar({"../../base.fvecs": fvecs(ROWS)}, "w")
    (found,) = fetch("small")
    assert found.path == here.cache / "small" / "base.fvecs"
    assert not (tmp_path / "base.fvecs").exists()
    web.files["x.tar"] = tar({"../../base.fvecs": "/etc/passwd"}, "w")
    with pytest.raises(ForeignFileError, match=r"x.tar: its member ../../base.fvecs is no plain file"):
        fetch("small", force=True)
    assert found.path.read_bytes() == fvecs(ROWS)


def test_a_member_that_is_not_there(here: Surroundings, web: Web) -> None:
    here.register(SET + f'base = {{ source = "{web.url("x.tar.gz")}", member = "base.fvecs" }}')
    web.files["x.tar.gz"] = tar({f"x/{i}": b"" for i in range(12)})
    with pytest.raises(ForeignFileError, match=r"x.tar.gz has no member base.fvecs; there are x/0, .*, x/9, \.\.\.: "):
        fetch("small")
    assert not (here.cache / "small" / "checksums.json").exists()


@pytest.mark.parametrize("name", ["base.fvecs.gz", "base.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "flipped"])
def test_damage(name: str, damage: str, here: Surroundings, web: Web) -> None:
    content = np.random.default_rng(0).bytes(8000)
    packed = bytearray(gzip.compress(content) if "fvecs" in name else tar({"base.fvecs": content}))
    if damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    web.files[name] = {"cut": bytes(packed[:-4000]), "foreign": b"nothing " * 100}.get(damage, bytes(packed))
    member = ', member = "base.fvecs"' if "tar" in name else ""
    here.register(SET + f'base = {{ source = "{web.url(name)}"{member} }}')
    with pytest.raises(ForeignFileError, match=rf"{name} cannot be unpacked .* --force"):
        fetch("small")
    assert not (here.cache / "small" / "base.fvecs").exists()
    web.files[name] = gzip.compress(fvecs(ROWS)) if "fvecs" in name else tar({"base.fvecs": fvecs(ROWS)})
    assert fetch("small", force=True)[0].path.read_bytes() == fvecs(ROWS)


def test_a_disk_that_fills_while_unpacking(here: Surroundings, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from qinco_core.datasets import unpack

    web.files["base.fvecs.gz"] = gzip.compress(fvecs(ROWS))
    here.register(SET + f'base = "{web.url("base.fvecs.gz")}"')

    def full(*_: object) -> None:
        with storage_errors(here.cache / "small" / "base.fvecs"):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_copy", full)
        with pytest.raises(StorageError, match="no room left"):
            fetch("small")
    assert fetch("small")[0].path.read_bytes() == fvecs(ROWS)
    assert len(web.requests) == 1  # the download was kept
