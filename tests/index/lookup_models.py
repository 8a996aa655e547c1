"""Two models with codes of vectors, to fit look-up decoders to."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco_core.api import Codec
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig
from qinco_core.index.pairwise_fit import Part
from qinco_core.vectors import open_vectors

sys.path.append(str(Path(__file__).parents[1] / "codec"))
import golden_models


@dataclass(frozen=True)
class Coded:
    """A model and codes of vectors: most to fit to, the last fifth to test on."""

    codec: Codec
    codes: np.ndarray
    vectors: np.ndarray

    @property
    def n(self) -> int:
        return 4 * len(self.codes) // 5

    @property
    def seen(self) -> Part:
        return Part(self.codes[: self.n], self.vectors[: self.n])

    @property
    def held(self) -> Part:
        return Part(self.codes[self.n :], self.vectors[self.n :])


def with_lists(path: Path) -> Coded:
    """The golden model of 300 lists and 4 symbols of 64, and its codes of 1,000 vectors."""
    golden = golden_models.load("ivf_q2")
    # four symbols of 64 leave little between the network and tables of pairs, so it gets a wider beam than its own
    Codec(golden.network, EncodeConfig(A=8, B=10), plan=plan("cpu", "float32", 1)).save(path)
    codec = Codec.load(path, precision="float32", threads=1)
    return Coded(codec, codec.encode(golden.vectors), golden.vectors)


def without_lists(trained: Codec, learn: Path, path: Path) -> Coded:
    """The model of 8 symbols of 64 that other tests use, and codes of 5,000 of its training vectors."""
    trained.save(path)
    codec = Codec.load(path)
    with open_vectors(learn, limit=5000) as file:
        v = file.read(0, len(file))
    return Coded(codec, codec.encode(v), v)
