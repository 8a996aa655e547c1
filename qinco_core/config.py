"""What a model is, how it encodes, and the presets.

Symbols: D dimension of the vectors; M quantization steps; K codewords per step; L residual blocks per
step; E embedding width (`de`); H hidden width (`dh`); A candidates pre-selected per beam (0: all K are
tried); B beam width; T candidates kept over all beams together (0: A per beam instead).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qinco_core.errors import UsageError

Rules = Literal["qinco1", "qinco2"]


class Frozen(BaseModel):
    """An immutable record that refuses unknown fields, with errors of this library."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Check `fields` and build the record.

        Raises:
            UsageError: a field is unknown, missing or out of range; the message names it.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            problems = "; ".join(_problem(p["loc"], p["msg"]) for p in error.errors())
            raise UsageError(problems) from error


def _problem(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, location))}: {message}" if location else message


class ModelConfig(Frozen):
    """What a model is: the sizes of method §2 and the rules it follows.

    `preselect` says whether steps have a pre-selection codebook G; `ivf_K` is the number of
    coarse centroids of an IVF model, 0 without one.
    """

    rules: Rules = "qinco2"
    D: int = Field(ge=1, le=65536)
    M: int = Field(default=8, ge=1, le=256)
    K: int = Field(default=256, ge=2, le=65536)
    L: int = Field(default=2, ge=1, le=64)
    E: int = Field(default=128, ge=1, le=16384)
    H: int = Field(default=256, ge=1, le=65536)
    preselect: bool = True
    ivf_K: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.K & (self.K - 1):
            below, above = 1 << (self.K.bit_length() - 1), 1 << self.K.bit_length()
            raise ValueError(f"K = {self.K} is not a power of two; use {below} or {above}")
        if self.rules == "qinco1" and self.preselect:
            raise ValueError("QINCo1 has no pre-selection codebooks: use A = 0")
        return self

    @property
    def bits(self) -> int:
        """Bits of one symbol, log2 K."""
        return self.K.bit_length() - 1

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, ceil(M log2 K / 8)."""
        return (self.M * self.bits + 7) // 8

    @property
    def projects(self) -> bool:
        """Whether W_in and W_out exist (E differs from D); otherwise they are the identity."""
        return self.E != self.D


class EncodeConfig(Frozen):
    """How vectors are encoded (method §3, §8.2).

    With T > 0 the T best (beam, codeword) pairs of all beams together are evaluated; with T = 0 the
    A best of each beam.
    """

    A: int = Field(default=16, ge=0)
    B: int = Field(default=32, ge=1)
    T: int = Field(default=0, ge=0)

    @property
    def fast(self) -> EncodeConfig:
        """The same quality with global pre-selection: T = 2B pairs, at least A (method §8.2)."""
        if self.A == 0:
            return self
        return self.model_copy(update={"T": min(self.A * self.B, max(2 * self.B, self.A))})


class Preset(Frozen):
    """A named starting point: everything of a model but its dimension, and its encoder."""

    rules: Rules = "qinco2"
    M: int = 8
    K: int = 256
    L: int
    E: int | None
    H: int
    A: int
    B: int
    about: str

    def model(self, D: int, **changes: Any) -> ModelConfig:
        """The model configuration for vectors of dimension D, with `changes` to any field."""
        fields = self.model_dump(exclude={"about", "A", "B"}) | {"D": D, "preselect": self.A > 0} | changes
        if fields["E"] is None:
            fields["E"] = D
        return ModelConfig.parse(fields)


PRESETS: dict[str, Preset] = {
    "qinco2-XS": Preset(L=1, E=64, H=128, A=8, B=8, about="trains in minutes on a laptop's CPU"),
    "qinco2-S": Preset(L=2, E=128, H=256, A=16, B=32, about="the small published model"),
    "qinco2-M": Preset(L=4, E=384, H=384, A=16, B=32, about="the medium published model"),
    "qinco2-L": Preset(L=16, E=384, H=384, A=16, B=32, about="the large published model; wants a GPU"),
    "qinco1": Preset(
        rules="qinco1", L=16, E=None, H=256, A=0, B=1, about="the first paper's model and rules; slow"
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise UsageError(f"no preset {name!r}; there are {', '.join(PRESETS)}") from None
