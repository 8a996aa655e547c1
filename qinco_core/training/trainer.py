"""The training loop (method §4, §8.5).

A run is a row of rounds: an epoch, or a slice of the time budget. In a round batches are drawn, encoded
without gradients, and used for one or more optimizer steps each; at its end the model is validated and a checkpoint
is written. Unused codewords are replaced there, or whenever enough vectors have shown them to be unused.
Several processes (`qinco_core.distributed`) share every batch and add up what it gives: all of them are in the same
state at all times, whatever their number, and the first one writes.
Shapes: N vectors, D dimension, M steps, K codewords.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qinco_core.codec.engine import Engine
from qinco_core.codec.graph import WARM_UP, Graphs
from qinco_core.codec.network import Network
from qinco_core.codec.precision import Plan
from qinco_core.codec.product import AnyNetwork
from qinco_core.codec.workers import one_thread_each
from qinco_core.config import EncodeConfig, ModelConfig, TrainConfig
from qinco_core.distributed import current
from qinco_core.errors import TrainingError
from qinco_core.progress import Progress, Silent
from qinco_core.store.artifact import digest
from qinco_core.training.codewords import replace_unused
from qinco_core.training.data import TrainingData, normalisation
from qinco_core.training.gradients import Gradients
from qinco_core.training.initialise import initialise
from qinco_core.training.log import Recent, TrainingLog
from qinco_core.training.schedule import Budget, by_heart, peak_rate, rate
from qinco_core.training.state import State, forget, new_state, restore, run_identity, save, set_rate
from qinco_core.vectors import VectorFile

# validation between rounds looks at so many vectors at most, through a beam of at most this width, and at
# so small a share of what a round trains on that large models do not spend their time on it
_VAL_ROWS, _VAL_BEAM, _VAL_SHARE = 4096, 4, 16
# vectors trained on whose error is compared with that: fewer are enough to see whether there is a difference
_TRAINED_SHARE, _TRAINED_ROWS = 4, 256
# unused codewords are not replaced where there is no time left to train them
_REPLACE_UNTIL = 0.8
# rows of a batch that stay together when its order changes, so that every process keeps its share of all of them
_TOGETHER = 64
# gradients of a full step and of a pass's last one, and the update
_GRAPHS = 3
# batches after which the speed of a run is known
_SETTLED = 4
# training errors this many times above the first one are no way back from
_DIVERGED, _FIRST = 4.0, 5
# QINCo1's plateau: rounds without improvement before the rate falls, and before the run stops
_PATIENCE, _STOP_AFTER = 10, 20


class Interrupted(Exception):  # noqa: N818 - a message, not an error
    """The run was asked to stop and has written its checkpoint."""


@dataclass(frozen=True)
class Trained:
    """A finished run: the best network, and its figures (validation MSE in the units of the data)."""

    network: AnyNetwork
    figures: dict[str, Any]


def train(
    vectors: VectorFile,
    model: ModelConfig,
    search: EncodeConfig,
    config: TrainConfig,
    *,
    plan: Plan,
    checkpoint: Path,
    log: TrainingLog,
    centroids_KD: Tensor | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a model on a file of vectors.

    Args:
        vectors: training vectors; the last `config.val` of them are for validation alone.
        model: what to train.
        search: the encoder the model will be used with; validation uses at most B = 4 of it.
        config: how.
        plan: device, precision and threads.
        checkpoint: file that the run is kept in; for the caller to remove once the model is saved.
        log: told of the start, every round and the end.
        centroids_KD: coarse centroids of an IVF model, not normalised [ivf_K, D].
        resume: continue from the checkpoint.
        progress: told of every batch.
        stop: asked between batches; when true, the checkpoint is written and `Interrupted` raised.

    Raises:
        UsageError: too few vectors.
        TrainingError: the run diverged.
        LineageError: the checkpoint is of another run.
        Interrupted: `stop` said so.
    """
    with one_thread_each():  # the threads share batches, not operations
        run = Run(vectors, model, search, config, plan, checkpoint, log, progress or Silent(), stop, centroids_KD)
        if resume:
            run.restore()
        else:
            run.start()
        return run.finish()


class Run:
    """One training run; `start` or a restored state, then `finish`."""

    def __init__(
        self,
        vectors: VectorFile,
        model: ModelConfig,
        search: EncodeConfig,
        config: TrainConfig,
        plan: Plan,
        checkpoint: Path,
        log: TrainingLog,
        progress: Progress,
        stop: Callable[[], bool],
        centroids_KD: Tensor | None = None,
    ) -> None:
        self.group = current()
        self.data = TrainingData(vectors, model, config)
        self.config, self.plan = config, plan
        self.checkpoint, self.log, self.progress = checkpoint, log, progress
        self.stop: Callable[[], bool] = lambda: self.group.any(stop())
        self.budget = Budget.of(config, len(self.data))
        self.state = new_state(Network(model).to(plan.device), config)
        self.identity = run_identity(self.data.stamp, model, search, config)
        self.centroids_KD = centroids_KD
        if centroids_KD is not None:
            self.identity["centroids"] = digest(centroids_KD.contiguous().numpy())
        narrow = EncodeConfig(A=min(search.A, _VAL_BEAM), B=min(search.B, _VAL_BEAM))
        self._val_search = narrow.fast
        self._early_search = EncodeConfig(A=config.A, B=config.B).fast
        self._late_search = EncodeConfig(A=config.late_A, B=config.late_B).fast
        self._graphs = Graphs(plan.device, kept=_GRAPHS)
        self._recent = Recent()
        self._unused = 0

    def start(self) -> None:
        """Initialise the network."""
        network, config = self.state.network, self.config
        mean, std = normalisation(self.data.train, network.config.rules)
        self.data.check_val()
        self.group.wait()
        if self.group.first:
            forget(self.checkpoint)
        self.state.position.plan = str(self.plan)
        network.mean.copy_(mean)
        network.std.copy_(std)
        if network.centroids is not None and self.centroids_KD is not None:
            network.centroids.copy_(network.normalize(self.centroids_KD.to(self.plan.device)))
        self.log.write("start", **self.identity, plan=str(self.plan), train_vectors=len(self.data))
        self._assign()
        initialise(
            network,
            *self.data.sample(network, self.state.generator),
            noise=config.noise,
            iterations=config.kmeans_iterations,
            generator=self.state.generator,
            plan=self.plan,
            progress=self.progress,
            stop=self.stop,
        )
        self._agree()

    def finish(self) -> Trained:
        """Run the loop to the end of its budget and return the best network."""
        total = self.budget.samples or self.budget.seconds
        self.progress.begin("training", total, "vectors" if self.budget.samples else "s")
        position = self.state.position
        before = position.samples if self.budget.samples else position.seconds
        self.progress.advance(before)
        clock = time.perf_counter() - position.seconds
        while self._fraction() < 1 and not self._given_up():
            if self.stop():
                self._save()
                raise Interrupted
            seconds = position.seconds
            samples = self._train_batch()
            position.seconds = self.group.each(time.perf_counter() - clock)[0]
            amount = samples if self.budget.samples else position.seconds - seconds
            val = {} if position.best_mse is None else {"val mse": position.best_mse}
            self.progress.advance(amount, **self._recent.figures(), **val)
            if self.budget.rounds(position.samples, position.seconds) > position.rounds or self._fraction() >= 1:
                self._end_round()
                position.seconds = self.group.each(time.perf_counter() - clock)[0]
        self.progress.end()
        return self._result()

    def restore(self) -> None:
        """Continue from the checkpoint."""
        restore(self.state, self.checkpoint, self.identity)
        before, now = self.state.position.plan, str(self.plan)
        self.progress.note(f"continuing after round {self.state.position.rounds}, from {self.checkpoint}")
        if before != now:
            self.progress.note(f"this session runs on {now}, the last one on {before}: not the same to the bit")
        self.state.position.plan = now
        if self.state.position.augment:
            self.data.find_neighbors(self.plan)
        self.log.write("resume", plan=now, **_plain(self.state))
        self._assign()

    def _agree(self) -> None:
        """Give all processes the first one's parameters, should unlike machines have rounded differently."""
        for parameter in self.state.network.parameters():
            self.group.copy(parameter.data)

    def _save(self) -> None:
        if self.group.first:
            save(self.state, self.checkpoint, self.identity)

    def _assign(self) -> None:
        if self.state.network.config.ivf_K:
            self.data.assign(Engine(self.state.network, self.plan), self.progress, self.stop)

    def speed(self) -> float:
        """Vectors per second, measured on two batches of a run that is then to be thrown away."""
        self.state.network.std.fill_(1)
        if self.state.network.config.ivf_K:
            self.data.lists = torch.zeros(len(self.data), dtype=torch.int32)
        with one_thread_each():
            self._train_batch()
            while self.plan.device.type != "cpu" and self.state.position.steps <= WARM_UP:
                self._train_batch()
            started = time.perf_counter()
            return self._train_batch() / (time.perf_counter() - started)

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self.state.network, self.plan)

    def _fraction(self) -> float:
        return self.budget.fraction(self.state.position.samples, self.state.position.seconds)

    def _train_batch(self) -> int:
        """Encode a batch and take its optimizer steps; returns its size, the shares of all processes together."""
        state, config, position = self.state, self.config, self.state.position
        started = time.perf_counter()
        self._settle_peak()
        v, lists = self.data.draw(position.batches, position.augment)
        search = self._early_search if self._fraction() < config.late else self._late_search
        if config.replace and state.usage[0].sum() >= config.replace:
            self._replace_unused()
        codes, _ = Engine(state.network, self.plan).encode(v, search, lists)
        used = torch.stack([torch.bincount(k, minlength=state.usage.shape[1]) for k in codes.T])
        self.group.add(used)
        state.usage += used
        device = self.plan.device
        x, codes = state.network.normalize(v.to(device)), codes.to(device)
        lists = None if lists is None else lists.to(device)
        figures = torch.zeros(2)
        for _ in range(config.passes):
            for rows, total in self._order():
                rows = rows.to(device)
                set_rate(state.optimizer, self._rate())
                part = x[rows], codes[rows], None if lists is None else lists[rows]
                figures = self._graphs(("gradient", total), functools.partial(self._gradient, total), *part)
                self.group.add(self._gradients.all)
                figures = self._graphs("update", self._update, figures)
                position.steps += 1
        # of the last step: to wait for all would keep a GPU waiting
        loss, error = (sum(self.group.each(figure)) for figure in figures.tolist())
        position.batches += 1
        position.samples += self.data.batch
        mse = error * len(v[0]) * float(state.network.std) ** 2
        self._recent.add(loss, mse, len(x), time.perf_counter() - started)
        self._refuse_divergence(loss)
        return self.data.batch

    def _order(self) -> Iterator[tuple[Tensor, int]]:
        """Which rows of this process's share each step of a pass takes, int64 [n], and how many all of them take.

        The steps are of the same vectors whatever the number of processes.
        """
        rank, size = self.group.rank, self.group.size
        together = torch.arange(self.data.batch).split(_TOGETHER)
        order = torch.randperm(len(together), generator=self.state.generator)
        rows = torch.cat([together[i] for i in order])
        for step in rows.split(self.config.batch * self.config.accumulate):
            yield step[step % size == rank] // size, len(step)

    def _gradient(self, total: int, x_ND: Tensor, codes_NM: Tensor, lists_N: Tensor | None) -> Tensor:
        """The gradients of this process's share of a step of `total` vectors; returns its loss and last error [2]."""
        size = self.config.batch
        self._gradients.zero()
        figures = [torch.zeros(2, device=x_ND.device)]
        for first in range(0, len(x_ND), size):
            rows = slice(first, first + size)
            part = x_ND[rows], codes_NM[rows], None if lists_N is None else lists_N[rows]
            figures.append(self._gradients.add(part, 1 / total))
        return torch.stack(figures).sum(0)

    def _update(self, figures: Tensor) -> Tensor:
        """An optimizer step by the gradients there are; returns its argument."""
        if self.config.clip:
            nn.utils.clip_grad_value_(self.state.parameters, self.config.clip, foreach=True)
        self.state.optimizer.step()
        return figures

    def _replace_unused(self) -> None:
        state = self.state
        unused = int((state.usage == 0).sum())
        if unused and self._fraction() < _REPLACE_UNTIL:
            replace_unused(state.network, state.optimizer, state.usage, state.generator)
        self._unused += unused
        state.usage.zero_()

    def _rate(self) -> float:
        position = self.state.position
        return rate(self.config, position.peak, self._fraction()) * position.scale

    def _settle_peak(self) -> None:
        """Choose the peak of the learning rate by how many steps there will be, as long as that may still change."""
        position, config = self.state.position, self.config
        if position.batches == 1:
            position.first_steps, position.first_seconds = position.steps, position.seconds
        if self._fraction() >= config.warmup and position.batches >= _SETTLED:
            return
        steps = 1.0
        if self.budget.samples:
            steps = self.budget.samples * config.passes / (config.batch * config.accumulate)
        elif position.seconds > position.first_seconds and self.budget.seconds:
            # only the speed so far tells, without the first batch, in which much is made ready
            speed = (position.steps - position.first_steps) / (position.seconds - position.first_seconds)
            steps = speed * self.budget.seconds
        position.peak = peak_rate(config, steps, self.state.network.config)

    def _refuse_divergence(self, loss: float) -> None:
        position = self.state.position
        if position.batches <= _FIRST:
            position.first_loss = self._recent.loss
        first = position.first_loss
        if not math.isfinite(loss) or (first and self._recent.loss > _DIVERGED * first):
            self.log.write("diverged", loss=str(loss), **_plain(self.state))
            raise TrainingError(
                f"training diverged after {self.state.position.samples:,} vectors (loss {loss:.4g}, at first "
                f"{first:.4g}); try --lr {self._rate() / 2:.1e}, or look for outliers in the training vectors"
            )

    def _end_round(self) -> None:
        """Validate, keep the best, perhaps replace unused codewords, log, and write the checkpoint."""
        state, position = self.state, self.state.position
        self._agree()
        position.rounds = max(position.rounds + 1, self.budget.rounds(position.samples, position.seconds))
        position.val_rows = position.val_rows or min(_VAL_ROWS, max(256, position.samples // _VAL_SHARE))
        mse = self.validate(position.val_rows)
        if position.best_mse is None or mse < position.best_mse:
            position.best_mse, position.best_round = mse, position.rounds
            state.best = state.network.to_arrays()
        if self.config.replace is None:
            self._replace_unused()
        learned = self._settle_augment(mse)
        unused, self._unused = self._unused, 0
        if self.config.schedule == "plateau":
            stale = position.rounds - position.best_round
            position.scale *= 0.1 if stale and stale % _PATIENCE == 0 else 1.0
        figures = self._recent.figures() | self._rates()
        self.log.write("round", val_mse=mse, lr=self._rate(), unused=unused, **_plain(state), **figures, **learned)
        self.progress.note(
            f"round {position.rounds}: validation MSE {mse:,.6g}, training {figures['mse']:,.6g}, "
            f"{position.samples:,} vectors in {position.seconds:.0f} s"
            + (f", {unused} unused codewords" if unused else "")
        )
        self._save()

    def _rates(self) -> dict[str, float]:
        rates = self.group.each(self._recent.rate)
        each = {f"vectors/s of rank {rank}": rate for rank, rate in enumerate(rates)} if len(rates) > 1 else {}
        return {"vectors/s": sum(rates)} | each

    def _given_up(self) -> bool:
        position = self.state.position
        return self.config.schedule == "plateau" and position.rounds - position.best_round >= _STOP_AFTER

    def _settle_augment(self, val_mse: float) -> dict[str, float]:
        """Choose what is added to vectors by how much better those trained on are known; figures for the log."""
        position = self.state.position
        if not self.config.augment or not self.data.few:
            return {}
        trained = self._error(*self.data.spread(max(_TRAINED_ROWS, position.val_rows // _TRAINED_SHARE)))
        position.augment = self.config.augment * by_heart(trained, val_mse)
        if position.augment:
            self.data.find_neighbors(self.plan)
        return {"train_mse": trained, "augment": position.augment}

    def validate(self, rows: int) -> float:
        """MSE of the first `rows` validation vectors at A, B ≤ 4, in the units of the data."""
        v = torch.from_numpy(self.data.val.read(0, min(rows, len(self.data.val))))
        return self._error(v, None if self.data.val_lists is None else self.data.val_lists[: len(v)])

    def _error(self, v: Tensor, lists: Tensor | None) -> float:
        engine, N = Engine(self.state.network, self.plan), len(v)
        v, lists = self.group.share(v), None if lists is None else self.group.share(lists)
        error = 0.0
        if len(v):
            codes, _ = engine.encode(v, self._val_search, lists)
            error = float((engine.decode(codes, lists_N=lists) - v).square().sum(1).double().sum())
        return sum(self.group.each(error)) / N

    def _result(self) -> Trained:
        state = self.state
        state.network.load_state_dict({name: torch.from_numpy(a) for name, a in state.best.items()})
        rows = min(len(self.data.val), 8 * state.position.val_rows)
        figures = {
            "val_mse": self.validate(rows),
            "val_rows": rows,
            "val_vectors": len(self.data.val),
            "val_encoder": self._val_search.model_dump(),
            "train_vectors": len(self.data),
            "plan": str(self.plan),
            **_plain(state),
        }
        self.log.write("end", **figures)
        return Trained(state.network.cpu().requires_grad_(False).eval(), figures)


def _plain(state: State) -> dict[str, float | None]:
    position = state.position
    return {
        "round": position.rounds,
        "samples": position.samples,
        "steps": position.steps,
        "seconds": round(position.seconds, 3),
        "best_val_mse": position.best_mse,
        "peak_lr": position.peak,
    }
