"""What look-up decoders are fitted to: codes of training vectors, a part of them set apart.

Shapes: N training vectors, D dimension, M symbols.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.api import Codec
from qinco_core.config import validation_size
from qinco_core.errors import DimensionError, LineageError, UsageError
from qinco_core.index.additive import sum_by_row
from qinco_core.index.pairwise import Pairwise
from qinco_core.index.pairwise_fit import FitConfig, Part, check_fit, fit_pairwise
from qinco_core.progress import Progress
from qinco_core.store.codes import StoredCodes
from qinco_core.vectors import VectorFile

Array = NDArray[Any]

_ENCODE_ROWS = {"cpu": 2048, "cuda": 1 << 16}
_READ_ROWS = 1 << 16
# training vectors that the error is reported on
_SEEN = 10_000


def fit_to_vectors(
    codec: Codec,
    vectors: VectorFile,
    codes: StoredCodes | None,
    config: FitConfig,
    progress: Progress,
    base: StoredCodes | None = None,
) -> Pairwise:
    """Fit look-up decoders to training vectors; with `config.tables` 0 the additive one alone.

    Arguments and errors as of `training_codes` and `fit_pairwise`, and:

    Args:
        codec: the model.
        vectors: training vectors.
        codes: theirs.
        config: how.
        progress: told of the stages.
        base: codes that are going to be searched. The network's reconstruction, which the decoders imitate, follows
            from a code, so they are fitted to these first of all, and never to their vectors.
    """
    check_fit(codec, config)
    most = config.rows(codec.config)
    searched = None if base is None else base_codes(codec, base, config)
    wanted = most if searched is None else max(_SEEN, most - len(searched))
    known, seen, held = training_codes(codec, vectors, codes, wanted, progress)
    if searched is not None:
        known = np.concatenate([searched, known])[:most]
    return fit_pairwise(codec, known, seen, held, config, progress)


def training_codes(
    codec: Codec, vectors: VectorFile, codes: StoredCodes | None, most: int, progress: Progress
) -> tuple[Array, Part, Part]:
    """The codes to fit decoders to, of at most so many vectors, evenly out of the file.

    Args:
        codec: the model.
        vectors: the training vectors. The last 10,000, or a tenth if that is less, are set apart, which are the
            ones that the model's own training set apart if it was of the same file.
        codes: their codes, row by row; None: they are encoded here.
        most: beside those that are set apart.
        progress: told of the encoding.

    Returns:
        The codes, some of them with their vectors, and the part that was set apart: what `fit_pairwise` takes.

    Raises:
        DimensionError: the vectors are not the model's.
        LineageError: the codes are of another model, or not as many as the vectors.
        UsageError: there are fewer than two vectors.
    """
    N = len(vectors)
    if vectors.dim != codec.config.D:
        raise DimensionError(
            f"{vectors.name} has vectors of dimension {vectors.dim}, but the model takes {codec.config.D}: "
            "use the model that was trained for them"
        )
    if N < 2:
        raise UsageError(f"{vectors.name} has {N} vector: decoders are fitted to some and tested on others")
    if codes is not None:
        check_training_codes(codec, vectors, codes)
    n = N - validation_size(None, N)
    rows = even(n, most)
    found = _codes(codec, vectors, codes, np.concatenate([rows, np.arange(n, N)]), progress)
    seen = even(len(rows), _SEEN)
    return (
        found[: len(rows)],
        Part(found[seen], vectors.take(rows[seen])),
        Part(found[len(rows) :], vectors.read(n, N)),
    )


def check_training_codes(codec: Codec, vectors: VectorFile, codes: StoredCodes) -> None:
    """Check that codes are of this model and, as far as their number tells, of these vectors.

    Raises:
        LineageError: they are not.
    """
    codec.check_codes(codes.spec, codes.path)
    if len(codes) != len(vectors):
        raise LineageError(
            f"{codes.path} has {len(codes)} codes, but {vectors.name} has {len(vectors)} vectors; "
            "name the vectors that were encoded, with the same --limit"
        )


def base_codes(codec: Codec, base: StoredCodes, config: FitConfig) -> Array:
    """Codes that are going to be searched, as many as are of use, evenly out of their file.

    Raises:
        LineageError: they are of another model.
    """
    codec.check_codes(base.spec, base.path)
    return _read(codec, base, even(len(base), config.rows(codec.config)))


def even(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers below n, evenly spread."""
    return np.arange(min(n, most), dtype=np.int64) * n // max(1, min(n, most))


def _codes(
    codec: Codec, vectors: VectorFile, codes: StoredCodes | None, rows: NDArray[np.int64], progress: Progress
) -> Array:
    """The codes of some rows, which are in ascending order."""
    size = _ENCODE_ROWS[codec.plan.device.type] if codes is None else _READ_ROWS
    parts: list[Array] = []
    progress.begin("encoding training vectors" if codes is None else "reading codes", len(rows), "vectors")
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        parts.append(codec.encode(vectors.take(part)) if codes is None else _read(codec, codes, part))
        progress.advance(len(part))
    progress.end()
    return np.concatenate(parts)


def _read(codec: Codec, codes: StoredCodes, rows: NDArray[np.int64]) -> Array:
    """Codes of ascending rows, a few chunks in memory at a time."""
    found = [codec.unpack_rows(codes.rows(0, 0))]
    if not len(rows):
        return found[0]
    for first in range(int(rows[0]), int(rows[-1]) + 1, _READ_ROWS):
        last = min(first + _READ_ROWS, len(codes))
        wanted = rows[(rows >= first) & (rows < last)]
        if len(wanted):
            found.append(codec.unpack_rows(codes.rows(first, last))[wanted - first])
    return np.concatenate(found)


def forecast(codec: Codec, N: int, config: FitConfig, *, encoded: bool, base: int = 0) -> dict[str, Any]:
    """What fitting would take, from a short measurement: codes, bytes written, memory (bytes), seconds.

    Args:
        codec: the model.
        N: training vectors there are.
        config: how.
        encoded: whether their codes are there.
        base: codes there are that will be searched.
    """
    c, rng = codec.config, np.random.default_rng(0)
    held = validation_size(None, N)
    sample = config.rows(c)
    count = min(N - held, max(_SEEN, sample - base))
    v = rng.standard_normal((2048, c.D)).astype(np.float32)
    codes = codec.encode(v[:256])
    encoding = _seconds(lambda: codec.encode(v[:256])) / 256
    many = codes[rng.integers(0, 256, 2048)]
    decoding = _seconds(lambda: codec.decode(many)) / 2048
    row = rng.integers(0, c.K**2, 1 << 16)
    left = np.zeros((1 << 16, c.D), np.float32)
    adding = _seconds(lambda: sum_by_row(left, row, c.K**2, codec.plan)) / (1 << 16)
    tables = config.count(c)
    # each table: sums twice and two subtractions; and the choice of pairs
    fitting = sample * (decoding + adding * (c.M + tables * (1 + config.sweeps) * 3))
    return {
        "vectors": count + held,
        "sample": sample,
        "tables": tables,
        "output_bytes": tables * c.K**2 * c.D + 4 * c.M * c.K * c.D,
        "memory_bytes": (400 << 20) + 6 * c.D * sample + (5 * tables + 8) * c.K**2 * c.D + 16 * (c.M * c.K) ** 2,
        "seconds": round(fitting + (0 if encoded else (count + held) * encoding), 3),
    }


def _seconds(work: Callable[[], object]) -> float:
    work()  # the first call compiles and warms up
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
