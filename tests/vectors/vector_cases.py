"""What the tests of vector files share: the formats with their types, and bytes made without the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DATA = Path(__file__).parents[2] / "examples" / "data"

quick = settings(max_examples=25, deadline=None)  # each example writes a file

FIXED = {
    "fvecs": "<f4",
    "bvecs": "u1",
    "ivecs": "<i4",
    "fbin": "<f4",
    "u8bin": "u1",
    "i8bin": "i1",
    "ibin": "<i4",
}
NPY_TYPES = ("<f2", "<f4", "<f8", "u1", "i1", "<i4", "<i8", ">f2", ">f4", ">f8", ">i4")
CASES = [*FIXED.items(), *(("npy", dtype) for dtype in NPY_TYPES)]
STREAMED = [*FIXED.items(), ("npy", "<f4")]


def raw(array: np.ndarray, format: str) -> bytes:
    """The bytes of a file, written row by row as the formats are documented."""
    N, D = array.shape
    int4 = lambda n: int(n).to_bytes(4, "little")  # noqa: E731
    if format.endswith("vecs"):
        return b"".join(int4(D) + row.tobytes() for row in array)
    if format.endswith("bin"):
        return int4(N) + int4(D) + array.tobytes()
    raise ValueError(format)


def save(path: Path, array: np.ndarray, format: str) -> Path:
    """Write `array` with numpy or by `raw`, independently of the library's writers."""
    if format == "npy":
        with path.open("wb") as handle:
            np.save(handle, array)
    else:
        path.write_bytes(raw(array, format))
    return path


@st.composite
def tables(draw: st.DrawFn, dtype: str) -> np.ndarray:
    """Small finite arrays [N, D] of a type."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 9)))
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    return draw(hnp.arrays(dtype, shape, elements=elements))


def ramp(N: int, D: int, dtype: str) -> np.ndarray:
    """[N, D] with every value different from its neighbours."""
    return (np.arange(N * D) % 100).reshape(N, D).astype(dtype)
