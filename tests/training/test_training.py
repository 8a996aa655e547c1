"""Training on real vectors: it learns, repeats itself, resumes exactly, and gives up when it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_models import same

from qinco_core.api import Codec
from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.precision import plan
from qinco_core.config import EncodeConfig, ModelConfig, TrainConfig
from qinco_core.errors import (
    DimensionError,
    InputNotFoundError,
    LineageError,
    OutputExistsError,
    TrainingError,
    UsageError,
    VectorFileError,
)
from qinco_core.evaluation.baselines import run_baseline
from qinco_core.progress import Silent
from qinco_core.store import Parent, load_centroids, load_checkpoint, save_centroids, save_checkpoint
from qinco_core.training import trainer
from qinco_core.training.codewords import replace_unused
from qinco_core.training.data import TrainingData
from qinco_core.training.recipes import recipe
from qinco_core.training.trainer import Interrupted
from qinco_core.vectors import open_vectors, write_vectors

TINY: dict[str, Any] = {"M": 4, "K": 16, "E": 16, "H": 32, "A": 4, "B": 4}
SHORT: dict[str, Any] = {"epoch_size": 1536, "encode_batch": 512, "batch": 256, "val": 500, "kmeans_iterations": 3}


def run(vectors: Any, **options: Any) -> Codec:
    options = {"preset_name": "qinco2-XS", "changes": TINY, "epochs": 3, "threads": 2} | options
    options["training"] = SHORT | options.get("training", {})
    return Codec.train(vectors, **options)


@pytest.fixture(scope="module")
def learn(sift_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learn") / "learn.bvecs"
    with open_vectors(sift_learn, limit=4000) as file:
        write_vectors(path, file.read(0, 4000))
    return path


def stop_after(batches: int) -> Any:
    """Asked 12 times during the initialisation (4 steps of 3 iterations), then before every batch."""
    calls = iter(range(10_000))
    return lambda: next(calls) >= batches


def test_it_beats_residual_quantization_of_the_same_size(trained: Codec, sift_learn: Path) -> None:
    with open_vectors(sift_learn) as file:
        xt = file.read(0, 8_000).astype(np.float32)
        xb = file.read(30_000, 32_000).astype(np.float32)
    ours = np.square(trained.decode(trained.encode(xb)) - xb).sum(1).mean()
    # PQ of 6 bytes: as many bits as 8 symbols of 64 codewords; RQ of 6 bytes has 256 codewords a step
    assert ours < 0.95 * run_baseline("RQ", xt, xb, trained.config.code_bytes, seed=0).mse


def test_the_same_seed_gives_the_same_model(learn: Path) -> None:
    first, again, other = run(learn), run(learn), run(learn, training={"seed": 1})
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("batches", [1, 4, 7])
def test_an_interrupted_run_resumes_exactly(learn: Path, tmp_path: Path, batches: int) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):
        run(learn, checkpoint=checkpoint, stop=stop_after(12 + batches))
    config, _, position = load_checkpoint(checkpoint)
    assert position["batches"] < 9 and config["model"]["M"] == 4
    resumed = run(learn, checkpoint=checkpoint, resume=True)
    assert same(resumed, run(learn))
    assert checkpoint.exists()  # until the model is safe
    resumed.save(tmp_path / "model.h5")
    assert not checkpoint.exists()


def test_resuming_another_run_is_refused(learn: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):
        run(learn, checkpoint=checkpoint, stop=stop_after(13))
    with pytest.raises(LineageError, match="training seed was 0 and is 5"):
        run(learn, checkpoint=checkpoint, resume=True, training={"seed": 5})
    with open_vectors(learn, limit=3000) as file, pytest.raises(LineageError, match=r"another run .vectors was"):
        run(file, checkpoint=checkpoint, resume=True)


def test_a_checkpoint_older_than_some_fields_goes_on(learn: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):
        run(learn, checkpoint=checkpoint, stop=stop_after(14))
    config, arrays, position = load_checkpoint(checkpoint)
    old = {name: value for name, value in position.items() if name not in ("first_steps", "first_seconds")}
    assert len(old) == len(position) - 2
    del config["training"]["device"], config["training"]["augment"], old["augment"]
    checkpoint.unlink()
    save_checkpoint(checkpoint, config=config, arrays=arrays, state=old)
    assert same(run(learn, checkpoint=checkpoint, resume=True), run(learn))


def test_a_run_that_began_on_a_gpu_keeps_its_settings(learn: Path, tmp_path: Path) -> None:
    """On a machine without one too, where a run that begins has others."""
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):
        run(learn, checkpoint=checkpoint, device="cpu", stop=stop_after(14))
    config, arrays, position = load_checkpoint(checkpoint)
    assert (config["training"]["device"], config["training"]["late_B"]) == ("cpu", 2)
    model, search = ModelConfig(**config["model"]), EncodeConfig(**config["search"])
    config["training"] = recipe(model, search, 4000, epochs=3, changes=SHORT, device="cuda").model_dump()
    save_checkpoint(checkpoint, config=config, arrays=arrays, state=position)
    kept = run(learn, checkpoint=checkpoint, device="cpu", resume=True).training["config"]
    assert (kept["device"], kept["late_B"]) == ("cuda", 4)


def test_a_run_on_an_array_resumes_and_is_not_overwritten(learn: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.h5"
    with open_vectors(learn) as file:
        v = file.read(0, 4000)
    with pytest.raises(Interrupted):
        run(v, checkpoint=checkpoint, stop=stop_after(14))
    with pytest.raises(OutputExistsError, match="--resume"):
        run(v, checkpoint=checkpoint)
    assert same(run(v.copy(), checkpoint=checkpoint, resume=True), run(v))
    run(v, checkpoint=checkpoint, epochs=1, force=True)


def test_nan_among_the_validation_vectors_is_found_before_training(learn: Path, tmp_path: Path) -> None:
    with open_vectors(learn) as file:
        v = file.read(0, 4000).astype(np.float32)
    v[3990, 5] = np.nan
    log = tmp_path / "log.jsonl"
    log.write_text("an older run's\n")
    with pytest.raises(VectorFileError, match="3990"):
        run(write(tmp_path / "nan.fvecs", v), log=log)
    assert log.read_text() == "an older run's\n"


def write(path: Path, v: np.ndarray) -> Path:
    """An fvecs file as it may come from elsewhere: our own writer refuses NaN."""
    rows = np.empty((len(v), v.shape[1] + 1), np.float32)
    rows[:, 0] = np.array(v.shape[1], np.int32).view(np.float32)
    rows[:, 1:] = v
    rows.tofile(path)
    return path


def test_log_and_tensorboard(learn: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    class Listener:
        def begin(self, title: str, total: float | None, unit: str) -> None:
            lines.append(f"{title} {total} {unit}")

        def advance(self, amount: float, **figures: float) -> None:
            assert amount >= 0

        def note(self, text: str) -> None:
            lines.append(text)

        def end(self) -> None:
            pass

    log = tmp_path / "run.jsonl"
    codec = run(learn, log=log, tensorboard=tmp_path / "tb", progress=Listener())
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "round", "round", "round", "end"]
    assert events[1]["samples"] == 1536 and events[1]["val_mse"] > 0 and events[1]["lr"] > 0
    assert events[-1]["val_mse"] == codec.training["val_mse"]
    assert list((tmp_path / "tb").glob("events*"))
    assert "training 4608 vectors" in lines and sum("validation MSE" in line for line in lines) == 3


def test_time_budget(learn: Path) -> None:
    codec = run(learn, epochs=None, seconds=2.0)
    assert 2.0 <= codec.training["seconds"] < 20
    assert codec.training["samples"] > 0


def test_unused_codewords_are_looked_for_often_but_not_at_the_end(learn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty vectors a codeword decide; in the last fifth of the run a new codeword would not be trained."""
    counts: list[int] = []

    def replace(network: Any, optimizer: Any, usage: torch.Tensor, generator: Any) -> None:
        counts.append(int(usage[0].sum()))
        replace_unused(network, optimizer, usage, generator)

    monkeypatch.setattr(trainer, "replace_unused", replace)
    run(learn, changes=TINY | {"K": 32}, epochs=10)
    assert 1 <= len(counts) <= 0.8 * 10 * 1536 / 1600
    assert set(counts) <= {2048}  # whole batches of 512 that are 1,600 or more


def test_accumulated_batches_give_the_gradient_of_the_whole(learn: Path) -> None:
    """Two halves of 256 added up are one batch of 512, but for rounding."""
    whole = run(learn, epochs=1, precision="float32", threads=1, training={"batch": 512, "accumulate": 1})
    halves = run(learn, epochs=1, precision="float32", threads=1, training={"batch": 256, "accumulate": 2})
    ours, theirs = whole.network.to_arrays(), halves.network.to_arrays()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.05, atol=2e-3, err_msg=name)


def test_the_published_recipe(learn: Path) -> None:
    codec = run(learn, epochs=1, training={"recipe": "paper"})
    config = codec.training["config"]
    assert (config["passes"], config["A"], config["B"], config["lr"]) == (1, 4, 4, None)
    assert codec.training["peak_lr"] == 8e-4


def test_qinco1_trains_and_encodes(learn: Path) -> None:
    codec = run(
        learn,
        preset_name="qinco1",
        epochs=4,
        changes={"M": 3, "K": 16, "L": 1, "H": 32},
        training={"recipe": "paper", "lr": 1e-3},
    )
    assert not codec.config.preselect and codec.config.E == 128
    with open_vectors(learn) as file:
        v = file.read(0, 500)
        low, high = float(file.read(0, 3500).min()), float(file.read(0, 3500).max())
    assert float(codec.network.mean[0]) == low + 1
    assert float(codec.network.std) == (high - low) / 2
    errors = [np.square(codec.decode(codec.encode(v), steps=m) - v).sum(1).mean() for m in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_a_rate_far_too_high_is_noticed(learn: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged after .* try --lr"):
        run(learn, epochs=40, training={"lr": 30.0, "clip": 0.0, "warmup": 0.0})


@pytest.fixture(scope="module")
def centroids(learn: Path) -> np.ndarray:
    with open_vectors(learn) as file:
        return file.read(0, 20).astype(np.float32)


def test_ivf_models_train_from_given_centroids(learn: Path, centroids: np.ndarray, tmp_path: Path) -> None:
    ours = run(learn, ivf=centroids)
    save_centroids(tmp_path / "c.h5", centroids, training={})
    np.save(tmp_path / "c.npy", centroids)
    assert all(same(ours, run(learn, ivf=tmp_path / name)) for name in ("c.h5", "c.npy"))
    np.testing.assert_allclose(ours.centroids, centroids, atol=1e-2)

    header = ours.save(tmp_path / "model.h5")
    parent = Parent("centroids", load_centroids(tmp_path / "c.h5").header.fingerprint)
    assert header.parents == (parent,)
    loaded = Codec.load(tmp_path / "model.h5")
    assert loaded.parents == (parent,)

    with open_vectors(learn) as file:
        v = file.read(3500, 4000).astype(np.float32)
    codes = loaded.encode(v)
    assert codes.shape == (500, 5) and codes.dtype == np.int32
    nearest = np.square(v[:, None] - centroids).sum(-1).argmin(1)
    assert (codes[:, 0] == nearest).mean() > 0.99
    error = np.square(loaded.decode(codes) - v).sum(1).mean()
    assert error < 0.8 * np.square(centroids[nearest] - v).sum(1).mean()
    assert ours.training["val_mse"] == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize("batches", [1, 5])
def test_an_interrupted_ivf_run_resumes_exactly(
    learn: Path, centroids: np.ndarray, tmp_path: Path, batches: int
) -> None:
    checkpoint = tmp_path / "training.h5"
    with pytest.raises(Interrupted):  # asked once more for every 8,192 vectors that get their lists
        run(learn, ivf=centroids, checkpoint=checkpoint, stop=stop_after(2 + 12 + batches))
    with pytest.raises(LineageError, match="centroids was"):
        run(learn, ivf=centroids + 1, checkpoint=checkpoint, resume=True)
    with pytest.raises(LineageError, match="model ivf_K was 20 and is 0"):
        run(learn, checkpoint=checkpoint, resume=True)
    assert same(run(learn, ivf=centroids, checkpoint=checkpoint, resume=True), run(learn, ivf=centroids))


def test_list_numbers_are_found_once_and_follow_their_vectors(learn: Path, centroids: np.ndarray) -> None:
    network = Network(ModelConfig(D=128, M=2, K=16, L=1, E=16, H=16, ivf_K=20)).requires_grad_(False)
    assert network.centroids is not None
    network.centroids.copy_(torch.from_numpy(centroids))
    with open_vectors(learn) as file:
        data = TrainingData(file, network.config, TrainConfig(samples=1, encode_batch=300, val=400))
        engine = Engine(network, plan("cpu", "float32", 1))
        data.assign(engine, Silent(), lambda: False)
        v, lists = data.draw(3)
        assert lists is not None and torch.equal(lists, engine.assign(v))
        x, sampled = data.sample(network, torch.Generator())
        assert sampled is not None and torch.equal(sampled, engine.assign(x))
        assert data.val_lists is not None
        assert torch.equal(data.val_lists.long(), engine.assign(torch.from_numpy(file.read(3600, 4000))))
        with pytest.raises(KeyboardInterrupt):
            data.assign(engine, Silent(), lambda: True)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (np.zeros((5, 96), np.float32), DimensionError, r"shape \(5, 96\), not \[ivf_K, 128\]"),
        (np.zeros(128, np.float32), DimensionError, "shape"),
        (np.full((5, 128), np.nan, np.float32), UsageError, "NaN"),
        ("absent.h5", InputNotFoundError, "absent.h5 does not exist"),
    ],
)
def test_centroids_that_cannot_be(learn: Path, bad: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(learn, ivf=bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": {"K": 12}}, "K = 12 is not a power of two"),
        ({"changes": {"A": 64, "K": 16}}, "use A = 16 or less"),
        ({"changes": {"M": 0}}, "M: "),
        ({"epochs": 2, "seconds": 5.0}, "one budget"),
        ({"training": {"recipe": "slow"}}, "no recipe 'slow'"),
        ({"training": {"lr": -1.0}}, "lr: "),
        ({"training": {"val": 3999}}, "at least K"),
        ({"preset_name": "qinco3"}, "no preset 'qinco3'"),
    ],
)
def test_parameters_that_cannot_be(learn: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(learn, **options)


def test_fewer_vectors_than_codewords(learn: Path) -> None:
    with open_vectors(learn, limit=200) as file, pytest.raises(UsageError, match="give more vectors"):
        run(file, changes={"K": 256})


def test_constant_vectors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to learn"):
        run(np.full((3000, 8), 7, np.float32))


@pytest.mark.slow
def test_the_rate_suits_high_dimensions(sift_learn: Path) -> None:
    """Vectors of 768 dimensions, each six of SIFT, validated on six of others."""
    with open_vectors(sift_learn, limit=36_000) as file:
        v = file.read(0, 36_000).astype(np.float32)
    draw = np.random.default_rng(0)
    learned, others = draw.integers(35_000, size=(19_500, 6)), draw.integers(35_000, 36_000, size=(500, 6))
    _check_rate(v[np.concatenate([learned, others])].reshape(-1, 768), 8, samples=40_960, share=0.8)


@pytest.mark.slow
def test_the_rate_suits_long_codes(sift_learn: Path) -> None:
    """32 bytes of vectors of 384 dimensions, each three of SIFT."""
    with open_vectors(sift_learn, limit=18_000) as file:
        joined = file.read(0, 18_000).astype(np.float32).reshape(6000, 384)
    _check_rate(joined, 32, samples=8192, share=0.55)


def _check_rate(joined: np.ndarray, M: int, samples: int, share: float) -> None:
    """At the rate that is best for 8 bytes of SIFT training diverges; at its own its error is below that share."""
    options: dict[str, Any] = {"samples": samples, "val": 500, "kmeans_iterations": 2}
    how: dict[str, Any] = {"preset_name": "qinco2-S", "changes": {"M": M}, "training": options}
    with pytest.raises(TrainingError, match="diverged"):
        Codec.train(joined, **how | {"training": options | {"lr": 6.4e-3}})
    codec = Codec.train(joined, **how)
    assert codec.training["peak_lr"] == pytest.approx(3.2e-3)
    assert codec.training["val_mse"] < share * np.square(joined - joined.mean(0)).sum(1).mean()
