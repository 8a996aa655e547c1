"""Forecast sizes against files, and how cost follows the number of vectors, cores and machines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qinco_core.config import ModelConfig, preset
from qinco_core.index.coarse import Coarse
from qinco_core.scale.costs import (
    MEASURED,
    Machines,
    Rates,
    Sizes,
    codes_file_bytes,
    encoding,
    indexing,
    pace,
    searching,
    streaming,
)
from qinco_core.store import CodesSpec, Store, create_codes, load_model, open_codes
from qinco_core.store.folder import Parts

BIG = preset("qinco2-S").model(128, ivf_K=65536)
SIZES = Sizes.of(BIG, largest_id=10**9)
RATES = Rates(encode=1e-3, read=1e-7, norms=1e-6, graph=20.0, query=1e-4, scan=1e-8)


def test_sizes_are_those_of_the_files(index_store: Store) -> None:
    stored = load_model(index_store.model)
    sizes = Sizes.of(stored.config, largest_id=9999, tables=1)
    tensors = sum(tensor.nbytes for tensor in stored.tensors.values())
    assert sizes.model == pytest.approx(tensors, rel=0.02)
    codes = index_store.codes("base")
    with open_codes(codes) as file:
        assert sizes.code == file.spec.bytes_per_vector
    assert codes.stat().st_size == pytest.approx(codes_file_bytes(10_000, sizes), abs=8192)
    flat = sum(path.stat().st_size - 128 for path in index_store.index.glob("*.npy"))
    assert flat == 10_000 * sizes.entry
    folder = sum(path.stat().st_size for path in index_store.index.iterdir())
    found = indexing(10_000, sizes, RATES, Machines())
    assert folder == pytest.approx(found.output_bytes, abs=16384)


@pytest.mark.parametrize("ids", [False, True])
def test_the_size_of_a_large_file_of_codes(ids: bool, tmp_path: Path) -> None:
    config, N = ModelConfig(D=9, M=5, K=64, ivf_K=1000), 200_000
    spec = CodesSpec(model="ab" * 16, D=9, M=5, K=64, ivf_K=1000, dtype="uint8")
    with create_codes(tmp_path / "c.h5", spec=spec, count=N, with_ids=ids, source_stamp="") as out:
        numbers = np.arange(N)
        out.append(np.zeros((N, 4), np.uint8), numbers if ids else None, numbers % 1000)
    sizes = Sizes.of(config, ids=ids)
    assert (tmp_path / "c.h5").stat().st_size == pytest.approx(codes_file_bytes(N, sizes), rel=0.01)
    assert encoding(N, sizes, RATES, Machines()).output_bytes == pytest.approx(codes_file_bytes(N, sizes), rel=0.001)


def test_the_size_of_a_graph(tmp_path: Path) -> None:
    L, D = 2000, 24
    Coarse(np.random.default_rng(0).standard_normal((L, D)).astype("f4"), threads=1, device="cpu").save_hnsw(
        tmp_path / "graph"
    )
    config = ModelConfig(D=D, M=4, K=4, ivf_K=L)
    rest = L * (4 * D + 12) + 4 * 4 * 4 * D
    assert Sizes.of(config).lists - rest == pytest.approx((tmp_path / "graph").stat().st_size, rel=0.02)


def test_ids_beyond_32_bits_and_pairwise_norms_take_their_room() -> None:
    assert Sizes.of(BIG, largest_id=2**31 - 1).entry == 8 + 4 + 1
    assert Sizes.of(BIG, largest_id=2**31, tables=16).entry == 8 + 8 + 2
    assert Sizes.of(BIG, tables=16).tables == 16 * 65536 * 128


def test_encoding_is_shared_by_cores_and_machines() -> None:
    one = encoding(10**9, SIZES, RATES, Machines())
    many = encoding(10**9, SIZES, RATES, Machines(count=8, cores=4), parts=10**9)
    assert one.seconds == pytest.approx(1e6) and many.seconds == pytest.approx(1e6 / 32)
    assert (one.output_bytes, one.disk_bytes) == (10 * 10**9, 20 * 10**9)
    assert many.output_bytes == one.output_bytes
    assert many.disk_bytes == 10 * 10**9 + 8 * 10 * Parts(10**9).rows
    assert one.memory_bytes == many.memory_bytes == encoding(10, SIZES, RATES, Machines()).memory_bytes


def test_an_index_takes_more_passes_where_it_does_not_fit_in_memory() -> None:
    few, many = (indexing(10**8, SIZES, RATES, Machines(memory=size)) for size in (1 << 40, 1 << 30))
    assert few.passes == 1 and few.seconds == pytest.approx(10**8 * (2e-7 + 1e-6) + 20)
    assert many.passes == 3 and many.seconds == pytest.approx(10**8 * (4e-7 + 1e-6) + 20)
    assert few.memory_bytes - many.memory_bytes == 2 * 10**8 * SIZES.entry - (1 << 30)
    assert few.output_bytes == many.output_bytes == 10**8 * 13 + SIZES.lists
    shards = indexing(10**8, SIZES, RATES, Machines(count=10))
    assert shards.passes == 1 and shards.seconds == pytest.approx(few.seconds)  # one after the other
    assert shards.memory_bytes < few.memory_bytes / 2


def test_a_search_scans_its_share_of_every_shard() -> None:
    one = searching(10**9, 1000, SIZES, RATES, Machines(), share=16 / 65536)
    assert one.seconds == pytest.approx(1000 * (1e-4 + 1e-8 * 10**9 * 16 / 65536))
    four = searching(10**9, 1000, SIZES, RATES, Machines(count=4), share=16 / 65536)
    assert four.seconds < one.seconds and four.memory_bytes < one.memory_bytes / 3


def test_a_stream_has_no_end_to_tell_of() -> None:
    found = streaming(None, 8, 0.1, SIZES, Machines(cores=2), rows=100, spare=None)
    assert (found.vectors, found.output_bytes, found.disk_bytes, found.seconds) == (None, None, None, None)
    assert found.vectors_per_second == 20 and "passes" not in found.as_dict()


def test_a_pace_is_measured_on_more_where_few_are_too_quick() -> None:
    asked: list[int] = []

    def work(each: float) -> float:
        return pace(lambda n: (asked.append(n), n * each)[1])

    assert work(1e-3) == pytest.approx(1e-3) and asked == [64, 256]
    asked.clear()
    assert work(1e-9) == pytest.approx(1e-9, rel=0.1) and asked[-1] == MEASURED
