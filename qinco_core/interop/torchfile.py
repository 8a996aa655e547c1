"""torch files read as data: tensors, numbers and text, never objects whose making would run code."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qinco_core.errors import ForeignFileError
from qinco_core.files import atomic_output, existing_file
from qinco_core.interop.zips import check_zip
from qinco_core.vectors.npz import DAMAGE

# torch's reader interprets the file's bytes, and damaged ones make it raise nearly anything
_DAMAGE = (*DAMAGE, pickle.UnpicklingError, AttributeError, AssertionError)
# numbers and arrays of numpy, which logs and schedulers are full of: data, though torch does not count them as such
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
_PLAIN: list[Any] = [
    *(np.dtype, np.ndarray),
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")),
    # their home was renamed in numpy 2
    *((_SCALAR, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")),
    *((_ARRAY, f"numpy.{home}.multiarray._reconstruct") for home in ("core", "_core")),
]
# a file of the time before torch wrote zip files: three of numbers before the one that matters
_PICKLES = 4


def read_torch(path: str | Path) -> dict[str, Any]:
    """The dict of a torch file, tensors on the CPU.

    Raises:
        InputNotFoundError: it is not there.
        ForeignFileError: it is damaged, no torch file, no dict, or holds objects whose loading would run code.
    """
    path = existing_file(path)
    check_zip(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            warnings.simplefilter("ignore")  # of the pickle's age; what matters is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        if objects := _objects(path):
            raise ForeignFileError(
                f"{path} is a pickle of Python objects ({', '.join(objects)}), which are made by running code when it "
                "is loaded: refused. Where it was made, save the state dict instead: torch.save({'model': "
                "model.state_dict(), 'parameters': {...}, 'data_dim': D}, ...)"
            ) from error
        raise ForeignFileError(
            f"{path} cannot be read as a torch file ({_reason(error)}); it is damaged, or something else"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ForeignFileError(f"{path} holds a {type(content).__name__}, not named fields; it is no published file")
    return content


def _objects(path: Path) -> list[str]:
    """Names of what a pickle would import, as far as they are not plain data; loads nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _DAMAGE:
        return _named_in_old_pickle(path)
    return sorted(found)[:5]


def _named_in_old_pickle(path: Path) -> list[str]:
    """The same of a bare pickle, which torch does not inspect."""
    names: set[str] = set()
    try:
        with path.open("rb") as handle:
            for _ in range(_PICKLES):
                for operation, argument, _ in pickletools.genops(handle):
                    if operation.name in ("GLOBAL", "INST"):
                        names.add(str(argument).replace(" ", "."))
    except Exception:
        # whatever damaged bytes make pickletools raise: there is no more to be told
        pass
    plain = ("collections.OrderedDict", "torch.", "builtins.dict", "numpy.")
    return sorted(name for name in names if not name.startswith(plain))[:5]


def _reason(error: BaseException) -> str:
    """What torch says is wrong, without its advice to load the file all the same."""
    found = re.search(r"WeightsUnpickler error: (.*)", str(error))
    return (found[1] if found else str(error).partition("\n")[0])[:200] or type(error).__name__


def write_torch(path: str | Path, content: Mapping[str, Any], *, force: bool = False) -> None:
    """Write a dict of tensors and plain values, which `read_torch` reads back.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
        StorageError: the disk is full or read-only.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with atomic_output(path, force=force) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def tensor_of(fields: Mapping[str, Any], name: str, path: Path) -> Tensor:
    """The tensor called `name`.

    Raises:
        ForeignFileError: it is missing, no tensor, or one that says to be larger than its numbers in the file.
    """
    if name not in fields:
        raise ForeignFileError(f"{path}: {name} is missing; it is no file of this kind, or of another version")
    value = fields[name]
    if not isinstance(value, Tensor):
        raise ForeignFileError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise ForeignFileError(f"{path}: {name} is a sparse, quantized or empty tensor; save it as a plain one")
    # a few numbers said to be repeated, which a file of a few bytes could fill the memory with
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ForeignFileError(
            f"{path}: {name} has the shape {list(value.shape)} but fewer numbers, repeated; save it .contiguous()"
        )
    return value


def floats_of(tensor: Tensor, shape: tuple[int, ...], name: str, path: Path) -> NDArray[np.float32]:
    """A tensor as float32 of that shape.

    Raises:
        ForeignFileError: it has another shape, is not of floats, or holds NaN or infinity, also once in float32.
    """
    if tuple(tensor.shape) != shape:
        raise ForeignFileError(f"{path}: {name} has the shape {list(tensor.shape)}, not {list(shape)}")
    if not tensor.dtype.is_floating_point:
        raise ForeignFileError(f"{path}: {name} is of {_dtype(tensor)}, not of floats")
    array = tensor.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(array).all():
        raise ForeignFileError(f"{path}: {name} holds NaN or infinity, so it is unusable")
    return array


def integers_of(tensor: Tensor, end: int, name: str, path: Path) -> NDArray[np.int64]:
    """A tensor as int64, all its entries from 0 to end − 1.

    Raises:
        ForeignFileError: it is not of integers, or an entry is beyond.
    """
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ForeignFileError(f"{path}: {name} is of {_dtype(tensor)}, not of integers")
    array = tensor.detach().to(torch.int64).contiguous().numpy()
    if array.size and not 0 <= array.min() <= array.max() < end:
        raise ForeignFileError(f"{path}: {name} has numbers from {array.min()} to {array.max()}, not 0 to {end - 1}")
    return array


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
