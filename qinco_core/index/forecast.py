"""How large an index is going to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qinco_core.api import Codec
from qinco_core.errors import UsageError
from qinco_core.index.build import Estimator, Scale
from qinco_core.index.pairwise import Pairwise
from qinco_core.store.index import smallest_ids


def bytes_per_entry(codec: Codec, pairwise: str | Path | None, largest_id: int) -> int:
    """Bytes of an entry in the flat arrays of an index.

    Args:
        codec: the saved model.
        pairwise: the pairwise decoder's artifact, if the index is to have one.
        largest_id: of the entries.

    Raises:
        LineageError: the decoder is of another model.
        UsageError: the model was not saved.
    """
    if codec.header is None:
        raise UsageError("save the model first: an index names the model that made its codes")
    decoder = None if pairwise is None else Pairwise.load(pairwise, codec.header, codec.centroids)
    nothing = np.empty((0, codec.config.D), np.float32)
    estimator = Estimator(codec, nothing, np.empty((0, 0, 0), np.float32), decoder)
    columns = estimator.columns(smallest_ids(largest_id), dict.fromkeys(estimator.looks, Scale(0.0, 0.0)))
    return sum(int(np.prod(c.shape, dtype=np.int64)) * np.dtype(c.dtype).itemsize for c in columns.values())
