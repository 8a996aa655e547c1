"""Training product models and models of low rank on real vectors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_models import same

from qinco_core.api import Codec
from qinco_core.codec.network import Step
from qinco_core.codec.precision import plan
from qinco_core.codec.product import ProductNetwork
from qinco_core.errors import LineageError, OutputExistsError, UsageError, VectorFileError
from qinco_core.optional import import_faiss
from qinco_core.store import load_checkpoint
from qinco_core.training import groups
from qinco_core.training.data import check_training
from qinco_core.training.forecast import forecast
from qinco_core.training.groups import group_vectors, learn_rotation
from qinco_core.training.recipes import model_and_search, recipe
from qinco_core.training.state import forget
from qinco_core.training.trainer import Interrupted
from qinco_core.vectors import VectorFile, open_vectors, write_vectors

TINY: dict[str, Any] = {"M": 4, "K": 16, "E": 16, "H": 32, "A": 4, "B": 4}
GROUPS: dict[str, Any] = TINY | {"groups": 2}
SHORT: dict[str, Any] = {"epoch_size": 1536, "encode_batch": 512, "batch": 256, "val": 500, "kmeans_iterations": 3}
# a group's run asks whether to stop at each iteration of its k-means, then before each batch
KMEANS, BATCHES = 6, 9


def run(vectors: Any, changes: dict[str, Any] = GROUPS, **options: Any) -> Codec:
    options = {"preset_name": "qinco2-XS", "epochs": 3, "threads": 1} | options
    options["training"] = SHORT | options.get("training", {})
    return Codec.train(vectors, changes=changes, **options)


@pytest.fixture(scope="module")
def learn(sift_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learn") / "learn.bvecs"
    with open_vectors(sift_learn, limit=4000) as file:
        write_vectors(path, file.read(0, 4000))
    return path


@pytest.fixture(scope="module")
def undisturbed(learn: Path) -> Codec:
    return run(learn)


def stop_after(calls: int) -> Any:
    asked = iter(range(10_000))
    return lambda: next(asked) >= calls


def prefix_errors(codec: Codec, v: np.ndarray) -> list[float]:
    codes = codec.encode(v)
    errors = [np.square(codec.decode(codes, steps=m) - v).sum(1).mean() for m in range(1, codec.config.M + 1)]
    return [float(error) for error in errors]


@pytest.mark.parametrize(
    ("preset", "opq"), [("qinco2-XS", False), ("qinco2-XS", True), ("qinco1", True)], ids=lambda value: str(value)
)
def test_a_product_learns(learn: Path, preset: str, opq: bool) -> None:
    """QINCo1's normalisation, by the range of the data, has zero far from all of it."""
    changes = GROUPS | {"opq": opq, "L": 1} | ({"A": 0, "B": 1, "E": 64} if preset == "qinco1" else {})
    codec = run(learn, changes, preset_name=preset, epochs=6)
    with open_vectors(learn) as file:
        v = file.read(3500, 4000).astype(np.float32)
        mean = file.read(0, 3500).astype(np.float32).mean(0)
    spread = float(np.square(v - mean).sum(1).mean())
    errors = prefix_errors(codec, v)
    assert all(after < 0.95 * before for before, after in zip([spread, *errors[:-1]], errors, strict=True))
    assert codec.training["val_mse"] == pytest.approx(errors[-1], rel=0.05)
    groups = codec.training["groups"]
    assert codec.training["val_mse"] == pytest.approx(sum(figures["val_mse"] for figures in groups))
    assert len(groups) == 2 and codec.training["samples"] == groups[0]["samples"] == 6 * 1536
    network = codec.network
    assert isinstance(network, ProductNetwork)
    assert np.square(network.mean.numpy() - mean).sum() < 0.05 * spread  # what stands for no symbol
    if opq:
        assert network.rotation is not None
        torch.testing.assert_close(network.rotation @ network.rotation.T, torch.eye(128), atol=1e-5, rtol=0)
    else:
        assert network.rotation is None


@pytest.mark.parametrize(("preset", "changes"), [("qinco2-XS", TINY), ("qinco1-LR", {"M": 3, "K": 16, "L": 1, "H": 8})])
def test_a_model_of_low_rank_learns(learn: Path, preset: str, changes: dict[str, Any]) -> None:
    changes = changes | {"rank": 8} if preset == "qinco2-XS" else changes
    codec = run(learn, changes, preset_name=preset, epochs=6)
    assert codec.config.rank == 8
    with open_vectors(learn) as file:
        v = file.read(3500, 4000).astype(np.float32)
    errors = prefix_errors(codec, v)
    assert all(after < 0.95 * before for before, after in itertools.pairwise(errors))
    # what the factors learned is used
    for step in codec.network.steps:  # type: ignore[union-attr]
        assert isinstance(step, Step) and step.w_cat_out is not None
        assert step.w_cat_out.abs().max() > 1e-3  # under QINCo2 rules it starts at zero
        step.w_cat_out.zero_()
    without = Codec(codec.network, codec.search, plan=codec.plan)
    assert prefix_errors(without, v)[-1] > errors[-1]


@pytest.mark.parametrize(
    "calls",
    [2, KMEANS + 4, KMEANS + BATCHES + 3, KMEANS + BATCHES + KMEANS + 5],
    ids=["initialisation", "training", "initialisation of the next", "training of the next"],
)
def test_an_interrupted_product_resumes_exactly(learn: Path, tmp_path: Path, undisturbed: Codec, calls: int) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run(learn, checkpoint=checkpoint, stop=stop_after(calls))
    _, _, state = load_checkpoint(checkpoint)
    assert len(state["groups"]) == (calls > KMEANS + BATCHES)
    with pytest.raises(OutputExistsError, match="--resume"):
        run(learn, checkpoint=checkpoint)
    with pytest.raises(LineageError, match="model groups was 2 and is None"):
        run(learn, TINY, checkpoint=checkpoint, resume=True)
    resumed = run(learn, checkpoint=checkpoint, resume=True)
    assert same(resumed, undisturbed)
    assert [path.name for path in tmp_path.glob("*.h5")] == ["training.h5"]  # until the model is safe
    resumed.save(tmp_path / "model.h5")
    assert [path.name for path in tmp_path.glob("*.h5")] == ["model.h5"]
    again = Codec.load(tmp_path / "model.h5", threads=1)
    assert same(again, undisturbed) and again.config == undisturbed.config


def test_the_rotation_is_kept(learn: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):
        run(learn, GROUPS | {"opq": True}, checkpoint=checkpoint, stop=stop_after(KMEANS + 4))
    _, arrays, _ = load_checkpoint(checkpoint)
    codec = run(learn, GROUPS | {"opq": True}, checkpoint=checkpoint, resume=True)
    assert np.array_equal(codec.network.to_arrays()["rotation"], arrays["rotation"])


def test_starting_over_leaves_nothing_of_the_run_before(learn: Path, tmp_path: Path, undisturbed: Codec) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):
        run(learn, checkpoint=checkpoint, stop=stop_after(2 * KMEANS + BATCHES + 5), training={"seed": 7})
    assert (tmp_path / "training.group1.h5").exists()
    with pytest.raises(Interrupted):
        run(learn, checkpoint=checkpoint, stop=stop_after(KMEANS + 5), force=True)
    assert not (tmp_path / "training.group1.h5").exists()
    assert same(run(learn, checkpoint=checkpoint, resume=True), undisturbed)


def test_files_of_a_like_name_are_left_alone(tmp_path: Path) -> None:
    ours, theirs = (
        ["m.h5", "m.group0.h5", "m.group12.h5"],
        ["m.groups.h5", "m.group0x.h5", "m.group0.txt", "am.group0.h5"],
    )
    for name in ours + theirs:
        (tmp_path / name).touch()
    forget(tmp_path / "m.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_nothing_is_left_of_groups_that_are_no_more(learn: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(
            learn,
            GROUPS | {"groups": 4},
            checkpoint=tmp_path / "m.h5",
            stop=stop_after(2 * (KMEANS // 2 + BATCHES) + KMEANS),
        )
    assert list(tmp_path.glob("m.group*.h5"))
    run(learn, TINY, checkpoint=tmp_path / "m.h5", force=True).save(tmp_path / "model.h5")
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["model.h5"]


@pytest.mark.parametrize(
    ("place", "value", "said"), [(3, np.nan, "row 3"), (3990, np.inf, "row 3990"), (None, 7, "all entries")]
)
def test_what_is_wrong_with_a_late_group_is_said_at_once(
    place: int | None, value: float, said: str, learn: Path, tmp_path: Path
) -> None:
    with open_vectors(learn) as file:
        v = file.read(0, 4000).astype(np.float32)
    v[slice(None) if place is None else place, 64:] = value
    np.save(tmp_path / "v.npy", v)
    with pytest.raises((VectorFileError, UsageError), match=said):
        run(tmp_path / "v.npy", checkpoint=tmp_path / "m.h5", log=tmp_path / "log" / "l.jsonl")
    assert not list(tmp_path.glob("m*.h5"))


def test_a_rotation_wants_as_many_vectors_as_dimensions(learn: Path) -> None:
    with open_vectors(learn, limit=127) as few, pytest.raises(UsageError, match=r"D = 128 dimensions .* has 127"):
        learn_rotation(few, 2, 0, plan("cpu", "float32", 1))
    with open_vectors(learn, limit=128) as enough:
        assert learn_rotation(enough, 2, 0, plan("cpu", "float32", 1)).shape == (128, 128)


def test_the_log_says_which_group(learn: Path, tmp_path: Path) -> None:
    run(learn, epochs=1, log=tmp_path / "log.jsonl", tensorboard=tmp_path / "tb")
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [(event["event"], event.get("group")) for event in events]
    one = ["start", "round", "end"]
    assert found == [*((name, 0) for name in one), *((name, 1) for name in one), ("end", None)]


def test_a_time_budget_is_shared_out(learn: Path) -> None:
    codec = run(learn, epochs=None, seconds=1.0)
    assert all(0.5 <= figures["seconds"] < 5 for figures in codec.training["groups"])
    assert codec.training["config"]["seconds"] == 1.0
    assert codec.training["seconds"] == sum(figures["seconds"] for figures in codec.training["groups"])


def test_a_forecast_of_a_product(learn: Path) -> None:
    with open_vectors(learn) as file:
        options: dict[str, Any] = {"preset_name": "qinco2-XS", "seconds": None, "epochs": 3, "training": SHORT}
        options |= {"device": "cpu", "precision": "float32", "threads": 1}
        found = forecast(file, changes=GROUPS | {"opq": True}, **options)
        with pytest.raises(UsageError, match="do not divide"):
            forecast(file, changes=GROUPS | {"groups": 3}, **options)
    with open_vectors(learn, limit=120) as few, pytest.raises(UsageError, match="OPQ learns a rotation of D = 128"):
        forecast(few, changes=GROUPS | {"opq": True}, **options | {"training": SHORT | {"val": 20}})
    assert found.code_bytes == 2 and found.samples == 3 * 1536
    # per group: the first codebook, then one step with its two
    step = 2 * 16 * 64 + 16 * (16 + 64) + 16 + 2 * 16 * 32 + 2 * 16 * 64
    assert found.parameters == 2 * (16 * 64 + step) + 128 * 128


def product_quantized(x: np.ndarray) -> float:
    """The error of a product quantizer of four groups."""
    pq = import_faiss().ProductQuantizer(128, 4, 4)
    pq.train(x)
    return float(np.square(pq.decode(pq.compute_codes(x)) - x).sum(1).mean())


@pytest.mark.parametrize("rotated", [False, True])
def test_a_group_is_a_view_of_the_vectors(sift_learn: Path, rotated: bool) -> None:
    with open_vectors(sift_learn, skip=100, limit=900) as file:
        rotation = learn_rotation(file, 4, 0, plan("cpu", threads=1)) if rotated else None
        seen = group_vectors(file, 1, 4, rotation)
        v = file.read(0, 900)
        wanted = v[:, 32:64] if rotation is None else v.astype(np.float32) @ rotation[:, 32:64]
        assert seen.shape == (900, 32) and seen.dtype == (np.float32 if rotated else np.uint8)
        rows = np.array([7, 3, 3, 899])
        for found, expected in ((seen.read(10, 20), wanted[10:20]), (seen.take(rows), wanted[rows])):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
        stamps = {view.stamp for view in (seen, group_vectors(file, 2, 4, rotation), group_vectors(file, 1, 4, None))}
        assert len(stamps) == (3 if rotated else 2)
    if rotation is not None:  # which makes groups easier to quantize
        turned = v.astype(np.float32) @ rotation
        assert product_quantized(turned) < product_quantized(v.astype(np.float32))


def test_a_group_is_read_in_pieces(sift_learn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, most = VectorFile.read, []
    with open_vectors(sift_learn, limit=900) as file:
        monkeypatch.setattr(groups, "_READ_BYTES", 128 * 100)
        monkeypatch.setattr(VectorFile, "read", lambda self, a, b: (most.append(b - a), read(self, a, b))[1])
        seen = group_vectors(file, 3, 4, None).read(5, 700)
        assert max(most[1:]) == 100  # the first call is the group's own
        np.testing.assert_array_equal(seen, read(file, 5, 700)[:, 96:])


def test_a_check_reads_the_file_once(learn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, rows = VectorFile.read, []
    model, search = model_and_search("qinco2-XS", 128, GROUPS | {"groups": 1})
    monkeypatch.setattr(VectorFile, "read", lambda self, a, b: (rows.append(b - a), read(self, a, b))[1])
    with open_vectors(learn) as file:
        check_training(file, model, recipe(model, search, len(file), epochs=1))
        assert sum(rows) == len(file)


def test_a_broken_vector_is_named_by_its_number_in_the_file(learn: Path, tmp_path: Path) -> None:
    with open_vectors(learn) as file:
        v = file.read(0, 4000).astype(np.float32)
    v[3990, 5] = np.nan
    np.save(tmp_path / "nan.npy", v)
    with pytest.raises(VectorFileError, match=r"nan\.npy.* row 3990"):
        run(tmp_path / "nan.npy")
