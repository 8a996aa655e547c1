"""Faiss quantizers of the same size as a code, to measure it against.

Symbols: nt training vectors, nb vectors to compress, D their dimension, M bytes of a code.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qinco_core.codec.precision import default_threads
from qinco_core.errors import DependencyError, DimensionError, UsageError
from qinco_core.evaluation.metrics import ErrorSum
from qinco_core.optional import import_faiss

Floats = npt.NDArray[np.float32]

_K = 256  # one byte a symbol
_WARM = 64  # vectors that warm up before a timing
_RABITQ_FACTORS = 8  # bytes of each code that are not bits of dimensions


@dataclass(frozen=True, eq=False)
class BaselineResult:
    """What one baseline reached.

    Attributes:
        name: one of `baseline_names()`.
        bytes: bytes per vector.
        mse: mean over the vectors of the squared error summed over dimensions.
        relative_mse: that error as a share of the vectors' variance.
        train_seconds: wall-clock seconds of training.
        encode_rate: vectors per second.
        decode_rate: vectors per second.
        note: the settings it ran with.
        decoded: the vectors after encoding and decoding, float32 [nb, D].
    """

    name: str
    bytes: int
    mse: float
    relative_mse: float
    train_seconds: float
    encode_rate: float
    decode_rate: float
    note: str
    decoded: Floats


@dataclass(frozen=True)
class _Quantizer:
    """A Faiss quantizer, reduced to what a measurement needs."""

    train: Callable[[Floats], None]
    encode: Callable[[Floats], Any]
    decode: Callable[[Any], Floats]
    note: str


def baseline_names() -> tuple[str, ...]:
    """The names `run_baseline` takes; the first four are for any number of bytes up to D."""
    return tuple(_BUILDERS)


def usual_baselines() -> tuple[str, ...]:
    """Those that a model is compared with unless others are named, cheapest first."""
    return "PQ", "OPQ", "RQ", "LSQ"


def run_baseline(
    name: str,
    xt: Floats,
    xb: Floats,
    code_bytes: int,
    *,
    seed: int,
    threads: int | None = None,
    beam: int = 5,
) -> BaselineResult:
    """Train a Faiss quantizer on xt, then compress xb with it and measure what is left.

    All train on every vector of xt, other settings being Faiss's own; only OPQ's rotation is
    learned from at most 65,536 of them, drawn with Faiss's own seed.

    Args:
        name: one of `baseline_names()`.
        xt: training vectors float32 [nt, D], 256 or more.
        xb: vectors to compress float32 [nb, D].
        code_bytes: bytes per vector.
        seed: of k-means and of LSQ's perturbations.
        threads: Faiss's threads, by default its own choice.
        beam: beam width of RQ; the others have none.

    Raises:
        DependencyError: Faiss is not installed.
        DimensionError: xt and xb are not matrices of one dimension.
        UsageError: the name is unknown, or there is no such quantizer at this D, size and nt.
    """
    if name not in _BUILDERS:
        raise UsageError(f"no baseline {name!r}; there are {', '.join(_BUILDERS)}")
    if xt.ndim != 2 or xb.ndim != 2 or xt.shape[1] != xb.shape[1]:
        raise DimensionError(f"training vectors {xt.shape} and vectors {xb.shape} must be [n, D] of one D")
    if len(xt) < _K:
        raise UsageError(f"{name} needs {_K} training vectors or more, not {len(xt)}")
    if len(xb) == 0 or code_bytes < 1 or beam < 1:
        raise UsageError("a baseline needs at least one vector, one byte per vector and a beam of 1")
    xt, xb = (np.ascontiguousarray(x, dtype=np.float32) for x in (xt, xb))
    faiss = import_faiss()
    with _threads(faiss, threads):
        quantizer = _BUILDERS[name](faiss, xt.shape, code_bytes, seed, beam)
        return _measure(name, quantizer, xt, xb, code_bytes)


def _measure(name: str, quantizer: _Quantizer, xt: Floats, xb: Floats, code_bytes: int) -> BaselineResult:
    train_seconds, _ = _timed(lambda: quantizer.train(xt))
    quantizer.decode(quantizer.encode(xb[:_WARM]))
    encode_seconds, codes = _timed(lambda: quantizer.encode(xb))
    decodings = [_timed(lambda: quantizer.decode(codes)) for _ in range(3)]
    decoded = decodings[-1][1]
    error = ErrorSum()
    error.add(xb, decoded)
    return BaselineResult(
        name=name,
        bytes=code_bytes,
        mse=error.mse,
        relative_mse=error.relative,
        train_seconds=train_seconds,
        encode_rate=len(xb) / encode_seconds,
        decode_rate=len(xb) / statistics.median(seconds for seconds, _ in decodings),
        note=quantizer.note,
        decoded=decoded,
    )


def _pq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    D, width = shape[1], _padded(shape[1], M, "PQ")
    pq = _product_quantizer(faiss, width, M, shape[0], seed)
    return _Quantizer(
        train=lambda x: pq.train(_pad(x, width)),
        encode=lambda x: pq.compute_codes(_pad(x, width)),
        decode=lambda codes: np.ascontiguousarray(pq.decode(codes)[:, :D]),
        note=f"{_layout(D, width, M)}; {pq.cp.niter} k-means iterations",
    )


def _opq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    D, width = shape[1], _padded(shape[1], M, "OPQ")
    rotation = faiss.OPQMatrix(width, M)
    start = _product_quantizer(faiss, width, M, shape[0], seed)
    pq = _product_quantizer(faiss, width, M, shape[0], seed)

    def train(x: Floats) -> None:
        rotation.pq = start  # a raw pointer: `start` must outlive the training
        rotation.train(_pad(x, width))
        pq.train(rotation.apply(_pad(x, width)))

    return _Quantizer(
        train=train,
        encode=lambda x: pq.compute_codes(rotation.apply(_pad(x, width))),
        decode=lambda codes: np.ascontiguousarray(rotation.reverse_transform(pq.decode(codes))[:, :D]),
        note=f"{_layout(D, width, M)}; {rotation.niter} iterations of the rotation "
        f"on at most {rotation.max_train_points} vectors; {pq.cp.niter} k-means iterations",
    )


def _rq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    rq = faiss.ResidualQuantizer(shape[1], M, 8)
    rq.max_beam_size = beam
    _set_clustering(rq.cp, shape[0], seed)
    return _Quantizer(rq.train, rq.compute_codes, rq.decode, f"{M} steps of 8 bits; beam {beam}")


def _lsq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    lsq = faiss.LocalSearchQuantizer(shape[1], M, 8)
    lsq.nperts = min(lsq.nperts, M)
    lsq.random_seed = seed
    note = (
        f"{M} codebooks of 8 bits; {lsq.train_iters} training iterations; "
        f"{lsq.encode_ils_iters} encoding iterations; {lsq.nperts} perturbations"
    )
    return _Quantizer(lsq.train, lsq.compute_codes, lsq.decode, note)


def _prq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    D = shape[1]
    if M % 2 or D % 2:
        raise UsageError(f"no PRQ of {M} bytes for {D} dimensions: both must be even; use RQ")
    prq = faiss.ProductResidualQuantizer(D, 2, M // 2, 8)
    for part in range(2):
        rq = faiss.downcast_AdditiveQuantizer(prq.subquantizer(part))
        rq.max_beam_size = beam
        _set_clustering(rq.cp, shape[0], seed)
    note = f"{M} bytes: 2 parts of {M // 2} steps of 8 bits; beam {beam}"
    return _Quantizer(prq.train, prq.compute_codes, prq.decode, note)


def _sq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    width = 2 * M
    if width > shape[1]:
        raise UsageError(f"no SQ of {M} bytes for {shape[1]} dimensions: it takes 4 bits of each at most; use RQ")
    return _index(faiss, shape[1], f"PCAR{width},SQ4", M, f"the first {width} principal components, 4 bits each")


def _rabitq(faiss: Any, shape: tuple[int, int], M: int, seed: int, beam: int) -> _Quantizer:
    width = 8 * (M - _RABITQ_FACTORS)
    if not 0 < width <= shape[1]:
        least, most = _RABITQ_FACTORS + 1, _RABITQ_FACTORS + shape[1] // 8
        raise UsageError(f"no RaBitQ of {M} bytes for {shape[1]} dimensions: {least} to {most} bytes; use RQ")
    return _index(
        faiss, shape[1], f"PCAR{width},RaBitQ", M, f"the first {width} principal components, rotated, 1 bit each"
    )


def _index(faiss: Any, D: int, factory: str, M: int, what: str) -> _Quantizer:
    """A quantizer that Faiss has as an index."""
    try:
        index = faiss.index_factory(D, factory)
    except RuntimeError as error:
        raise DependencyError(f"this Faiss has no {factory}: upgrade it ({error})") from None
    if index.sa_code_size() != M:
        raise UsageError(f"Faiss's {factory} has {index.sa_code_size()} bytes, not {M}")
    mean = np.zeros(D, np.float32)

    def train(x: Floats) -> None:
        # Faiss's way back from principal components loses the mean of what it left out
        mean[:] = x.mean(axis=0, dtype=np.float64)
        index.train(x - mean)

    return _Quantizer(
        train=train,
        encode=lambda x: index.sa_encode(x - mean),
        decode=lambda codes: index.sa_decode(codes) + mean,
        note=f"{M} bytes: {what}",
    )


_BUILDERS: dict[str, Callable[[Any, tuple[int, int], int, int, int], _Quantizer]] = {
    "PQ": _pq,
    "OPQ": _opq,
    "RQ": _rq,
    "LSQ": _lsq,
    "PRQ": _prq,
    "SQ": _sq,
    "RaBitQ": _rabitq,
}


def _product_quantizer(faiss: Any, D: int, M: int, nt: int, seed: int) -> Any:
    pq = faiss.ProductQuantizer(D, M, 8)
    _set_clustering(pq.cp, nt, seed)
    return pq


def _set_clustering(parameters: Any, nt: int, seed: int) -> None:
    parameters.seed = seed
    # Faiss would sample 256 points a centroid: a baseline may see all that the model sees
    parameters.max_points_per_centroid = -(-nt // _K)
    parameters.min_points_per_centroid = 1


def _padded(D: int, M: int, name: str) -> int:
    """The width PQ works at: D, or the next multiple of M, filled up with zeros."""
    if M > D:
        raise UsageError(f"no {name} of {M} bytes for {D} dimensions: each byte codes one or more; use RQ")
    return -(-D // M) * M


def _pad(x: Floats, width: int) -> Floats:
    return np.pad(x, ((0, 0), (0, width - x.shape[1]))) if width > x.shape[1] else x


def _layout(D: int, width: int, M: int) -> str:
    padding = f", {D} dimensions filled up with zeros to {width}" if width > D else ""
    return f"{M} sub-quantizers of 8 bits{padding}"


@contextlib.contextmanager
def _threads(faiss: Any, threads: int | None) -> Iterator[None]:
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot work; use 1 or more")
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(threads or default_threads())
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
