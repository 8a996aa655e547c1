"""The groups of a product model: the rotation before them, and each as vectors of their own.

Shapes: N vectors, D dimension, n groups, X = D / n dimensions of a group.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.precision import Plan
from qinco_core.errors import UsageError
from qinco_core.optional import import_faiss
from qinco_core.store.artifact import digest
from qinco_core.vectors import VectorFile
from qinco_core.vectors.base import Array, Layout

Rotation = NDArray[np.float32]

# vectors that the rotation is learned from, how many of them a centroid of Faiss's k-means wants, and iterations
_SAMPLE, _PER_CENTROID, _ITERATIONS = 1 << 15, 39, 10
_READ_BYTES = 4 << 20


class GroupRows:
    """The rows of a file of vectors, of which only one group's dimensions are seen (`qinco_core.vectors.base.Rows`)."""

    def __init__(self, vectors: VectorFile, columns: slice, rotation_DD: Rotation | None) -> None:
        self._vectors = vectors
        self._columns = columns
        self._rotation_DX = None if rotation_DD is None else np.ascontiguousarray(rotation_DD[:, columns])
        dtype = vectors.dtype if rotation_DD is None else np.dtype(np.float32)
        self.layout = Layout(dtype, columns.stop - columns.start, len(vectors))

    def fetch(self, start: int, stop: int) -> Array:
        """Rows start..stop-1 as a fresh [stop - start, X] array."""
        block = np.empty((stop - start, self.layout.D), self.layout.dtype)
        # all D dimensions are read, but of few rows at a time
        step = max(1, _READ_BYTES // (self._vectors.dim * self._vectors.dtype.itemsize))
        for at in range(start, stop, step):
            end = min(at + step, stop)
            block[at - start : end - start] = self._view(self._vectors.read(at, end))
        return block

    def gather(self, rows: Array) -> Array:
        """The rows of those numbers as a fresh [n, X] array."""
        return np.ascontiguousarray(self._view(self._vectors.take(rows)))

    def place(self, row: int) -> tuple[str, int]:
        """The file's name, and the row's number as it is."""
        return self._vectors.name, row

    def _view(self, block: Array) -> Array:
        if self._rotation_DX is None:
            return block[:, self._columns]
        return block.astype(np.float32, copy=False) @ self._rotation_DX


def group_vectors(vectors: VectorFile, g: int, n: int, rotation_DD: Rotation | None) -> VectorFile:
    """The vectors as group g of n sees them, [N, X]: of their own type, or float32 after a rotation."""
    X = vectors.dim // n
    turned = "" if rotation_DD is None else f" rotated by {digest(np.ascontiguousarray(rotation_DD))}"
    return VectorFile(
        GroupRows(vectors, slice(g * X, (g + 1) * X), rotation_DD),
        name=f"{vectors.name} (group {g + 1} of {n})",
        format=vectors.format,
        identity=f"{vectors.stamp}{turned} group {g} of {n}",
        start=0,
        stop=len(vectors),
    )


def check_rotation(vectors: VectorFile) -> None:
    """Refuse to learn a rotation from fewer vectors than dimensions: Faiss would write beyond its memory.

    Raises:
        UsageError: there are fewer.
    """
    N, D = vectors.shape
    if N < D:
        raise UsageError(
            f"OPQ learns a rotation of D = {D} dimensions from as many vectors or more, but {vectors.name} has {N} to "
            "learn from: give more vectors, or leave --opq out"
        )


def learn_rotation(vectors: VectorFile, n: int, seed: int, plan: Plan) -> Rotation:
    """The rotation R of OPQ (Faiss), which makes n groups of dimensions easy to quantize one by one: y = v R.

    Args:
        vectors: what to learn from; of more than 32,768 a sample.
        n: number of groups.
        seed: of the sample and of k-means.
        plan: its threads are used.

    Returns:
        An orthogonal matrix [D, D].

    Raises:
        DependencyError: Faiss is not installed.
        UsageError: there are fewer vectors than dimensions.
    """
    faiss = import_faiss()
    check_rotation(vectors)
    random = np.random.default_rng(seed)
    N, D = vectors.shape
    rows = np.arange(N) if N <= _SAMPLE else np.sort(random.choice(N, _SAMPLE, replace=False))
    x = vectors.take(rows).astype(np.float32)
    bits = max(1, min(8, int(math.log2(max(1, len(rows) / _PER_CENTROID)))))
    quantizer = faiss.ProductQuantizer(D, n, bits)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    matrix = faiss.OPQMatrix(D, n)
    matrix.pq = quantizer  # a raw pointer: `quantizer` must outlive the training
    # from the dimensions as they are, not from Faiss's random rotation: never worse, and there in fewer iterations
    faiss.copy_array_to_vector(np.eye(D, dtype=np.float32).ravel(), matrix.A)
    matrix.niter = _ITERATIONS
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(plan.threads)
        matrix.train(x)
    finally:
        faiss.omp_set_num_threads(before)
    found = faiss.vector_to_array(matrix.A).reshape(D, D).astype(np.float64)
    left, _, right = np.linalg.svd(found)  # orthogonal to float64's precision, where Faiss has float32's
    return np.ascontiguousarray((left @ right).T, dtype=np.float32)
