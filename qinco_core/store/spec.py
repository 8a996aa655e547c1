"""What codes are, in a file or in a stream: their sizes, their model, their rows, their fingerprint.

N vectors, D dimension, M symbols of a code, K values of a symbol.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from qinco_core.config import Frozen, ModelConfig
from qinco_core.errors import DimensionError, LineageError, UsageError
from qinco_core.store.artifact import DIGEST_BYTES, Header, canonical_json, fingerprint_of

Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]


class CodesSpec(Frozen):
    """What codes are made of.

    `model` is the fingerprint of the model that made them, `dtype` the source's element type, and
    `encoder` free JSON on how they were made (device, precision, A, B, T).
    """

    model: str
    D: int
    M: int
    K: int
    dtype: str
    encoder: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> CodesSpec:
        ModelConfig.parse({"D": self.D, "M": self.M, "K": self.K})
        try:
            canonical_json(self.encoder)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, ceil(M log2 K / 8)."""
        return ModelConfig(D=self.D, M=self.M, K=self.K).code_bytes

    def fields(self) -> dict[str, Any]:
        """All that is to be stored, `code_bytes` included."""
        return self.model_dump(mode="json") | {"code_bytes": self.code_bytes}

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
    """Running hash of packed codes and ids; the same however the rows are cut into batches."""

    def __init__(self, *, with_ids: bool) -> None:
        self._codes = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._ids = hashlib.blake2b(digest_size=DIGEST_BYTES) if with_ids else None
        self.count = 0

    def update(self, codes: Codes, ids: Ids | None) -> None:
        """Add rows: codes [n, code_bytes], and ids [n] where there are ids."""
        self._codes.update(np.ascontiguousarray(codes).data)
        if self._ids is not None and ids is not None:
            self._ids.update(np.ascontiguousarray(ids, dtype="<i8").data)
        self.count += len(codes)

    def content(self) -> dict[str, Any]:
        """The hashes so far, as JSON: `count`, `codes`, and `ids` or null."""
        return {
            "count": self.count,
            "codes": self._codes.hexdigest(),
            "ids": None if self._ids is None else self._ids.hexdigest(),
        }

    def fingerprint(self, spec: CodesSpec) -> str:
        """The fingerprint of codes with these rows."""
        return fingerprint_of({"kind": "codes", "model": spec.model, "M": spec.M, "K": spec.K} | self.content())


def check_rows(
    codes: NDArray[Any], ids: ArrayLike | None, spec: CodesSpec, *, with_ids: bool
) -> tuple[Codes, Ids | None]:
    """Check rows that are to be written: codes uint8 [n, code_bytes], ids of integers [n] or None.

    Raises:
        DimensionError: a shape does not fit.
        UsageError: a dtype does not fit, or ids are missing, or not wanted.
    """
    if codes.dtype != np.uint8:
        raise UsageError(f"packed codes are uint8, not {codes.dtype}; pack the symbols first")
    if codes.ndim != 2 or codes.shape[1] != spec.code_bytes:
        raise DimensionError(f"packed codes have shape {codes.shape}; these need (n, {spec.code_bytes})")
    if with_ids != (ids is not None):
        raise UsageError("every batch of these codes needs ids" if with_ids else "these codes carry no ids")
    if ids is None:
        return codes, None
    numbers = np.asarray(ids)
    if numbers.shape != (len(codes),):
        raise DimensionError(f"{len(codes)} codes have ids of shape {numbers.shape}; give one each")
    if numbers.dtype.kind not in "iu":
        raise UsageError(f"ids are integers, not {numbers.dtype}")
    if numbers.dtype == np.uint64 and numbers.size and numbers.max() > np.iinfo(np.int64).max:
        raise UsageError("an id is above 2^63 - 1; ids are signed 64-bit integers")
    return codes, numbers.astype("<i8", copy=False)
