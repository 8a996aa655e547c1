"""Everything a training run is, at one moment, and how it goes to and from a checkpoint."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qinco_core.codec.network import Network
from qinco_core.config import EncodeConfig, ModelConfig, TrainConfig
from qinco_core.errors import LineageError
from qinco_core.store import load_checkpoint, save_checkpoint

Arrays = dict[str, NDArray[Any]]


@dataclass
class Position:
    """Where a run stands: work done, and what the schedule remembers.

    Attributes:
        batches, samples, steps: encoded batches, vectors in them, optimizer steps.
        seconds: time spent in the loop, over all its sessions.
        rounds: rounds that have ended.
        val_rows: vectors of a validation.
        peak: the learning rate the schedule scales; settled when warm-up ends.
        scale: the plateau schedule's factor.
        first_loss: of the first batches, which divergence is measured by.
        first_steps, first_seconds: of the first batch, which tells nothing of the speed.
        augment: share of the differences of neighbours that is added to vectors; settled by every validation.
        plan: device, precision and threads of the last session.
        best_mse, best_round: of the validation, in the units of the data; None before the first.
    """

    batches: int = 0
    samples: int = 0
    steps: int = 0
    seconds: float = 0.0
    rounds: int = 0
    val_rows: int = 0
    peak: float = 0.0
    scale: float = 1.0
    first_loss: float = 0.0
    first_steps: int = 0
    first_seconds: float = 0.0
    augment: float = 0.0
    plan: str = ""
    best_mse: float | None = None
    best_round: int = 0


@dataclass
class State:
    """A network in training with its optimizer, random state and best weights so far."""

    network: Network
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    usage: Tensor
    position: Position = field(default_factory=Position)
    best: Arrays = field(default_factory=dict)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def new_state(network: Network, config: TrainConfig) -> State:
    """The state of a run that has not started, around a network on its device."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    gpu = network.mean.device.type != "cpu"
    # a step that is recorded on a GPU reads its rate, and counts, in the GPU's memory
    lr = torch.zeros((), device=network.mean.device) if gpu else 0.0
    optimizer = kind(parameters, lr=lr, weight_decay=config.weight_decay, fused=True, capturable=gpu)
    usage = torch.zeros(network.config.M, network.config.K, dtype=torch.int64)
    return State(network, optimizer, torch.Generator().manual_seed(config.seed), usage)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give the next step this learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def group_file(checkpoint: Path, g: int) -> Path:
    """The checkpoint of group g of a product model in training, beside that of the model."""
    return checkpoint.with_name(f"{checkpoint.stem}.group{g}{checkpoint.suffix}")


def forget(checkpoint: Path) -> None:
    """Remove the checkpoint of a run that another replaces, with those of its groups."""
    of_group = re.compile(rf"{re.escape(checkpoint.stem)}\.group\d+{re.escape(checkpoint.suffix)}")
    for path in checkpoint.parent.glob("*.group*"):
        if of_group.fullmatch(path.name):
            path.unlink(missing_ok=True)
    checkpoint.unlink(missing_ok=True)


def save(state: State, path: Path, identity: dict[str, Any]) -> None:
    """Write the checkpoint; `identity` says what run this is, and is compared when it is resumed."""
    arrays: Arrays = {f"model.{name}": array for name, array in state.network.to_arrays().items()}
    arrays |= {f"best.{name}": array for name, array in state.best.items()}
    for i, parameter in enumerate(state.parameters):
        moments = state.optimizer.state.get(parameter, {})
        arrays |= {f"optimizer.{i}.{key}": value.cpu().numpy() for key, value in moments.items()}
    arrays["random"] = state.generator.get_state().numpy()
    arrays["usage"] = state.usage.numpy()
    save_checkpoint(path, config=identity, arrays=arrays, state=asdict(state.position))


def run_identity(stamp: str, model: ModelConfig, search: EncodeConfig, config: TrainConfig) -> dict[str, Any]:
    """What run this is: the vectors, by their stamp, and everything that was asked for."""
    return {
        "vectors": stamp,
        "model": model.model_dump(),
        "search": search.model_dump(),
        "training": config.model_dump(),
    }


def device_of(path: Path) -> str:
    """The device that the recipe of a checkpoint's run was chosen for."""
    config, _, _ = load_checkpoint(path)
    return str(config.get("training", {}).get("device", "cpu"))


def load_run(path: Path, identity: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the state of a checkpoint.

    Raises:
        LineageError: the checkpoint is of another run; the message says in what it differs.
    """
    config, arrays, state = load_checkpoint(path)
    # a checkpoint may be older than some of the settings: those are as asked from now on
    config["training"] = identity["training"] | config.get("training", {})
    if differs := _differences(identity, config):
        raise LineageError(
            f"{path} is of another run ({'; '.join(differs)}): resume with the same options and training file, "
            "or start over with --force"
        )
    return arrays, state


def restore(state: State, path: Path, identity: dict[str, Any]) -> None:
    """Bring a new state to where the checkpoint is.

    Raises:
        LineageError: as of `load_run`.
    """
    arrays, position = load_run(path, identity)
    state.network.load_state_dict(_tensors(arrays, "model."))
    state.best = {name.removeprefix("best."): a for name, a in arrays.items() if name.startswith("best.")}
    for i, parameter in enumerate(state.parameters):
        if moments := _tensors(arrays, f"optimizer.{i}."):
            state.optimizer.state[parameter] = {
                key: value.to(parameter.device, torch.float32 if key == "step" else parameter.dtype)
                for key, value in moments.items()
            }
    state.generator.set_state(torch.from_numpy(arrays["random"]))
    state.usage.copy_(torch.from_numpy(arrays["usage"]))
    # a checkpoint may be older than some of its fields
    state.position = Position(**{f.name: position[f.name] for f in fields(Position) if f.name in position})


def _tensors(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _differences(asked: Any, kept: Any, name: str = "") -> list[str]:
    """What differs between two identities, each as "name was this and is that"."""
    if isinstance(asked, dict) and isinstance(kept, dict):
        keys = [*asked, *(key for key in kept if key not in asked)]
        return [text for key in keys for text in _differences(asked.get(key), kept.get(key), f"{name} {key}".strip())]
    return [] if asked == kept else [f"{name} was {kept} and is {asked}"]
