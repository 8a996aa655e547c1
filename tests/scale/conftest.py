"""A cluster of Ray's own, of two machines that are processes here, and what it works on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import NODE

from qinco_core.api import Codec
from qinco_core.optional import import_ray
from qinco_core.store import Store


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """This process is connected to it."""
    ray = import_ray()
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE)
    made.add_node(**NODE)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="session")
def codec(ivf_store: Store) -> Codec:
    return Codec.load(ivf_store.model, precision="float32", threads=1)


@pytest.fixture(scope="session")
def base(sift_learn: Path) -> Path:
    return sift_learn.with_name("sift_base.u8bin")
