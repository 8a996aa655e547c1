"""The library in one class. Every command of the command line is a few lines around it.

Shapes: N vectors, D dimension, M symbols.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Network
from qinco_core.codec.packing import pack, symbol_dtype, truncate, unpack
from qinco_core.codec.precision import Plan, plan
from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import DimensionError, OutputExistsError, UsageError, VectorFileError
from qinco_core.progress import Progress
from qinco_core.store import CodesSpec, Header, load_model, save_model
from qinco_core.training.log import TrainingLog
from qinco_core.training.recipes import model_and_search, recipe
from qinco_core.training.trainer import train
from qinco_core.vectors import VectorFile, open_vectors, write_vectors

ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[Any], Tensor)


class Codec:
    """A trained model, ready to encode and decode.

    Attributes:
        config: what the model is.
        search: how it encodes; A, B, T of method §3 and §8.2.
        plan: device, precision and threads, with the reason for them.
        training: figures of its training.
        header: the artifact's header when it came from a file, else None.
    """

    def __init__(
        self,
        network: Network,
        search: EncodeConfig,
        *,
        plan: Plan,
        training: dict[str, Any] | None = None,
        header: Header | None = None,
    ) -> None:
        self.config: ModelConfig = network.config
        self.network = network
        self.search = search
        self.plan = plan
        self.training = training or {}
        self.header = header
        self._checkpoint: Path | None = None
        self._engine = Engine(network, plan)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> Codec:
        """Read a model artifact.

        Args:
            path: the model file.
            device: "auto", "cpu" or "cuda".
            precision: "auto", "bfloat16" or "float32".
            threads: CPU threads; torch's number by default.

        Raises:
            InputNotFoundError, ArtifactError: there is no such file, or it is damaged or foreign.
            DeviceError: the device is not there.
        """
        stored = load_model(path)
        network = Network.from_arrays(stored.config, stored.tensors)
        chosen = plan(device, precision, threads)
        return cls(network, stored.encode, plan=chosen, training=stored.training, header=stored.header)

    @classmethod
    def train(
        cls,
        vectors: VectorFile | NDArray[Any] | str | Path,
        *,
        preset_name: str = "qinco2-S",
        seconds: float | None = None,
        epochs: int | None = None,
        changes: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        checkpoint: str | Path | None = None,
        log: str | Path | None = None,
        tensorboard: str | Path | None = None,
        resume: bool = False,
        force: bool = False,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Codec:
        """Train a model.

        Args:
            vectors: a file of vectors, open or by name, or an array [N, D].
            preset_name: where the sizes come from (`qinco_core.PRESETS`).
            seconds: wall-clock budget of the training loop; or
            epochs: rounds of `epoch_size` vectors: as many as there are, at most 500,000. 20 when
                neither is given.
            changes: any of A, B, M, K, L, E, H, to override the preset's.
            training: any field of `TrainConfig`, to override the recipe's.
            device: as in `load`.
            precision: as in `load`.
            threads: as in `load`.
            checkpoint: where the run is kept until the model is saved; by default in a temporary directory.
            log: JSONL file for the run's figures; by default beside the checkpoint.
            tensorboard: a directory for TensorBoard's events.
            resume: continue from the checkpoint.
            force: start over where there is a checkpoint.
            progress: told how far it is.
            stop: asked between batches whether to stop; the checkpoint is then written and
                `qinco_core.training.trainer.Interrupted` raised.

        Raises:
            UsageError: a parameter is wrong, or there are fewer vectors than K.
            OutputExistsError: there is a checkpoint, and neither `resume` nor `force`.
            VectorFileError: the file is damaged, or holds NaN or infinity.
            TrainingError: the run diverged.
        """
        with tempfile.TemporaryDirectory(prefix="qinco-") as temporary:
            if isinstance(vectors, np.ndarray):
                vectors = _as_file(vectors, Path(temporary) / "vectors.npy")
            file = vectors if isinstance(vectors, VectorFile) else open_vectors(vectors)
            model, search = model_and_search(preset_name, file.dim, changes or {})
            config = recipe(model, search, len(file), seconds=seconds, epochs=epochs, changes=training or {})
            kept = Path(checkpoint) if checkpoint else Path(temporary) / "training.h5"
            if kept.exists() and not (resume or force):
                raise OutputExistsError(
                    f"{kept} is left of an interrupted run; go on with it by --resume, or start over with --force"
                )
            lines = Path(log) if log else kept.with_name("training.jsonl")
            chosen = plan(device, precision, threads)
            with TrainingLog(lines, Path(tensorboard) if tensorboard else None, append=resume) as writer:
                result = train(
                    file,
                    model,
                    search,
                    config,
                    plan=chosen,
                    checkpoint=kept,
                    log=writer,
                    resume=resume,
                    progress=progress,
                    stop=stop,
                )
        figures = {"preset": preset_name, "config": config.model_dump(), **result.figures}
        codec = cls(result.network, search, plan=chosen, training=figures)
        codec._checkpoint = Path(checkpoint) if checkpoint else None
        return codec

    def save(self, path: str | Path, *, force: bool = False) -> Header:
        """Write the model artifact; an existing file is replaced only with `force`.

        The checkpoint of its training, now of no more use, is removed.
        """
        arrays = self.network.to_arrays()
        self.header = save_model(path, self.config, self.search, arrays, training=self.training, force=force)
        if self._checkpoint is not None:
            self._checkpoint.unlink(missing_ok=True)
        return self.header

    def encode(self, vectors: ArrayOrTensor, *, search: EncodeConfig | None = None) -> ArrayOrTensor:
        """Encode vectors by the fast engine.

        Args:
            vectors: numpy or torch, any real dtype, [N, D].
            search: A, B and T in place of the model's own; T = 0 for pre-selection per beam.

        Returns:
            Symbols [N, M] of the same kind: uint8, or uint16 where K > 256 (int64 for torch).

        Raises:
            DimensionError: the vectors do not have the model's dimension.
            VectorFileError: NaN or infinity.
        """
        v = self._checked(vectors)
        codes, _ = self._engine.encode(v, search or self.search.fast)
        if isinstance(vectors, Tensor):
            return codes.to(vectors.device)
        return codes.numpy().astype(symbol_dtype(self.config.K))

    def decode(self, codes: ArrayOrTensor, *, steps: int | None = None) -> ArrayOrTensor:
        """Decode symbols.

        Args:
            codes: [N, ≥ steps], any integer dtype, numpy or torch.
            steps: how many symbols to use; all M by default. Fewer give a coarser vector (dynamic rate).

        Returns:
            Vectors, float32 [N, D] of the same kind.

        Raises:
            UsageError: `steps` is not from 1 to M, or a symbol is not below K.
        """
        steps = self.check_steps(steps)
        self._refuse_ivf()
        integer = not codes.is_floating_point() if isinstance(codes, Tensor) else codes.dtype.kind in "iu"
        if not integer:
            raise UsageError(f"codes are {codes.dtype}; symbols are integers")
        c = codes if isinstance(codes, Tensor) else torch.from_numpy(codes.astype(np.int64))
        if c.dim() != 2 or c.shape[1] < steps:
            raise DimensionError(f"codes have shape {tuple(c.shape)}, not [N, {steps}] or more symbols")
        if len(c) and not 0 <= int(c.min()) <= int(c.max()) < self.config.K:
            raise UsageError(f"symbols run from {int(c.min())} to {int(c.max())}, but K is {self.config.K}")
        decoded = self._engine.decode(c, steps)
        return decoded.to(codes.device) if isinstance(codes, Tensor) else decoded.numpy()

    def pack(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """Symbols [N, M] as bytes [N, code_bytes]."""
        return pack(codes, self.config.K)

    def unpack(self, packed: NDArray[np.uint8]) -> NDArray[Any]:
        """The inverse of `pack`."""
        return unpack(packed, self.config.M, self.config.K)

    def truncate(self, packed: NDArray[np.uint8], steps: int) -> NDArray[np.uint8]:
        """Packed codes cut to their first `steps` symbols."""
        return truncate(packed, self.config.M, self.config.K, self.check_steps(steps))

    def check_steps(self, steps: int | None) -> int:
        """`steps`, or M for None.

        Raises:
            UsageError: not from 1 to M.
        """
        if steps is None:
            return self.config.M
        if not 1 <= steps <= self.config.M:
            raise UsageError(f"steps = {steps}, but this model has {self.config.M}: use 1 to {self.config.M}")
        return steps

    def spec(self, dtype: object, search: EncodeConfig | None = None) -> CodesSpec:
        """What codes of this model are, for the store and the stream; the model must have been saved."""
        if self.header is None:
            raise UsageError("save the model first: codes name the model that made them")
        encoder = (search or self.search.fast).model_dump()
        encoder |= {"device": self.plan.device.type, "precision": self.plan.precision}
        c = self.config
        return CodesSpec(model=self.header.fingerprint, D=c.D, M=c.M, K=c.K, dtype=str(dtype), encoder=encoder)

    def _checked(self, vectors: NDArray[Any] | Tensor) -> Tensor:
        self._refuse_ivf()
        if isinstance(vectors, Tensor):
            v = vectors
        else:
            v = torch.from_numpy(np.ascontiguousarray(vectors, vectors.dtype.newbyteorder("=")))
        if v.dim() != 2 or v.shape[1] != self.config.D:
            raise DimensionError(f"vectors have shape {tuple(v.shape)}, but the model takes [N, {self.config.D}]")
        if v.is_floating_point() and not v.isfinite().all():
            row = int((~v.isfinite().all(1)).nonzero()[0])
            raise VectorFileError(f"row {row} holds NaN or infinity; remove it and encode again")
        return v

    def _refuse_ivf(self) -> None:
        if self.config.ivf_K:
            raise UsageError("codes of an IVF model have list numbers, which only `codec.engine.Engine` returns so far")


def _as_file(vectors: NDArray[Any], path: Path) -> Path:
    """An array as a file whose identity is its content, so that a run on the same array can be resumed."""
    write_vectors(path, vectors)
    content = hashlib.blake2b(np.ascontiguousarray(vectors).data, digest_size=7).digest()
    stamp = int.from_bytes(content, "big")
    os.utime(path, ns=(stamp, stamp))
    return path
