"""Data sets and published files by name.

- `registry`: what has a name (`published.toml`, and the user's own files); `named`: names where files are asked for
- `fetching`: into the cache, checked; `transfer`, `remote`: downloads that go on; `unpack`: gz, tar; `received`:
  whether what came is the file
- `cache`: where files lie, and their digests
"""

from qinco_core.datasets.cache import cache_root
from qinco_core.datasets.fetching import Fetched, Planned, fetch, free_space, plan
from qinco_core.datasets.named import Dataset, dataset, find_dataset, open_named, published_file
from qinco_core.datasets.registry import PARTS, Part, load_registry
from qinco_core.datasets.transfer import Patience

__all__ = [
    "PARTS",
    "Dataset",
    "Fetched",
    "Part",
    "Patience",
    "Planned",
    "cache_root",
    "dataset",
    "fetch",
    "find_dataset",
    "free_space",
    "load_registry",
    "open_named",
    "plan",
    "published_file",
]
