"""Reading and writing files of vectors.

- `base`: layouts, checks, and the protocols that readers and writers of formats keep to
- `records` with the headers of `vecs`, `bin` and `npy`; `npz`, `hdf5`, `parquet`, `arrow`: one family of formats
  each, its reading and its writing; `formats`: the table of them
- `mapped`, `columns`, `parts`, `spill`, `pipe`: what they share
- `reader`: files; `stream`: pipes; `writer`: output; `ids`: ids; `convert`: from one format to another
"""

from qinco_core.vectors.base import VectorSource
from qinco_core.vectors.formats import FORMATS, Format, detect_format
from qinco_core.vectors.ids import read_ids
from qinco_core.vectors.reader import VectorFile, open_vectors
from qinco_core.vectors.stream import VectorStream, read_stream
from qinco_core.vectors.writer import VectorWriter, open_writer, output_path, write_vectors

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
    "output_path",
    "read_ids",
    "read_stream",
    "write_vectors",
]
