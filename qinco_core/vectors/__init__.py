"""Reading and writing files of vectors.

- `base`: layouts, checks, and the `VectorSource` protocol
- `vecs`, `bin`, `npy`, `hdf5`: one family of formats each; `formats`: the table of them
- `mapped`, `reader`: files by memory-mapped batches; `stream`: pipes; `writer`: output
"""

from qinco_core.vectors.base import VectorSource
from qinco_core.vectors.formats import FORMATS, Format, detect_format
from qinco_core.vectors.reader import VectorFile, open_vectors
from qinco_core.vectors.stream import VectorStream, read_stream
from qinco_core.vectors.writer import VectorWriter, open_writer, write_vectors

__all__ = [
    "FORMATS",
    "Format",
    "VectorFile",
    "VectorSource",
    "VectorStream",
    "VectorWriter",
    "detect_format",
    "open_vectors",
    "open_writer",
    "read_stream",
    "write_vectors",
]
