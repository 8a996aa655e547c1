"""A training job: from a file of vectors and a preset to a model, of one network or of one for each group."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinco_core.codec.precision import Plan, plan
from qinco_core.codec.product import AnyNetwork
from qinco_core.config import EncodeConfig
from qinco_core.distributed import current
from qinco_core.errors import OutputExistsError
from qinco_core.progress import Progress
from qinco_core.store import Parent
from qinco_core.training.coarse import Centroids, coarse_codebook
from qinco_core.training.log import TrainingLog
from qinco_core.training.product import train_product
from qinco_core.training.recipes import model_and_search, recipe
from qinco_core.training.state import device_of
from qinco_core.training.trainer import train
from qinco_core.vectors import VectorFile, write_vectors


@dataclass(frozen=True)
class Finished:
    """What a job leaves: all that a `Codec` is made of."""

    network: AnyNetwork
    search: EncodeConfig
    plan: Plan
    training: dict[str, Any]
    parents: tuple[Parent, ...]


def train_model(
    vectors: VectorFile,
    checkpoint: Path,
    *,
    preset_name: str,
    seconds: float | None,
    epochs: int | None,
    changes: dict[str, Any] | None,
    training: dict[str, Any] | None,
    ivf: Centroids | None,
    device: str,
    precision: str,
    threads: int | None,
    log: str | Path | None,
    tensorboard: str | Path | None,
    resume: bool,
    force: bool,
    progress: Progress | None,
    stop: Callable[[], bool],
) -> Finished:
    """Train a model; arguments and errors are those of `Codec.train`, which calls this."""
    coarse = None if ivf is None else coarse_codebook(ivf, vectors.dim)
    model, search = model_and_search(preset_name, vectors.dim, changes or {}, coarse.ivf_K if coarse else 0)
    chosen = plan(device, precision, threads)
    began_on = device_of(checkpoint) if resume else chosen.device.type
    budget: dict[str, Any] = {"seconds": seconds, "epochs": epochs}
    config = recipe(model, search, len(vectors), **budget, changes=training or {}, device=began_on)
    if checkpoint.exists() and not (resume or force):
        raise OutputExistsError(
            f"{checkpoint} is left of an interrupted run; go on with it by --resume, or start over with --force"
        )
    current().wait()  # until all have looked: the first process is about to write
    lines = Path(log) if log else checkpoint.with_name("training.jsonl")
    with TrainingLog(lines, Path(tensorboard) if tensorboard else None, append=resume) as writer:
        sizes = (vectors, model, search, config)
        how: dict[str, Any] = {"plan": chosen, "checkpoint": checkpoint, "log": writer, "resume": resume}
        how |= {"progress": progress, "stop": stop}
        if model.groups > 1:
            result = train_product(*sizes, **how)
        else:
            result = train(*sizes, **how, centroids_KD=coarse.centroids_KD if coarse else None)
    figures = {"preset": preset_name, "config": config.model_dump(), **result.figures}
    return Finished(result.network, search, chosen, figures, (coarse.parent,) if coarse else ())


def array_file(vectors: NDArray[Any], path: Path) -> Path:
    """An array as a file whose identity is its content, so that a run on the same array can be resumed."""
    write_vectors(path, vectors)
    content = hashlib.blake2b(np.ascontiguousarray(vectors).data, digest_size=7).digest()
    stamp = int.from_bytes(content, "big")
    os.utime(path, ns=(stamp, stamp))
    return path
