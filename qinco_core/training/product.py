"""Training a product model: its groups one after the other, each as a run of its own.

The model's checkpoint holds the rotation and the groups that are finished. The group in training has a checkpoint
beside it, which is removed when the group is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.codec.network import Network
from qinco_core.codec.precision import Plan
from qinco_core.codec.product import ProductNetwork
from qinco_core.config import EncodeConfig, ModelConfig, TrainConfig, validation_size
from qinco_core.distributed import current
from qinco_core.progress import Progress, Silent
from qinco_core.store import save_checkpoint
from qinco_core.training.data import check_training
from qinco_core.training.groups import Rotation, group_vectors, learn_rotation
from qinco_core.training.log import TrainingLog
from qinco_core.training.state import forget, group_file, load_run, run_identity
from qinco_core.training.trainer import Trained, train
from qinco_core.vectors import VectorFile


def train_product(
    vectors: VectorFile,
    model: ModelConfig,
    search: EncodeConfig,
    config: TrainConfig,
    *,
    plan: Plan,
    checkpoint: Path,
    log: TrainingLog,
    resume: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a product model on a file of vectors; a time budget is shared out evenly among its groups.

    The arguments and errors are those of `trainer.train`. Figures are of all groups together: errors are sums, for the
    groups are orthogonal; `samples` is what each group has seen at least; `groups` holds the figures of each.
    """
    progress = progress or Silent()
    run = _Groups(checkpoint, run_identity(vectors.stamp, model, search, config))
    if resume:
        run.restore(model.part)
    else:
        learned = _rotation(vectors, model, config, plan, progress)
        for g in range(model.groups):
            check_training(group_vectors(vectors, g, model.groups, learned), model.part, config)
        run.start(learned)
    each = config if config.seconds is None else config.model_copy(update={"seconds": config.seconds / model.groups})
    for g in range(len(run.parts), model.groups):
        progress.note(f"group {g + 1} of {model.groups}")
        log.group = g
        file = group_file(checkpoint, g)
        found = train(
            group_vectors(vectors, g, model.groups, run.rotation),
            model.part,
            search,
            each,
            plan=plan,
            checkpoint=file,
            log=log,
            resume=resume and file.exists(),
            progress=progress,
            stop=stop,
        )
        run.add(found)
    log.group = None
    figures = _together(run.figures)
    log.write("end", **figures)
    rotation = None if run.rotation is None else torch.from_numpy(run.rotation)
    return Trained(ProductNetwork.of(model, run.parts, rotation), figures)


def _rotation(
    vectors: VectorFile, model: ModelConfig, config: TrainConfig, plan: Plan, progress: Progress
) -> Rotation | None:
    if not model.opq:
        return None
    progress.note(f"learning a rotation of the {model.D} dimensions into {model.groups} groups (OPQ)")
    learn = vectors.section(0, len(vectors) - validation_size(config.val, len(vectors)))
    rotation = learn_rotation(learn, model.groups, config.seed, plan)
    current().copy(torch.from_numpy(rotation))
    return rotation


class _Groups:
    """The rotation and the finished groups of a run, on disk and in memory."""

    def __init__(self, checkpoint: Path, identity: dict[str, Any]) -> None:
        self.rotation: Rotation | None = None
        self.parts: list[Network] = []
        self.figures: list[dict[str, Any]] = []
        self._checkpoint, self._identity = checkpoint, identity

    def start(self, rotation: Rotation | None) -> None:
        """Begin a run, which replaces any other."""
        current().wait()
        if current().first:
            forget(self._checkpoint)
        self.rotation = rotation
        self._save()

    def restore(self, part: ModelConfig) -> None:
        """Go on with the run of the checkpoint.

        Raises:
            LineageError: it is another run.
        """
        arrays, state = load_run(self._checkpoint, self._identity)
        self.rotation = arrays.get("rotation")
        self.figures = list(state["groups"])
        for g in range(len(self.figures)):
            prefix = f"parts.{g}."
            tensors = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            self.parts.append(Network.from_arrays(part, tensors))
            self._forget(g)

    def add(self, trained: Trained) -> None:
        """Keep the next group, which is finished."""
        assert isinstance(trained.network, Network)
        self.parts.append(trained.network)
        self.figures.append(trained.figures)
        self._save()
        self._forget(len(self.parts) - 1)

    def _forget(self, g: int) -> None:
        if current().first:
            group_file(self._checkpoint, g).unlink(missing_ok=True)

    def _save(self) -> None:
        if not current().first:
            return
        arrays: dict[str, NDArray[np.float32]] = {} if self.rotation is None else {"rotation": self.rotation}
        for g, part in enumerate(self.parts):
            arrays |= {f"parts.{g}.{name}": array for name, array in part.to_arrays().items()}
        save_checkpoint(self._checkpoint, config=self._identity, arrays=arrays, state={"groups": self.figures})


def _together(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a model from those of its groups."""
    same = {name: groups[0][name] for name in ("val_vectors", "val_encoder", "train_vectors", "plan")}
    sums = {name: sum(figures[name] for figures in groups) for name in ("val_mse", "best_val_mse", "steps", "seconds")}
    least = {name: min(figures[name] for figures in groups) for name in ("val_rows", "samples")}
    own = [{name: value for name, value in figures.items() if name not in same} for figures in groups]
    return same | sums | least | {"groups": own}
