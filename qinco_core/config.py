"""What a model is, how it encodes, and the presets.

Symbols: D dimension of the vectors; M quantization steps; K codewords per step; L residual blocks per
step; E embedding width (`de`); H hidden width (`dh`); R rank of the concatenation matrix W_cat; A candidates
pre-selected per beam (0: all K are tried); B beam width; T candidates kept over all beams together (0: A per
beam instead); `full` of them, those with the best forecast, are evaluated to the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

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


def _without_defaults(fields: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


def _problem(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, location))}: {message}" if location else message


class ModelConfig(Frozen):
    """What a model is: the sizes of method §2 and the rules it follows.

    `preselect` says whether steps have a pre-selection codebook G; `ivf_K` is the number of
    coarse centroids of an IVF model, 0 without one. `rank` is R where W_cat is the product of two matrices
    [E, R] and [R, E + D], 0 where it is one. A product model has its dimensions in `groups` of D / groups, after
    a rotation with `opq`, and M / groups steps for each of them; L, E, H and the rank are those of a group's network.
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
    rank: int = Field(default=0, ge=0)
    groups: int = Field(default=1, ge=1)
    opq: bool = False

    @model_serializer(mode="wrap")
    def _without_later_fields(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a model that could be before there were these fields is stored, and fingerprinted, as it was then
        return _without_defaults(fields(self), rank=0, groups=1, opq=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.K & (self.K - 1):
            below, above = 1 << (self.K.bit_length() - 1), 1 << self.K.bit_length()
            raise ValueError(f"K = {self.K} is not a power of two; use {below} or {above}")
        if self.rules == "qinco1" and self.preselect:
            raise ValueError("QINCo1 has no pre-selection codebooks: use A = 0")
        if self.rank > self.E:
            raise ValueError(
                f"rank = {self.rank} is above that of W_cat, E = {self.E}: use less, or 0 for the whole matrix"
            )
        self._check_groups()
        return self

    def _check_groups(self) -> None:
        for name, size in (("D", self.D), ("M", self.M)):
            if size % self.groups:
                raise ValueError(f"{self.groups} groups do not divide {name} = {size}: use a number that does, or 1")
        if self.opq and self.groups == 1:
            raise ValueError("OPQ finds groups of dimensions, so there must be some: use 2 groups or more, or no OPQ")
        if self.ivf_K and self.groups > 1:
            raise ValueError("an IVF model is one network: train without groups, or without an IVF")

    @property
    def part(self) -> ModelConfig:
        """The model of one group; without groups, this one."""
        if self.groups == 1:
            return self
        sizes = {"D": self.D // self.groups, "M": self.M // self.groups, "groups": 1, "opq": False}
        return self.model_copy(update=sizes)

    @property
    def bits(self) -> int:
        """Bits of one symbol, log2 K."""
        return self.K.bit_length() - 1

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, ceil(M log2 K / 8)."""
        return (self.M * self.bits + 7) // 8

    @property
    def parameters(self) -> int:
        """Trained numbers of the model."""
        if self.groups > 1:
            return self.groups * self.part.parameters + (self.D**2 if self.opq else 0)
        D, K, E, H, R = self.D, self.K, self.E, self.H, self.rank
        books = K * D * (2 if self.preselect else 1)
        w_cat = R * (E + E + D) if R else E * (E + D)
        step = books + w_cat + E + 2 * self.L * H * E + (2 * E * D if self.projects else 0)
        return self.M * step if self.ivf_K else K * D + (self.M - 1) * step

    @property
    def projects(self) -> bool:
        """Whether W_in and W_out exist (E differs from D); otherwise they are the identity."""
        return self.part.D != self.E


class EncodeConfig(Frozen):
    """How vectors are encoded (method §3, §8.2).

    With T > 0 the T best (beam, codeword) pairs of all beams together are evaluated; with T = 0 the
    A best of each beam. With `full` > 0 the networks of so many of the T are evaluated to the end: of those whose
    forecast is best (`codec.forecast`).
    """

    A: int = Field(default=16, ge=0)
    B: int = Field(default=32, ge=1)
    T: int = Field(default=0, ge=0)
    full: int = Field(default=0, ge=0)

    @model_serializer(mode="wrap")
    def _without_later_fields(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(fields(self), full=0)

    @property
    def fast(self) -> EncodeConfig:
        """An encoder of the same quality that evaluates fewer candidates (method §8.2).

        T = 4 B pairs over all beams in place of the A·B, of which the 2 B of the best forecast are evaluated in full,
        and a quarter more beams, which cost less than the candidates they make up for (`docs/log.md` has the
        measurements). Where A·B is small already, all A·B pairs, but over all beams together.
        """
        if self.A == 0 or self.B == 1:
            return self
        T = max(4 * self.B, 32)
        if T >= self.A * self.B:
            return self.model_copy(update={"T": self.A * self.B})
        return self.model_copy(update={"B": 5 * self.B // 4, "T": T, "full": max(2 * self.B, 16)})


class SearchConfig(Frozen):
    """An operating point of the search cascade (method §6).

    Attributes:
        nprobe: lists looked into.
        ef: breadth of the HNSW search for them; 0: centroids are compared, those of the nearest groups or all.
        n_mid: entries that the pairwise decoder re-scores; 0: none.
        n_short: entries that the network decodes; 0: none.
        n_exact: entries compared by their original vectors, where those are given.
        rerank: the last stage. Entries that it does not reach keep the order of the stage before, after those
            that it does.
    """

    nprobe: int = Field(default=16, ge=1)
    ef: int = Field(default=0, ge=0)
    n_mid: int = Field(default=200, ge=0)
    n_short: int = Field(default=50, ge=0)
    n_exact: int = Field(default=20, ge=0)
    rerank: Literal["none", "pairwise", "qinco", "exact"] = "qinco"


Metric = Literal["l2", "ip", "cosine"]


class Preset(Frozen):
    """A named starting point: everything of a model but its dimension, and its encoder.

    E = None stands for E = D (of a group, where there are groups), rank = None for rank = H, or E where that is less.
    """

    rules: Rules = "qinco2"
    M: int = 8
    K: int = 256
    L: int
    E: int | None
    H: int
    A: int
    B: int
    rank: int | None = 0
    about: str

    def model(self, D: int, **changes: Any) -> ModelConfig:
        """The model configuration for vectors of dimension D, with `changes` to any field."""
        fields = self.model_dump(exclude={"about", "A", "B"}) | {"D": D, "preselect": self.A > 0} | changes
        groups = fields.get("groups", 1)
        if fields["E"] is None:
            fields["E"] = max(1, D // max(1, groups))
        if fields["rank"] is None:
            fields["rank"] = min(fields["H"], fields["E"])
        return ModelConfig.parse(fields)


PRESETS: dict[str, Preset] = {
    "qinco2-XS": Preset(L=1, E=64, H=128, A=8, B=8, about="trains in minutes on a laptop's CPU"),
    "qinco2-S": Preset(L=2, E=128, H=256, A=16, B=32, about="the small published model"),
    "qinco2-M": Preset(L=4, E=384, H=384, A=16, B=32, about="the medium published model"),
    "qinco2-L": Preset(L=16, E=384, H=384, A=16, B=32, about="the large published model; wants a GPU"),
    "qinco1": Preset(rules="qinco1", L=16, E=None, H=256, A=0, B=1, about="the first paper's model and rules; slow"),
    "qinco1-LR": Preset(
        rules="qinco1", L=16, E=None, H=256, A=0, B=1, rank=None, about="the same with W_cat of rank dh, for high D"
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


class TrainConfig(Frozen):
    """How a model is trained (method §4, §5, §8.5).

    Exactly one of `samples` and `seconds` is the budget. `A` and `B` are the beam that finds the symbols
    of training batches, which may be narrower than the one the model is used with.

    Attributes:
        late: share of the budget after which `late_A` and `late_B` are that beam.
        lr: peak learning rate; None: chosen from the length of the run and the size of the model.
        batch: vectors of one optimizer step, of one of its `accumulate` parts if there are several.
        passes: optimizer passes over each encoded batch before it is encoded anew.
        encode_batch: vectors encoded together.
        replace: vectors trained on before codewords that none of them used are replaced; None: those of a round.
        clip: bound on each gradient entry; 0: none.
        warmup: share of the budget in which the rate rises linearly.
        schedule: "cosine" (a quarter wave down to `floor` of the peak) or "plateau" (method §5).
        samples: training vectors to draw in all, counted once whatever `passes` is.
        epoch_size: vectors between two validations; None: as many as there are, at most 500,000.
        seconds: wall-clock budget of the training loop.
        val: how many of the last vectors are set apart for validation; None: 10,000, or a tenth if that is less.
        noise: of the initial codebooks, as a share of their standard deviation.
        augment: share of the difference of two of its neighbours that is added to a training vector: all of it where
            those trained on have an error far below that of others, less as they are nearer; 0: none.
        device: what the recipe chose these settings for; a run that goes on elsewhere keeps them.
    """

    recipe: Literal["fast", "paper"] = "fast"
    optimizer: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["cosine", "plateau"] = "cosine"
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    replace: int | None = Field(default=None, ge=1)
    clip: float = Field(default=0.1, ge=0)
    batch: int = Field(default=1024, ge=1)
    accumulate: int = Field(default=1, ge=1)
    passes: int = Field(default=3, ge=1)
    encode_batch: int = Field(default=4096, ge=1)
    A: int = Field(default=2, ge=0)
    B: int = Field(default=1, ge=1)
    late: float = Field(default=0.75, ge=0, le=1)
    late_A: int = Field(default=4, ge=0)
    late_B: int = Field(default=2, ge=1)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    floor: float = Field(default=1e-3, gt=0, le=1)
    samples: int | None = Field(default=None, ge=1)
    epoch_size: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    val: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    noise: float = Field(default=0.1, ge=0)
    kmeans_iterations: int = Field(default=10, ge=1)
    augment: float = Field(default=0.0, ge=0, le=1)
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.samples is None) == (self.seconds is None):
            raise ValueError("give a number of samples (epochs) or a time, one of the two")
        return self


def validation_size(val: int | None, vectors: int) -> int:
    """How many of a file's last vectors are for validation: `val`, or 10,000, at most a tenth."""
    return val or min(10_000, max(1, vectors // 10))
