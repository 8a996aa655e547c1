"""The artifact directory: models, codes and checkpoints as files, and codes as a stream."""

from qinco_core.store.artifact import FORMAT_VERSION, Header, Parent, read_header
from qinco_core.store.centroids import StoredCentroids, load_centroids, save_centroids
from qinco_core.store.checkpoint import load_checkpoint, save_checkpoint
from qinco_core.store.codes import CodesFile, CodesWriter, StoredCodes, create_codes, partial_path
from qinco_core.store.folder import CodesFolder, open_codes
from qinco_core.store.model import StoredModel, load_model, save_model
from qinco_core.store.pairwise import StoredPairwise, load_pairwise, save_pairwise
from qinco_core.store.paths import Store, training_files
from qinco_core.store.results import StoredResults, create_results, load_results
from qinco_core.store.spec import CodeRows, CodesSpec, check_lineage
from qinco_core.store.stream import StreamReader, StreamWriter, is_stream
from qinco_core.store.verify import Check, Report, verify

__all__ = [
    "FORMAT_VERSION",
    "Check",
    "CodeRows",
    "CodesFile",
    "CodesFolder",
    "CodesSpec",
    "CodesWriter",
    "Header",
    "Parent",
    "Report",
    "Store",
    "StoredCentroids",
    "StoredCodes",
    "StoredModel",
    "StoredPairwise",
    "StoredResults",
    "StreamReader",
    "StreamWriter",
    "check_lineage",
    "create_codes",
    "create_results",
    "is_stream",
    "load_centroids",
    "load_checkpoint",
    "load_model",
    "load_pairwise",
    "load_results",
    "open_codes",
    "partial_path",
    "read_header",
    "save_centroids",
    "save_checkpoint",
    "save_model",
    "save_pairwise",
    "training_files",
    "verify",
]
