"""How far a run is, the learning rate that goes with it, and whether it learns by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qinco_core.config import ModelConfig, TrainConfig

# the fast recipe's rate for a run of this many optimizer steps; longer runs want lower ones (method §8.5)
_FAST_LR, _FAST_STEPS = 6.4e-3, 1500
# and so do larger models than this: Adam moves every weight by the rate, and what the weights make adds up over inputs
# and over the blocks of all steps (docs/log.md has the runs behind the three)
_FAST_D, _FAST_E, _FAST_BLOCKS = 384, 128, 16
_PAPER_LR = {"adamw": 8e-4, "adam": 1e-4}
# validations, checkpoints and checks for dead codewords of a run with a time budget
_TIMED_ROUNDS, _SHORTEST_ROUND = 16, 15.0
# by what share the error of vectors trained on is lower than that of others where nothing is learned by heart that
# matters, and where it is time to do all there is against it (docs/log.md)
_BY_HEART = 0.02, 0.1


@dataclass(frozen=True)
class Budget:
    """The length of a run, in training vectors or in seconds."""

    samples: int | None
    seconds: float | None
    round_samples: int

    @classmethod
    def of(cls, config: TrainConfig, N: int) -> Budget:
        """The budget of a run on N training vectors."""
        return cls(config.samples, config.seconds, config.epoch_size or min(N, 500_000))

    def fraction(self, samples: int, seconds: float) -> float:
        """The share of the budget that is used, 0 to 1."""
        used = samples / self.samples if self.samples else seconds / (self.seconds or 1)
        return min(1.0, used)

    def rounds(self, samples: int, seconds: float) -> int:
        """How many rounds have ended: epochs, or slices of the time."""
        if self.samples:
            return samples // self.round_samples
        assert self.seconds is not None
        count = max(1, min(_TIMED_ROUNDS, int(self.seconds / _SHORTEST_ROUND)))
        return int(seconds * count / self.seconds)


def rate(config: TrainConfig, peak: float, fraction: float) -> float:
    """The learning rate: a linear rise, then a cosine quarter wave down (method §4); or the peak, held."""
    warm = min(1.0, fraction / config.warmup) if config.warmup else 1.0
    if config.schedule == "plateau":
        return peak * warm
    falling = max(0.0, fraction - config.warmup) / (1 - config.warmup)
    return peak * warm * max(math.cos(math.pi / 2 * falling), config.floor)


def peak_rate(config: TrainConfig, steps: float, model: ModelConfig) -> float:
    """The rate asked for, or the recipe's own for a run of that many optimizer steps on a model like this."""
    if config.lr is not None:
        return config.lr
    if config.recipe == "paper":
        return _PAPER_LR[config.optimizer]
    width = min(1.0, _FAST_D / model.D, _FAST_E / model.E)
    depth = min(1.0, math.sqrt(_FAST_BLOCKS / (model.M * model.L)))
    return _FAST_LR * width * depth * min(1.0, float((_FAST_STEPS / steps) ** 0.3))


def by_heart(trained_mse: float, val_mse: float) -> float:
    """How much a run learns its vectors by heart, from 0 to 1, by their error and that of others."""
    least, most = _BY_HEART
    gap = 1 - trained_mse / val_mse if val_mse else 0.0
    return min(1.0, max(0.0, (gap - least) / (most - least)))
