"""The artifact directory: models, codes and checkpoints as files, and codes as a stream."""

from qinco_core.store.artifact import FORMAT_VERSION, Header, Parent, read_header
from qinco_core.store.checkpoint import load_checkpoint, save_checkpoint
from qinco_core.store.codes import CodesFile, CodesWriter, create_codes, open_codes, partial_path
from qinco_core.store.model import StoredModel, load_model, save_model
from qinco_core.store.paths import Store, training_files
from qinco_core.store.spec import CodesSpec, check_lineage
from qinco_core.store.stream import StreamReader, StreamWriter, is_stream
from qinco_core.store.verify import Check, Report, verify

__all__ = [
    "FORMAT_VERSION",
    "Check",
    "CodesFile",
    "CodesSpec",
    "CodesWriter",
    "Header",
    "Parent",
    "Report",
    "Store",
    "StoredModel",
    "StreamReader",
    "StreamWriter",
    "check_lineage",
    "create_codes",
    "is_stream",
    "load_checkpoint",
    "load_model",
    "open_codes",
    "partial_path",
    "read_header",
    "save_checkpoint",
    "save_model",
    "training_files",
    "verify",
]
