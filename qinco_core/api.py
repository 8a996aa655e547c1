"""The library in one class. Every command of the command line is a few lines around it.

Shapes: N vectors, D dimension, M symbols. Codes of an IVF model have one column more, the list number, which
comes first: int32 [N, 1 + M].
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qinco_core.codec.packing import pack, symbol_dtype, truncate, unpack
from qinco_core.codec.precision import Plan, plan
from qinco_core.codec.product import AnyEngine, AnyNetwork, engine_of, network_of
from qinco_core.config import EncodeConfig, ModelConfig
from qinco_core.errors import DimensionError, LineageError, UsageError, VectorFileError
from qinco_core.progress import Progress
from qinco_core.store import CodeRows, CodesSpec, Header, Parent, check_lineage, load_model, save_model
from qinco_core.store.lists import check_lists, list_bits
from qinco_core.training.coarse import Centroids
from qinco_core.training.job import array_file, train_model
from qinco_core.vectors import VectorFile, open_vectors

ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[Any], Tensor)


class Codec:
    """A trained model, ready to encode and decode.

    Attributes:
        config: what the model is.
        search: how it encodes; A, B, T of method §3 and §8.2.
        plan: device, precision and threads, with the reason for them.
        training: figures of its training.
        header: the artifact's header when it came from a file, else None.
        path: that file.
        parents: what the model was made from: the centroids of an IVF model.
    """

    def __init__(
        self,
        network: AnyNetwork,
        search: EncodeConfig,
        *,
        plan: Plan,
        training: dict[str, Any] | None = None,
        header: Header | None = None,
        parents: tuple[Parent, ...] = (),
    ) -> None:
        self.config: ModelConfig = network.config
        self.network = network
        self.search = search
        self.plan = plan
        self.training = training or {}
        self.header = header
        self.path: Path | None = None
        self.parents = header.parents if header else parents
        self._checkpoint: Path | None = None

    @functools.cached_property
    def engine(self) -> AnyEngine:
        """The fast encoder and decoder; its tables are made when they are first needed."""
        return engine_of(self.network, self.plan)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> Codec:
        """Read a model artifact.

        Args:
            path: the model file.
            device: "auto", "cpu" or "cuda".
            precision: "auto", "bfloat16" or "float32".
            threads: CPU threads; $QINCO_THREADS or all cores by default.

        Raises:
            InputNotFoundError, ArtifactError: there is no such file, or it is damaged or foreign.
            DeviceError: the device is not there.
        """
        stored = load_model(path)
        network = network_of(stored.config, stored.tensors)
        chosen = plan(device, precision, threads)
        codec = cls(network, stored.encode, plan=chosen, training=stored.training, header=stored.header)
        codec.path = Path(path)
        return codec

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
        ivf: Centroids | None = None,
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
            changes: any of A, B, M, K, L, E, H, rank, to override the preset's; `groups` (with `opq` or without) for a
                product model.
            training: any field of `TrainConfig`, to override the recipe's.
            ivf: coarse centroids of an IVF model: a file of them (an artifact or .npy), or an array [ivf_K, D].
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
            DimensionError: the centroids are of another dimension.
            OutputExistsError: there is a checkpoint, and neither `resume` nor `force`.
            VectorFileError: the file is damaged, or holds NaN or infinity.
            TrainingError: the run diverged.
        """
        with tempfile.TemporaryDirectory(prefix="qinco-") as temporary:
            if isinstance(vectors, np.ndarray):
                vectors = array_file(vectors, Path(temporary) / "vectors.npy")
            found = train_model(
                vectors if isinstance(vectors, VectorFile) else open_vectors(vectors),
                Path(checkpoint) if checkpoint else Path(temporary) / "training.h5",
                preset_name=preset_name,
                seconds=seconds,
                epochs=epochs,
                changes=changes,
                training=training,
                ivf=ivf,
                device=device,
                precision=precision,
                threads=threads,
                log=log,
                tensorboard=tensorboard,
                resume=resume,
                force=force,
                progress=progress,
                stop=stop,
            )
        codec = cls(found.network, found.search, plan=found.plan, training=found.training, parents=found.parents)
        codec._checkpoint = Path(checkpoint) if checkpoint else None
        return codec

    def save(self, path: str | Path, *, force: bool = False) -> Header:
        """Write the model artifact; an existing file is replaced only with `force`.

        The checkpoint of its training, now of no more use, is removed.
        """
        arrays = self.network.to_arrays()
        self.header = save_model(
            path, self.config, self.search, arrays, training=self.training, parents=self.parents, force=force
        )
        if self._checkpoint is not None:
            self._checkpoint.unlink(missing_ok=True)
        self.path = Path(path)
        return self.header

    @property
    def centroids(self) -> NDArray[np.float32] | None:
        """The coarse centroids of an IVF model, not normalised, [ivf_K, D]; None without an IVF."""
        if self.network.centroids is None:
            return None
        return self.network.denormalize(self.network.centroids).cpu().numpy()

    @property
    def bytes_per_vector(self) -> float:
        """What a vector takes: its packed code, and the bits of its list number if there is one."""
        return self.config.code_bytes + list_bits(self.config.ivf_K) / 8

    def check_codes(self, spec: CodesSpec, name: object) -> None:
        """Check that codes are of this model; `name` is what the message calls them.

        Raises:
            LineageError: they are not; the message names both models.
            UsageError: the model was never saved, so that no codes are of it.
        """
        if self.header is None:
            raise UsageError("save the model first: codes name the model that made them")
        check_lineage(spec, self.header, codes=name)
        if spec.ivf_K != self.config.ivf_K:
            raise LineageError(f"{name} have {spec.ivf_K} lists, but their model has {self.config.ivf_K}; encode again")

    @property
    def identity(self) -> Parent:
        """What the model is, as artifacts made with it name it.

        Raises:
            UsageError: it was never saved.
        """
        if self.header is None:
            raise UsageError("save the model first: what is made with it names it")
        return Parent(self.header.kind, self.header.fingerprint)

    def encode(
        self,
        vectors: ArrayOrTensor,
        *,
        search: EncodeConfig | None = None,
        lists: NDArray[Any] | Tensor | None = None,
    ) -> ArrayOrTensor:
        """Encode vectors by the fast engine.

        Args:
            vectors: numpy or torch, any real dtype, [N, D].
            search: A, B and T in place of the model's own; T = 0 for pre-selection per beam.
            lists: for an IVF model, list numbers [N] to encode with; the nearest centroids by default.

        Returns:
            Symbols [N, M] of the same kind: uint8, or uint16 where K > 256 (int64 for torch). Of an IVF model
            list numbers and symbols, int32 [N, 1 + M] (int64 for torch).

        Raises:
            DimensionError: the vectors do not have the model's dimension, or there are not N list numbers.
            UsageError: list numbers that are not below ivf_K, or are given for a model without an IVF.
            VectorFileError: NaN or infinity.
        """
        v = self._checked(vectors)
        given = None if lists is None else self._checked_lists(lists, len(v))
        symbols, found = self.engine.encode(v, search or self.search.fast, given)
        codes = symbols if found is None else torch.cat([found[:, None], symbols], dim=1)
        if isinstance(vectors, Tensor):
            return codes.to(vectors.device)
        return codes.numpy().astype(np.int32 if self.config.ivf_K else symbol_dtype(self.config.K))

    def decode(self, codes: ArrayOrTensor, *, steps: int | None = None) -> ArrayOrTensor:
        """Decode symbols.

        Args:
            codes: what `encode` gave, any integer dtype, numpy or torch; symbols beyond `steps` may be cut off.
            steps: how many symbols to use; all M by default. Fewer give a coarser vector (dynamic rate).

        Returns:
            Vectors, float32 [N, D] of the same kind.

        Raises:
            UsageError: `steps` is not from 1 to M, or a symbol is not below K, or a list number not below ivf_K.
        """
        steps = self.check_steps(steps)
        integer = not codes.is_floating_point() if isinstance(codes, Tensor) else codes.dtype.kind in "iu"
        if not integer:
            raise UsageError(f"codes are {codes.dtype}; symbols are integers")
        c = codes if isinstance(codes, Tensor) else torch.from_numpy(codes.astype(np.int64))
        first = int(self.config.ivf_K > 0)
        if c.dim() != 2 or c.shape[1] < first + steps:
            more = "a list number and " if first else ""
            raise DimensionError(
                f"codes have shape {tuple(c.shape)}, not [N, {first + steps}] or more: {more}{steps} symbols"
            )
        symbols = c[:, first:]
        if len(c) and not 0 <= int(symbols.min()) <= int(symbols.max()) < self.config.K:
            raise UsageError(f"symbols run from {int(symbols.min())} to {int(symbols.max())}, but K is {self.config.K}")
        lists = self._checked_lists(c[:, 0], len(c)) if first else None
        decoded = self.engine.decode(symbols, steps, lists)
        return decoded.to(codes.device) if isinstance(codes, Tensor) else decoded.numpy()

    def split(self, codes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
        """Codes as `encode` gives them as symbols [N, M] and list numbers int32 [N] (None without an IVF)."""
        if not self.config.ivf_K:
            return codes, None
        return codes[:, 1:].astype(symbol_dtype(self.config.K)), codes[:, 0].astype(np.int32)

    def join(self, symbols: NDArray[Any], lists: NDArray[Any] | None) -> NDArray[Any]:
        """The inverse of `split`.

        Raises:
            UsageError: an IVF model without list numbers, or list numbers without an IVF.
        """
        if (lists is not None) != (self.config.ivf_K > 0):
            raise UsageError("codes of an IVF model have list numbers, and only those")
        return symbols if lists is None else np.column_stack([lists.astype(np.int32), symbols.astype(np.int32)])

    def pack_rows(self, codes: NDArray[Any], ids: NDArray[np.int64] | None = None) -> CodeRows:
        """Codes as `encode` gives them as rows for the store: packed symbols, ids if given, list numbers apart."""
        symbols, lists = self.split(codes)
        return CodeRows(self.pack(symbols), ids, lists)

    def unpack_rows(self, rows: CodeRows) -> NDArray[Any]:
        """The codes of rows from the store, as `decode` takes them."""
        return self.join(self.unpack(rows.codes), rows.lists)

    def pack(self, symbols: NDArray[Any]) -> NDArray[np.uint8]:
        """Symbols [N, M] as bytes [N, code_bytes]; of an IVF model without the list numbers (`split`).

        Raises:
            DimensionError: the list numbers are still there.
            UsageError: a symbol is not below K.
        """
        if self.config.ivf_K and symbols.shape[1:] != (self.config.M,):
            raise DimensionError(f"symbols have shape {symbols.shape}, not (N, {self.config.M}): split the lists off")
        return pack(symbols, self.config.K)

    def unpack(self, packed: NDArray[np.uint8]) -> NDArray[Any]:
        """The inverse of `pack`: symbols [N, M]."""
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

    def spec(self, dtype: object, search: EncodeConfig | None = None, **notes: Any) -> CodesSpec:
        """What codes of this model are, for the store and the stream; the model must have been saved.

        Args:
            dtype: element type of the source.
            search: A, B and T in place of the model's own.
            notes: more for the field that says how they were encoded.
        """
        if self.header is None:
            raise UsageError("save the model first: codes name the model that made them")
        encoder = (search or self.search.fast).model_dump()
        encoder |= {"device": self.plan.device.type, "precision": self.plan.precision} | notes
        c = self.config
        sizes = {"D": c.D, "M": c.M, "K": c.K, "ivf_K": c.ivf_K}
        return CodesSpec(model=self.header.fingerprint, **sizes, dtype=str(dtype), encoder=encoder)

    def _checked(self, vectors: NDArray[Any] | Tensor) -> Tensor:
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

    def _checked_lists(self, lists: NDArray[Any] | Tensor, count: int) -> Tensor:
        numbers = lists.cpu().numpy() if isinstance(lists, Tensor) else lists
        if not self.config.ivf_K:
            raise UsageError("this model has no IVF, so it takes no list numbers")
        return torch.from_numpy(check_lists(numbers, count, self.config.ivf_K).astype(np.int64))
