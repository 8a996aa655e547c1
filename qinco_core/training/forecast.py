"""What a training run would take, from its settings and one measured batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qinco_core.codec.precision import plan
from qinco_core.progress import Silent
from qinco_core.store.lists import list_bits
from qinco_core.training.coarse import Centroids, coarse_codebook
from qinco_core.training.groups import check_rotation, group_vectors
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
    bytes_per_vector: float
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
    ivf: Centroids | None = None,
) -> Forecast:
    """Estimate a run of `Codec.train` with the same arguments; nothing is kept.

    Raises:
        UsageError: what `Codec.train` would refuse.
    """
    ivf_K = 0 if ivf is None else coarse_codebook(ivf, vectors.dim).ivf_K
    model, search = model_and_search(preset_name, vectors.dim, changes, ivf_K)
    chosen = plan(device, precision, threads)
    budget: dict[str, Any] = {"seconds": seconds, "epochs": epochs}
    config = recipe(model, search, len(vectors), **budget, changes=training, device=chosen.device.type)
    # groups are trained one after the other, and are alike
    n, part = model.groups, model.part
    seen = vectors if n == 1 else group_vectors(vectors, 0, n, None)
    with TemporaryDirectory(prefix="qinco-") as folder, TrainingLog(Path(folder) / "log.jsonl") as log:
        run = Run(seen, part, search, config, chosen, Path(folder) / "none.h5", log, Silent(), lambda: False)
        if model.opq:
            check_rotation(vectors.section(0, len(run.data)))
        rate = run.speed() / n
    size = 4 * (model.parameters + model.ivf_K * model.D)
    sample = min(2 << 30, 4 * part.D * len(run.data))
    samples = config.samples or int(rate * (config.seconds or 0))
    return Forecast(
        parameters=model.parameters,
        model_bytes=size,
        code_bytes=model.code_bytes,
        bytes_per_vector=model.code_bytes + list_bits(ivf_K) / 8,
        memory_bytes=(500 << 20) + 6 * size + 2 * sample,
        samples=samples,
        seconds=config.seconds or samples / rate,
        vectors_per_second=rate,
    )
