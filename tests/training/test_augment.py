"""Against learning vectors by heart: differences of neighbours, as far as they are called for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_models import same

from qinco_core.api import Codec
from qinco_core.codec.precision import plan
from qinco_core.config import ModelConfig, TrainConfig
from qinco_core.store import load_checkpoint
from qinco_core.training import neighbors
from qinco_core.training.data import TrainingData
from qinco_core.training.neighbors import Neighbors
from qinco_core.training.recipes import model_and_search, recipe
from qinco_core.training.schedule import by_heart
from qinco_core.training.trainer import Interrupted
from qinco_core.vectors import open_vectors

# so large a model learns 900 vectors by heart in no time
FEW: dict[str, Any] = {
    "preset_name": "qinco2-XS",
    "changes": {"M": 4, "K": 64, "E": 16, "H": 32, "A": 4, "B": 4},
    "epochs": 12,
    "training": {"encode_batch": 512, "batch": 256, "val": 100, "kmeans_iterations": 3, "epoch_size": 1024},
    "threads": 2,
}


@pytest.fixture(scope="module")
def few(sift_learn: Path) -> np.ndarray:
    with open_vectors(sift_learn, limit=1000) as file:
        return file.read(0, 1000)


def rounds(log: Path) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "round"]


def test_differences_are_of_two_vectors_near_by(few: np.ndarray) -> None:
    """In a single cell, which 999 vectors are, these are the exact neighbours."""
    v = few[:999]
    x = v.astype(np.float64)
    near = np.square(x[:, None, :64] - x[None, :, :64]).sum(2) + np.square(x[:, None, 64:] - x[None, :, 64:]).sum(2)
    near = near.argsort(1)[:, :10]
    rows = torch.arange(999).repeat(3)
    drawn = Neighbors.draw(len(rows), torch.Generator().manual_seed(0))
    found = Neighbors(v, 0, plan("cpu", "float32", 2)).differences(rows, drawn).numpy()
    for row, difference in zip(rows.tolist(), found, strict=True):
        members = x[near[row]]
        assert (members[:, None] - members == difference).all(2).any()
    assert len(np.unique(found, axis=0)) > 2000


def test_neighbors_in_cells_of_any_size(few: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def differences(v: np.ndarray) -> torch.Tensor:
        found = Neighbors(v, 3, plan("cpu", "float32", 2))
        return found.differences(torch.arange(len(v)), found.draw(len(v), torch.Generator().manual_seed(1)))

    whole = differences(few)
    monkeypatch.setattr(neighbors, "_BLOCK", 10_000)  # distances by ten rows or twenty at a time
    assert torch.equal(differences(few), whole)
    monkeypatch.setattr(neighbors, "_SIZE", 2)  # most cells have fewer than ten vectors
    assert 0 < differences(few).square().sum() < whole.square().sum()
    monkeypatch.setattr(neighbors, "_SIZE", 1)  # and now they have one
    assert not differences(np.unique(few, axis=0)).any()


def test_batches_with_differences_repeat_themselves(
    few: np.ndarray, sift_learn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_vectors(sift_learn, limit=1000) as file:
        data = TrainingData(file, ModelConfig(D=128, K=16), TrainConfig(samples=1, encode_batch=300, val=100))
        plain, _ = data.draw(4)
        assert torch.equal(data.draw(4, 0.25)[0], plain)  # none are found yet
        data.find_neighbors(plan("cpu", "float32", 2))
        assert torch.equal(data.draw(4)[0], plain)
        moved, again = data.draw(4, 0.25)[0], data.draw(4, 0.25)[0]
        assert torch.equal(moved, again) and moved.dtype == torch.float32
        ratio = (data.draw(4, 0.5)[0] - plain) / (moved - plain)
        torch.testing.assert_close(ratio[moved != plain], torch.tensor(2.0).expand(int((moved != plain).sum())))
        spread, _ = data.spread(10)
        assert np.array_equal(spread, few[np.linspace(0, 899, 10).astype(int)])
        assert len(data.spread(5000)[0]) == 900
        monkeypatch.setattr("qinco_core.training.data._KEPT_BYTES", 100_000)
        large = TrainingData(file, ModelConfig(D=128, K=16), TrainConfig(samples=1, encode_batch=300, val=100))
        assert data.few and not large.few  # which is not kept in memory
        assert np.array_equal(large.spread(10)[0], spread)


def test_how_much_is_learned_by_heart() -> None:
    pairs = [(1.1, 1.0), (1.0, 1.0), (0.98, 1.0), (0.94, 1.0), (0.90, 1.0), (0.1, 1.0), (0.0, 0.0)]
    assert [by_heart(*pair) for pair in pairs] == pytest.approx([0, 0, 0, 0.5, 1, 1, 0], abs=1e-9)


def test_it_belongs_to_the_fast_recipe() -> None:
    sizes = model_and_search("qinco2-S", 128, {})
    assert recipe(*sizes, 10_000, epochs=1).augment == 0.25
    assert recipe(*sizes, 10_000, epochs=1, changes={"augment": 0.1}).augment == 0.1
    paper = recipe(*sizes, 10_000, epochs=1, changes={"recipe": "paper"})
    assert (paper.augment, paper.replace) == (0.0, None)


def test_few_vectors_get_differences_and_others_do_not(few: np.ndarray, sift_learn: Path, tmp_path: Path) -> None:
    Codec.train(few, **FEW, log=tmp_path / "few.jsonl")
    found = rounds(tmp_path / "few.jsonl")
    assert found[-1]["train_mse"] < 0.9 * found[-1]["val_mse"]
    assert all(r["augment"] == pytest.approx(0.25 * by_heart(r["train_mse"], r["val_mse"])) for r in found)
    assert found[-1]["augment"] > 0.1

    small = FEW | {"changes": FEW["changes"] | {"K": 16}, "epochs": 2, "training": {"kmeans_iterations": 3}}
    with open_vectors(sift_learn, limit=20_000) as many:
        Codec.train(many, **small, log=tmp_path / "many.jsonl")
    assert [r["augment"] for r in rounds(tmp_path / "many.jsonl")] == [0, 0]

    off = FEW | {"training": FEW["training"] | {"augment": 0.0}, "epochs": 1}
    Codec.train(few, **off, log=tmp_path / "off.jsonl")
    assert "augment" not in rounds(tmp_path / "off.jsonl")[0]


def test_a_run_with_differences_resumes_exactly(few: np.ndarray, tmp_path: Path) -> None:
    """Interrupted within a round: the share is that of the round before, neighbours are found again."""
    checkpoint = tmp_path / "training.h5"
    calls = iter(range(1000))
    with pytest.raises(Interrupted):  # asked 12 times before the first batch, and there are two in a round
        Codec.train(few, **FEW, checkpoint=checkpoint, stop=lambda: next(calls) >= 12 + 21)
    _, _, position = load_checkpoint(checkpoint)
    assert position["augment"] > 0.1 and position["batches"] % 2
    assert same(Codec.train(few, **FEW, checkpoint=checkpoint, resume=True), Codec.train(few, **FEW))
