"""Product models: the dimensions in groups, one network each, their codes side by side.

A vector v is rotated (or not), y = v R, and cut into n groups of D / n dimensions, each of which its own network
encodes in M / n steps. Symbols are interleaved: step 0 of every group, then step 1 of every group, and so on, so that
symbol s is step s // n of group s % n, and any prefix of a code is a code of every group, of no step at least.
Shapes: N vectors, D dimension, M symbols, n groups; m symbols of a prefix, X dimensions or symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qinco_core.codec.engine import Engine
from qinco_core.codec.network import Model, Network
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import map_rows
from qinco_core.config import EncodeConfig, ModelConfig

# vectors rotated at once by one core
_ROTATED_ROWS = {"cpu": 1 << 10, "cuda": 1 << 16}


class ProductNetwork(Model):
    """A whole product model, with the surface of a `Network` without an IVF.

    Attributes:
        rotation [D, D]: orthogonal; its columns in order are the dimensions of the groups. None: those of the vectors.
        parts: the network of each group.
        centroids: None; there is no IVF.
    """

    rotation: Tensor | None
    centroids: Tensor | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("rotation", torch.eye(config.D) if config.opq else None)
        self.parts = nn.ModuleList(Network(config.part) for _ in range(config.groups))

    @classmethod
    def of(cls, config: ModelConfig, parts: Sequence[Network], rotation_DD: Tensor | None) -> ProductNetwork:
        """The model of the networks of its groups, and its rotation."""
        with torch.device("meta"):  # there is nothing to fill and copy over
            network = cls(config)
        network.rotation = rotation_DD
        network.parts = nn.ModuleList(parts)
        return network.requires_grad_(False).eval()

    @property
    def networks(self) -> list[Network]:
        """The same as `parts`, typed."""
        return [part for part in self.parts if isinstance(part, Network)]

    @property
    def mean(self) -> Tensor:
        """What a code of no symbols stands for [D]."""
        mean = torch.cat([part.denormalize(center(part)) for part in self.networks])
        return mean if self.rotation is None else self.rotation @ mean

    def normalize(self, v_ND: Tensor) -> Tensor:
        """Vectors as the networks see them, one beside the other, float32 [N, D]."""
        y = v_ND if self.rotation is None else v_ND.float() @ self.rotation
        vs = y.split(self.config.part.D, dim=-1)
        return torch.cat([part.normalize(v) for part, v in zip(self.networks, vs, strict=True)], dim=-1)

    def denormalize(self, x_ND: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        xs = x_ND.split(self.config.part.D, dim=-1)
        y = torch.cat([part.denormalize(x) for part, x in zip(self.networks, xs, strict=True)], dim=-1)
        return y if self.rotation is None else y @ self.rotation.T

    def decode(self, codes_NM: Tensor, steps: int | None = None, lists_N: Tensor | None = None) -> Tensor:
        """Decode the first `steps` symbols, all by default; groups that get none are at their center.

        See `Network.decode`.
        """
        codes = codes_NM[:, : self.config.M if steps is None else steps]
        decoded = []
        for g, part in enumerate(self.networks):
            codes_Nm = codes[:, g :: len(self.parts)]
            used = codes_Nm.shape[1]
            decoded.append(part.decode(codes_Nm, used) if used else center(part).expand(len(codes), -1))
        return torch.cat(decoded, dim=1)


class ProductEngine:
    """Encodes and decodes with one engine a group, with the surface of an `Engine` without an IVF."""

    def __init__(self, network: ProductNetwork, plan: Plan) -> None:
        """Make the tables, as `Engine` does."""
        self.config = network.config
        self.plan = plan
        self._engines = [Engine(part, plan) for part in network.networks]
        self._centers = [part.denormalize(center(part)).detach().float().to(plan.device) for part in network.networks]
        self._rotation = None if network.rotation is None else network.rotation.detach().float().to(plan.device)
        self.chunk_rows = self._engines[0].chunk_rows

    @torch.no_grad()
    def encode(self, v_ND: Tensor, search: EncodeConfig, lists_N: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode vectors group by group; A, B and T are of each of them. See `Engine.encode`."""
        size = self.config.part.D
        codes = []
        for g, engine in enumerate(self._engines):
            columns = slice(g * size, (g + 1) * size)
            codes.append(engine.encode(self._view(v_ND, columns), search)[0])
        return torch.stack(codes, dim=2).flatten(1), None

    @torch.no_grad()
    def decode(self, codes_NM: Tensor, steps: int | None = None, lists_N: Tensor | None = None) -> Tensor:
        """Decode the first `steps` symbols (all by default) to vectors, float32 [N, D] on the CPU."""
        codes = codes_NM[:, : self.config.M if steps is None else steps].long()
        return map_rows(self.decode_rows, [codes], self.chunk_rows, self.plan)

    def decode_rows(self, codes_Nm: Tensor) -> Tensor:
        """Decode a few thousand codes at most; see `Engine.decode_rows`."""
        decoded = []
        for g, (engine, middle) in enumerate(zip(self._engines, self._centers, strict=True)):
            part = codes_Nm[:, g :: len(self._engines)]
            decoded.append(engine.decode_rows(part) if part.shape[1] else middle.expand(len(part), -1))
        y = torch.cat(decoded, dim=1)
        return y if self._rotation is None else y @ self._rotation.T

    def _view(self, v_ND: Tensor, columns: slice) -> Tensor:
        """The dimensions of one group [N, D / n]."""
        if self._rotation is None:
            return v_ND[:, columns]
        rotation = self._rotation[:, columns]
        return map_rows(lambda v: v.float() @ rotation, [v_ND], _ROTATED_ROWS[self.plan.device.type], self.plan)


def center(part: Network) -> Tensor:
    """What stands for a group without a symbol, normalised [X]: the mean of its first codewords.

    Zero would do under QINCo2 rules, but QINCo1 normalises by the data's range, so that zero is far from all of them.
    """
    assert part.codebook0 is not None
    return part.codebook0.mean(0)


AnyNetwork = Network | ProductNetwork
AnyEngine = Engine | ProductEngine


def network_of(config: ModelConfig, arrays: Mapping[str, NDArray[np.float32]]) -> AnyNetwork:
    """The model of `config` with these tensors, of one network or of several.

    Raises:
        ArtifactError: a tensor is missing, unknown or misshapen; the message names it.
    """
    return (ProductNetwork if config.groups > 1 else Network).from_arrays(config, arrays)


def engine_of(network: AnyNetwork, plan: Plan) -> AnyEngine:
    """The fast encoder and decoder of a model."""
    return ProductEngine(network, plan) if isinstance(network, ProductNetwork) else Engine(network, plan)
