"""Tiny artifacts for the tests of the store."""

import numpy as np
import pytest

from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.store import CodesSpec, create_codes, save_model


@pytest.fixture
def config():
    return ModelConfig(D=6, M=3, K=4, L=1, E=6, H=5)


@pytest.fixture
def encode():
    return EncodeConfig(A=2, B=2)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def tensors(rng):
    return {
        "data_mean": rng.normal(size=6).astype("f4"),
        "data_std": np.array(2.5, "f4"),
        "steps.1.w_up": rng.normal(size=(5, 6)).astype("f4"),
    }


@pytest.fixture
def model_path(tmp_path, config, encode, tensors):
    path = tmp_path / "model.h5"
    save_model(path, config, encode, tensors, training={"mse": 1.5, "curve": [3, 2]})
    return path


@pytest.fixture
def spec():
    return CodesSpec(model="ab" * 16, D=6, M=5, K=256, dtype="float32", encoder={"A": 2, "device": "cpu"})


@pytest.fixture
def rows(rng):
    """100 packed codes of five bytes, and their ids."""
    return rng.integers(0, 256, (100, 5), np.uint8), rng.integers(-(2**62), 2**62, 100)


@pytest.fixture
def write(spec, rows):
    """Write the first n rows as codes; any argument of `create_codes` may be given."""

    def write(path, n=100, batch=7, **options):
        codes, ids = rows
        options = {
            "count": n,
            "with_ids": True,
            "source_stamp": "s",
            "chunk_rows": 16,
            "spec": spec,
        } | options
        with create_codes(path, **options) as out:
            for at in range(out.done, n, batch):
                end = min(at + batch, n)
                out.append(codes[at:end], ids[at:end] if options["with_ids"] else None)
        return out.header

    return write
