"""Published files: small models of another implementation, their codes and pairwise decoder.

Of the decoder's tables those rows that the first thousand codes do not use are 0, and the file is compressed; it
had 6.3 MB.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qinco_core.api import Codec
from qinco_core.interop.detect import detect
from qinco_core.interop.models import import_model

HERE = Path(__file__).parent / "golden"
MODELS = Path(__file__).parents[1] / "codec" / "golden"


@pytest.fixture(scope="session")
def ivf_codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The published IVF model as an artifact, opened in float32."""
    path = tmp_path_factory.mktemp("published") / "model.h5"
    import_model(detect(MODELS / "ivf_q2.pt"), path)
    return Codec.load(path, device="cpu", precision="float32", threads=1)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A copy of the published codes, to be spoilt."""
    for name in ("ivf_db.npz", "ivf_db.part_0.npz"):
        (tmp_path / name).write_bytes((HERE / name).read_bytes())
    return tmp_path / "ivf_db.npz"
