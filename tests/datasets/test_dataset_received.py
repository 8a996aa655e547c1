"""What comes whole and is not the file that the registry describes; and what is known of files that are replaced."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from servers import Surroundings, Web

from qinco_core.datasets import fetch, fetching
from qinco_core.errors import DownloadError

ROWS = np.arange(80, dtype="<f4").reshape(20, 4)
GOOD = np.array([20, 4], "<i4").tobytes() + ROWS.tobytes()
WRONG = {
    "longer": (GOOD + bytes(8), "the header says 20 x 4 float32, 328 bytes; there are 336"),
    "cut": (GOOD[:100], "there are 100"),
    "empty": (b"", "it is empty"),
    "an error": (b"<Error>denied</Error", "the header says"),
    "another": (
        np.array([10, 4], "<i4").tobytes() + ROWS[:10].tobytes(),
        "it has 10 vectors of dimension 4, by the reg",
    ),
    "wider": (np.array([20, 2], "<i4").tobytes() + ROWS[:10].tobytes(), "20 vectors of dimension 2, by .* 20 of 4"),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_the_file_of_the_registry_is_dropped(wrong: str, packed: str, here: Surroundings, web: Web) -> None:
    def pack(content: bytes) -> bytes:
        return gzip.compress(content) if packed else content

    name = f"x.fbin{packed}"
    here.register(f"[datasets.x]\ndim = 4\nbase = {{ source = '{web.url(name)}', count = 20 }}")
    content, message = WRONG[wrong]
    web.files[name], web.sizes = pack(content), False
    with pytest.raises(DownloadError, match=rf"what came from http.*/{name} is not x.fbin \(.*({message}).*dropped"):
        fetch("x")
    assert [path.name for path in (here.cache / "x").iterdir()] == [".lock"]
    web.files[name] = pack(GOOD)
    assert fetch("x")[0].path.read_bytes() == GOOD
    web.files[name] = pack(content)
    with pytest.raises(DownloadError, match=r"is not x.fbin"):
        fetch("x", force=True)
    assert fetch("x")[0].state == "checked"  # the old file is still there
    assert fetch("x")[0].path.read_bytes() == GOOD


def test_vectors_whose_count_nobody_knows_are_not_cut(here: Surroundings, web: Web, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    content = (tmp_path / "x.npy").read_bytes()
    web.sizes = False
    kinds = {
        "data": "[datasets.data]\ndim = 4\nbase = '{}'\n",
        "coarse": "[[files]]\nname = 'coarse'\nkind = 'centroids'\nsource = '{}'\n",
    }
    here.register("".join(text.format(web.url("x.npy")) for text in kinds.values()))
    for name in kinds:
        web.files["x.npy"] = content[:-1]
        with pytest.raises(DownloadError, match=r"is not x.npy \(.*the header says 20 x 4 float32"):
            fetch(name)
        web.files["x.npy"] = content
        assert fetch(name)[0].bytes == len(content)


def test_a_format_that_nothing_tells_is_no_reason_to_refuse(here: Surroundings, web: Web) -> None:
    web.files["x.bin"] = GOOD
    here.register(f"[datasets.x]\ndim = 4\nbase = '{web.url('x.bin')}'")
    assert fetch("x")[0].bytes == len(GOOD)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_force_that_is_killed_leaves_no_good_file_that_is_called_damaged(
    packed: str, here: Surroundings, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"x.fbin{packed}"
    here.register(f"[datasets.x]\ndim = 4\nbase = '{web.url(name)}'")
    web.files[name] = gzip.compress(GOOD) if packed else GOOD
    (path,) = (one.path for one in fetch("x"))
    other = GOOD[:8] + ROWS[::-1].tobytes()
    web.files[name] = gzip.compress(other) if packed else other

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "write_checksums", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("x", force=True)
    assert path.read_bytes() == other
    assert fetch("x")[0].state == "checked"
    path.unlink()
    assert fetch("x")[0].path.read_bytes() == other
