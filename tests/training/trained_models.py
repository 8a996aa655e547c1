"""What tests of training compare."""

from __future__ import annotations

import numpy as np

from qinco_core.api import Codec


def same(a: Codec, b: Codec) -> bool:
    """Whether two models are equal to the bit."""
    ours, theirs = a.network.to_arrays(), b.network.to_arrays()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
