"""What codes are, in a file or in a stream: their sizes, their model, their rows, their fingerprint.

N vectors, D dimension, M symbols of a code, K values of a symbol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from qinco_core.config import Frozen, ModelConfig
from qinco_core.errors import DimensionError, LineageError, UsageError
from qinco_core.store.artifact import DIGEST_BYTES, Header, canonical_json, fingerprint_of
from qinco_core.store.lists import Lists, check_lists, list_bits, pack_lists

Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]
_FOUND_OUT = ("agreement",)


class CodeRows(NamedTuple):
    """Rows of codes: packed symbols uint8 [n, code_bytes], ids int64 [n], list numbers int32 [n] of an IVF model."""

    codes: Codes
    ids: Ids | None = None
    lists: Lists | None = None

    def cut(self, start: int, stop: int) -> CodeRows:
        """Rows start to stop (exclusive) of these; they share memory."""
        return CodeRows(*(None if part is None else part[start:stop] for part in self))  # type: ignore[arg-type]

    @staticmethod
    def joined(parts: Sequence[CodeRows]) -> CodeRows:
        """The rows of one or more such, one after the other; they may share memory."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*parts, strict=True)
        return CodeRows(*(None if column[0] is None else np.concatenate(column) for column in columns))  # type: ignore[arg-type]

    def stored(self, ivf_K: int) -> list[NDArray[Any]]:
        """The rows as they are stored: codes; ids, if any; the bit stream of the list numbers, if any."""
        parts: list[NDArray[Any]] = [np.ascontiguousarray(self.codes)]
        if self.ids is not None:
            parts.append(np.ascontiguousarray(self.ids, dtype="<i8"))
        if self.lists is not None:
            parts.append(pack_lists(self.lists, ivf_K))
        return parts


class CodesSpec(Frozen):
    """What codes are made of.

    `model` is the fingerprint of the model that made them, `dtype` the source's element type, and
    `encoder` free JSON on how they were made (device, precision, A, B, T). Codes of an IVF model have
    list numbers, below `ivf_K`; it is 0 for others.
    """

    model: str
    D: int
    M: int
    K: int
    dtype: str
    encoder: dict[str, Any] = Field(default_factory=dict)
    ivf_K: int = 0

    @model_validator(mode="after")
    def _check(self) -> CodesSpec:
        ModelConfig.parse({"D": self.D, "M": self.M, "K": self.K})
        try:
            list_bits(self.ivf_K)
            canonical_json(self.encoder)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, ceil(M log2 K / 8)."""
        return ModelConfig(D=self.D, M=self.M, K=self.K).code_bytes

    @property
    def job(self) -> CodesSpec:
        """Without what `encoder` says that is found out and may differ between runs of one job."""
        return self.model_copy(update={"encoder": {k: v for k, v in self.encoder.items() if k not in _FOUND_OUT}})

    @property
    def bytes_per_vector(self) -> float:
        """What a vector takes: its packed code, and the bits of its list number if there is one."""
        return self.code_bytes + list_bits(self.ivf_K) / 8

    def fields(self) -> dict[str, Any]:
        """All that is to be stored, `code_bytes` included; `ivf_K` only where there are lists."""
        fields = self.model_dump(mode="json") | {"code_bytes": self.code_bytes}
        return fields if self.ivf_K else {name: value for name, value in fields.items() if name != "ivf_K"}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> CodesSpec:
        """Read what `fields` gave, with any other keys beside.

        Raises:
            UsageError: a field is missing or wrong.
        """
        spec = cls.parse({name: fields[name] for name in cls.model_fields if name in fields})
        if fields.get("code_bytes") != spec.code_bytes:
            raise UsageError(f"code_bytes {fields.get('code_bytes')} does not follow from M and K")
        return spec


def check_lineage(
    codes_spec: CodesSpec, model_header: Header, *, codes: object = "the codes", model: object = "the model"
) -> None:
    """Check that the model made the codes; `codes` and `model` name them in the message, as paths do.

    Raises:
        LineageError: it did not.
    """
    if codes_spec.model != model_header.fingerprint:
        raise LineageError(
            f"{codes} were made by the model {codes_spec.model} (D = {codes_spec.D}, M = {codes_spec.M}, "
            f"K = {codes_spec.K}), but {model} is {model_header.fingerprint}; "
            "use that model, or encode again with this one"
        )


class ContentHash:
    """Running hash of packed codes, ids and list numbers; the same however the rows are cut into batches."""

    def __init__(self, *, with_ids: bool, with_lists: bool = False) -> None:
        self._codes = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._ids = hashlib.blake2b(digest_size=DIGEST_BYTES) if with_ids else None
        self._lists = hashlib.blake2b(digest_size=DIGEST_BYTES) if with_lists else None
        self.count = 0

    def update(self, rows: CodeRows) -> None:
        """Add rows."""
        self._codes.update(np.ascontiguousarray(rows.codes).data)
        if self._ids is not None and rows.ids is not None:
            self._ids.update(np.ascontiguousarray(rows.ids, dtype="<i8").data)
        if self._lists is not None and rows.lists is not None:
            self._lists.update(np.ascontiguousarray(rows.lists, dtype="<i4").data)
        self.count += len(rows.codes)

    def content(self) -> dict[str, Any]:
        """The hashes so far, as JSON: `count`, `codes`, `ids` or null, and `lists` where there are any."""
        content = {
            "count": self.count,
            "codes": self._codes.hexdigest(),
            "ids": None if self._ids is None else self._ids.hexdigest(),
        }
        return content if self._lists is None else content | {"lists": self._lists.hexdigest()}

    def fingerprint(self, spec: CodesSpec) -> str:
        """The fingerprint of codes with these rows."""
        sizes = {"model": spec.model, "M": spec.M, "K": spec.K} | ({"ivf_K": spec.ivf_K} if spec.ivf_K else {})
        return fingerprint_of({"kind": "codes"} | sizes | self.content())


def check_rows(
    codes: NDArray[Any], ids: ArrayLike | None, lists: ArrayLike | None, spec: CodesSpec, *, with_ids: bool
) -> CodeRows:
    """Check rows that are to be written: codes uint8 [n, code_bytes]; ids and list numbers of integers [n] or None.

    Raises:
        DimensionError: a shape does not fit.
        UsageError: a dtype does not fit, ids or list numbers are missing, not wanted, or out of range.
    """
    if codes.dtype != np.uint8:
        raise UsageError(f"packed codes are uint8, not {codes.dtype}; pack the symbols first")
    if codes.ndim != 2 or codes.shape[1] != spec.code_bytes:
        raise DimensionError(f"packed codes have shape {codes.shape}; these need (n, {spec.code_bytes})")
    if with_ids != (ids is not None):
        raise UsageError("every batch of these codes needs ids" if with_ids else "these codes carry no ids")
    if (spec.ivf_K > 0) != (lists is not None):
        raise UsageError(
            "codes of an IVF model need list numbers" if spec.ivf_K else "codes without an IVF have no list numbers"
        )
    checked = None if lists is None else check_lists(np.asarray(lists), len(codes), spec.ivf_K)
    return CodeRows(codes, None if ids is None else _checked_ids(ids, len(codes)), checked)


def _checked_ids(ids: ArrayLike, count: int) -> Ids:
    numbers = np.asarray(ids)
    if numbers.shape != (count,):
        raise DimensionError(f"{count} codes have ids of shape {numbers.shape}; give one each")
    if numbers.dtype.kind not in "iu":
        raise UsageError(f"ids are integers, not {numbers.dtype}")
    if numbers.dtype == np.uint64 and numbers.size and numbers.max() > np.iinfo(np.int64).max:
        raise UsageError("an id is above 2^63 - 1; ids are signed 64-bit integers")
    return numbers.astype("<i8", copy=False)
