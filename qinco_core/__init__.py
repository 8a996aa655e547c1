"""QINCo2: neural compression of vectors to a few bytes each.

`Codec` and `Index` are the library in two classes; `open_vectors` and `write_vectors` read and write files of vectors.
Importing this package imports neither torch nor faiss; using `Codec` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qinco_core.api import Codec
    from qinco_core.config import PRESETS, EncodeConfig, ModelConfig, SearchConfig, TrainConfig
    from qinco_core.errors import QincoError
    from qinco_core.index.index import Index
    from qinco_core.vectors import open_vectors, write_vectors

_HOME = {
    "Codec": "qinco_core.api",
    "PRESETS": "qinco_core.config",
    "EncodeConfig": "qinco_core.config",
    "Index": "qinco_core.index.index",
    "ModelConfig": "qinco_core.config",
    "SearchConfig": "qinco_core.config",
    "TrainConfig": "qinco_core.config",
    "QincoError": "qinco_core.errors",
    "open_vectors": "qinco_core.vectors",
    "write_vectors": "qinco_core.vectors",
}

__all__ = [
    "PRESETS",
    "Codec",
    "EncodeConfig",
    "Index",
    "ModelConfig",
    "QincoError",
    "SearchConfig",
    "TrainConfig",
    "open_vectors",
    "write_vectors",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
