"""What is trained and how: sizes from a preset, then how long, how fast, through which beam."""

from __future__ import annotations

from typing import Any

from qinco_core.config import EncodeConfig, ModelConfig, TrainConfig, preset, validation_size
from qinco_core.errors import UsageError

_DEFAULT_EPOCHS = {"fast": 20, "paper": 60}
_LARGE = 5_000_000
# vectors trained on for each codeword before those that none of them used are replaced
_USES = 50
_EPOCH_SIZE = {"fast": 500_000, "paper": 10_000_000}
# of the difference of two near vectors, where vectors are learned by heart
_AUGMENT = 0.25
# a GPU hardly waits for wider beams while it trains, and steps four times as large take it a fifth more time
_GPU_BEAMS = {"A": 4, "B": 2, "late_A": 8, "late_B": 4}
_GPU_STEPS = {"batch": 4096, "encode_batch": 16384}


def model_and_search(name: str, D: int, changes: dict[str, Any], ivf_K: int = 0) -> tuple[ModelConfig, EncodeConfig]:
    """The model and encoder of a preset for dimension D and ivf_K lists, with any of A, B and its sizes changed.

    Raises:
        UsageError: no such preset, or sizes that cannot be.
    """
    base = preset(name)
    search = EncodeConfig.parse({"A": base.A, "B": base.B} | {k: v for k, v in changes.items() if k in "AB"})
    sizes = {k: v for k, v in changes.items() if k not in "AB"}
    model = base.model(D, preselect=search.A > 0, ivf_K=ivf_K, **sizes)
    if search.A > model.K:
        raise UsageError(f"A = {search.A} candidates of K = {model.K} codewords: use A = {model.K} or less")
    return model, search


def recipe(
    model: ModelConfig,
    search: EncodeConfig,
    vectors: int,
    *,
    seconds: float | None = None,
    epochs: int | None = None,
    changes: dict[str, Any] | None = None,
    device: str = "cpu",
) -> TrainConfig:
    """The settings of a run.

    Args:
        model: what is trained; QINCo1 rules bring their own optimizer and schedule in the paper's recipe.
        search: the encoder the model is meant for; the paper's recipe trains through it.
        vectors: how many there are, for the default length of an epoch.
        seconds: wall-clock budget; or
        epochs: a number of epochs; or `samples` among the changes. 20 epochs (60 in the paper's) else.
        changes: fields of `TrainConfig` that override the recipe's.
        device: "cpu" or "cuda", which the run begins on.

    Raises:
        UsageError: more than one budget is given, or a field is out of range.
    """
    fields: dict[str, Any] = dict(changes or {})
    name = fields.setdefault("recipe", "fast")
    if name not in _DEFAULT_EPOCHS:
        raise UsageError(f"no recipe {name!r}; there are {', '.join(_DEFAULT_EPOCHS)}")
    if sum(given is not None for given in (seconds, epochs, fields.get("samples"))) > 1:
        raise UsageError("a run has one budget: give a time, or epochs, or samples")
    base: dict[str, Any] = {"replace": _USES * model.part.K, "augment": _AUGMENT}
    if name == "paper":
        base = {"passes": 1, "warmup": 3 / 60, "A": search.A, "B": search.B, "late": 1.0, "encode_batch": 1024}
        if model.rules == "qinco1":
            base |= {
                "optimizer": "adam",
                "schedule": "plateau",
                "weight_decay": 0.0,
                "clip": 0.0,
                "warmup": 0.0,
            }
    elif device == "cuda" and model.part.parameters < _LARGE:
        base |= _GPU_BEAMS | (_GPU_STEPS if seconds else {})
    if not model.preselect:
        # every codeword is tried, so a second beam costs twice as much
        base |= {"A": 0, "late_A": 0, "late_B": min(2, search.B)}
    fields = base | fields
    if seconds is None and fields.get("samples") is None:
        learn = max(1, vectors - validation_size(fields.get("val"), vectors))
        size = fields.get("epoch_size") or min(learn, _EPOCH_SIZE[name])
        fields |= {"samples": (epochs or _DEFAULT_EPOCHS[name]) * size, "epoch_size": size}
    fields |= {"seconds": seconds, "device": device}
    batch = fields.get("batch", 1024) * fields.get("accumulate", 1)
    # large models are slow: shorter batches keep the time budget and Ctrl-C responsive
    usual = 4096 if model.part.parameters < _LARGE else 1024
    fields["encode_batch"] = max(fields.get("encode_batch", usual), batch)
    return TrainConfig.parse(fields)
