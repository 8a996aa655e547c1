"""Files of the published QINCo work and of other programs, in and out.

- `transfer`: `import_file` and `export_file`, which do it all; `detect`: what a file is
- `torchfile`: torch files read without running anything; `checkpoint`, `codes`, `pairwise`: the published formats
- `models`, `folder`: models in, and as a folder to share; `onnx`: a decoder for other programs
"""

from qinco_core.interop.detect import detect
from qinco_core.interop.transfer import Exported, Imported, export_file, import_file

__all__ = ["Exported", "Imported", "detect", "export_file", "import_file"]
