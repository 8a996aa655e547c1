"""Published pairwise decoders (method §7), in and out.

Theirs is a sum of tables alone, x̂ = centroid + Σ_t T_t[pair], in float32; ours an additive decoder and int8 tables on
top of it. An imported one keeps its tables as they are, beside additive codebooks of zeros; an exported one has the
additive codebooks spread over its tables. Shapes: M symbols, K codewords, D dimension, T tables, L lists, X symbols
that re-code a list's centroid.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qinco_core.config import ModelConfig
from qinco_core.errors import ForeignFileError, LineageError, UsageError
from qinco_core.interop.torchfile import floats_of, integers_of, tensor_of, write_torch
from qinco_core.store import Header, Parent, StoredPairwise, save_pairwise
from qinco_core.store.pairwise import MOST_TABLES

_SYMBOLS, _PAIRS, _TABLES = "ivf_code_map", "combine_mvals_m", "codebook_MKD"


def is_pairwise(content: Mapping[str, Any]) -> bool:
    """Whether a torch file's fields are those of a pairwise decoder."""
    return _PAIRS in content and _TABLES in content


def import_pairwise(
    content: Mapping[str, Any], path: Path, config: ModelConfig, model: Header, out: str | Path, *, force: bool
) -> Header:
    """Write a published pairwise decoder as a pairwise artifact with float32 tables.

    Args:
        content: the fields of the torch file.
        path: that file, for messages.
        config: the model whose codes it decodes, an IVF model.
        model: its header.
        out: the artifact.
        force: overwrite what is there.

    Raises:
        UsageError: the model has no IVF.
        LineageError: the decoder has other sizes than the model's.
        ForeignFileError: a tensor is missing, misshapen, or not of finite floats or numbers in range.
        OutputExistsError, StorageError: the output exists, or the disk is full or read-only.
    """
    if not config.ivf_K:
        raise UsageError(f"{path} decodes codes of an IVF model, but this model has none: name another with --model")
    symbols, pairs, tables = (tensor_of(content, name, path) for name in (_SYMBOLS, _PAIRS, _TABLES))
    _check_shapes(symbols, pairs, tables, path)
    lists, (T, R, D), K = len(symbols), tables.shape, config.K
    if (lists, R, D) != (config.ivf_K, K * K, config.D):
        raise LineageError(
            f"{path} is for {lists} lists, K² = {R} and D = {D}, but the model has {config.ivf_K} lists, K = {K} and "
            f"D = {config.D}: name the model it was made for with --model"
        )
    arrays: dict[str, NDArray[Any]] = {
        "additive": np.zeros((config.M, K, D), np.float32),
        "mean": np.zeros(D, np.float32),
        "pairs": integers_of(pairs, config.M + symbols.shape[1], _PAIRS, path),
        "scale": np.array(1.0, np.float32),
        "list_symbols": integers_of(symbols, K, _SYMBOLS, path),
    }
    figures = {"imported": path.name}
    parents = (Parent(model.kind, model.fingerprint),)
    stored = floats_of(tables, (T, R, D), _TABLES, path)
    return save_pairwise(out, config, arrays, stored, training=figures, parents=parents, force=force)


def export_pairwise(stored: StoredPairwise, out: str | Path, *, force: bool) -> None:
    """Write a pairwise artifact in the published format, which sums tables alone.

    Raises:
        UsageError: it is of a model without an IVF, or no table has one of the symbols, so that the additive
            codebook of that symbol has no place.
        OutputExistsError, StorageError: the output exists, or the disk is full or read-only.
    """
    config = stored.header.config
    if not config["ivf_K"]:
        raise UsageError(f"{stored.path} is of a model without an IVF; the published format knows only those with one")
    tables = stored.tables_TRD.astype(np.float32) * np.float32(stored.scale)
    _add_codebooks(tables, stored)
    content = {
        _SYMBOLS: torch.from_numpy(stored.list_symbols_LX.astype(np.int64)),
        _PAIRS: torch.from_numpy(stored.pairs_2T.astype(np.int64)),
        _TABLES: torch.from_numpy(tables),
    }
    write_torch(out, content, force=force)


def _add_codebooks(tables_TRD: NDArray[np.float32], stored: StoredPairwise) -> None:
    """Add every additive codebook to the first table that has its symbol."""
    for m, book_KD in enumerate(stored.additive_MKD):
        if not book_KD.any():
            continue
        K, D = book_KD.shape
        found = np.argwhere(np.equal(stored.pairs_2T.T, m))
        if not len(found):
            raise UsageError(
                f"{stored.path}: no table has symbol {m}, so the published format has no place for its additive "
                "codebook; fit more tables with qinco pairwise --tables"
            )
        t, side = found[0]
        square_KKD = tables_TRD[t].reshape(K, K, D)
        square_KKD += book_KD[:, None] if side == 0 else book_KD[None]


def _check_shapes(symbols: torch.Tensor, pairs: torch.Tensor, tables: torch.Tensor, path: Path) -> None:
    wanted = {_SYMBOLS: (symbols, 2, "[lists, symbols]"), _PAIRS: (pairs, 2, "[2, tables]")}
    wanted[_TABLES] = tables, 3, "[tables, K², D]"
    for name, (tensor, dims, shape) in wanted.items():
        if tensor.dim() != dims:
            raise ForeignFileError(f"{path}: {name} has the shape {list(tensor.shape)}; it has to be {shape}")
    if len(tables) > MOST_TABLES:
        raise ForeignFileError(f"{path}: {_TABLES} has {len(tables)} tables; at most {MOST_TABLES} can be summed")
    if tuple(pairs.shape) != (2, len(tables)):
        raise ForeignFileError(
            f"{path}: {_PAIRS} has the shape {list(pairs.shape)}, not {[2, len(tables)]} as {_TABLES} wants"
        )
