"""One small model for all tests of the command line, and what it makes of the sample's base vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import BASE, LEARN, SIZES, done

from qinco_core.store import load_model, save_model


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tests only read."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="session")
def model(made: Path) -> Path:
    path = made / "model.h5"
    done("train", LEARN, *SIZES, "--limit", 3000, "--epochs", 1, "--epoch-size", 2000, "-o", path, "-q")
    return path


@pytest.fixture(scope="session")
def other_model(model: Path, made: Path) -> Path:
    """Another model of the same sizes."""
    stored = load_model(model)
    tensors = {name: array * np.float32(1.5) for name, array in stored.tensors.items()}
    save_model(made / "other.h5", stored.config, stored.encode, tensors, training={})
    return made / "other.h5"


@pytest.fixture(scope="session")
def codes(model: Path, made: Path) -> Path:
    """Codes of the 10,000 base vectors."""
    path = made / "base.h5"
    done("encode", BASE, "--model", model, "-o", path, "--threads", 1, "-q")
    return path


@pytest.fixture(scope="session")
def stream(model: Path) -> bytes:
    """The same codes as a stream."""
    return done("encode", BASE, "--model", model, "-o", "-", "--threads", 1, "-q").out


@pytest.fixture(scope="session")
def decoded(model: Path, codes: Path, made: Path) -> np.ndarray:
    """The base vectors after encoding and decoding, float32 [10000, 128]."""
    done("decode", codes, "--model", model, "-o", made / "base.npy", "--threads", 1, "-q")
    return np.load(made / "base.npy")
