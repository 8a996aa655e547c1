"""What a training run would take, from its settings and one measured batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qinco_core.codec.precision import plan
from qinco_core.progress import Silent
from qinco_core.training.log import TrainingLog
from qinco_core.training.recipes import model_and_search, recipe
from qinco_core.training.trainer import Run
from qinco_core.vectors import VectorFile


@dataclass(frozen=True)
class Forecast:
    """Sizes in bytes, time in seconds of the training loop."""

    parameters: int
    model_bytes: int
    code_bytes: int
    memory_bytes: int
    samples: int
    seconds: float
    vectors_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def forecast(
    vectors: VectorFile,
    *,
    preset_name: str,
    seconds: float | None,
    epochs: int | None,
    changes: dict[str, Any],
    training: dict[str, Any],
    device: str,
    precision: str,
    threads: int | None,
) -> Forecast:
    """Estimate a run of `Codec.train` with the same arguments; nothing is kept.

    Raises:
        UsageError: what `Codec.train` would refuse.
    """
    model, search = model_and_search(preset_name, vectors.dim, changes)
    config = recipe(model, search, len(vectors), seconds=seconds, epochs=epochs, changes=training)
    chosen = plan(device, precision, threads)
    with TemporaryDirectory(prefix="qinco-") as folder, TrainingLog(Path(folder) / "log.jsonl") as log:
        run = Run(vectors, model, search, config, chosen, Path(folder) / "none.h5", log, Silent(), lambda: False)
        rate = run.speed()
    size = 4 * model.parameters
    sample = min(2 << 30, 4 * model.D * len(run.data))
    samples = config.samples or int(rate * (config.seconds or 0))
    return Forecast(
        parameters=model.parameters,
        model_bytes=size,
        code_bytes=model.code_bytes,
        memory_bytes=(500 << 20) + 6 * size + 2 * sample,
        samples=samples,
        seconds=config.seconds or samples / rate,
        vectors_per_second=rate,
    )
