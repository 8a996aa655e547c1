"""The QINCo2 model as torch modules, in the plain form of method §2.

Shapes: N vectors, D dimension, K codewords, E embedding width, H hidden width, R rank, L residual blocks;
`...` any leading shape. Everything here works on normalised vectors unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qinco_core.config import ModelConfig
from qinco_core.errors import ArtifactError

Factors = tuple[Tensor, ...]
"""A matrix as the product of these, the last of which multiplies first."""


def product(x: Tensor, factors: Factors, bias: Tensor | None = None) -> Tensor:
    """The matrix times x, plus the bias, in the dtype of x."""
    for matrix in factors[:0:-1]:
        x = F.linear(x, matrix.to(x.dtype))
    return F.linear(x, factors[0].to(x.dtype), bias)


class Step(nn.Module):
    """One quantization step: a codebook, its network f(c, x̂), and the pre-selection codebook G.

    W_cat is one matrix, `w_cat`, or the product of `w_cat_out` [E, R] and `w_cat_in` [R, E + D].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K, L, E, H, R = config.D, config.K, config.L, config.E, config.H, config.rank
        self.residual_output = config.rules == "qinco2"
        self.codebook = nn.Parameter(torch.zeros(K, D))
        self.preselect = nn.Parameter(torch.zeros(K, D)) if config.preselect else None
        self.w_in = nn.Parameter(torch.zeros(E, D)) if config.projects else None
        self.w_out = nn.Parameter(torch.zeros(D, E)) if config.projects else None
        self.w_cat = None if R else nn.Parameter(torch.zeros(E, E + D))
        self.w_cat_out = nn.Parameter(torch.zeros(E, R)) if R else None
        self.w_cat_in = nn.Parameter(torch.zeros(R, E + D)) if R else None
        self.b_cat = nn.Parameter(torch.zeros(E))
        self.w_up = nn.Parameter(torch.zeros(L, H, E))
        self.w_down = nn.Parameter(torch.zeros(L, E, H))

    @property
    def concatenation(self) -> Factors:
        """W_cat, whole or as its two factors."""
        return tuple(w for w in (self.w_cat, self.w_cat_out, self.w_cat_in) if w is not None)

    @property
    def concatenation_parts(self) -> tuple[Factors, Factors]:
        """W_cat,z [E, E] and W_cat,x [E, D]: the columns that multiply z and those that multiply x̂."""
        *left, right = self.concatenation
        E = len(self.b_cat)
        return (*left, right[:, :E]), (*left, right[:, E:])

    def forward(self, c: Tensor, xhat: Tensor) -> Tensor:
        """f(c, x̂) of method §2.

        Args:
            c: codewords [..., D].
            xhat: the reconstructions they refine [..., D].

        Returns:
            What to add to x̂ [..., D].
        """
        z = c if self.w_in is None else F.linear(c, self.w_in)
        z = z + product(torch.cat([z, xhat], dim=-1), self.concatenation, self.b_cat)
        for up, down in zip(self.w_up, self.w_down, strict=True):
            z = z + F.linear(F.relu(F.linear(z, up)), down)
        out = z if self.w_out is None else F.linear(z, self.w_out)
        return c + out if self.residual_output else out


class Model(nn.Module):
    """What is stored as tensors by name beside a `ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor by name, float32, as the model artifact stores them."""
        return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_arrays(cls, config: ModelConfig, arrays: Mapping[str, NDArray[np.float32]]) -> Self:
        """The model of `config` with these tensors.

        Raises:
            ArtifactError: a tensor is missing, unknown or misshapen; the message names it.
        """
        with torch.device("meta"):  # names and shapes alone: there is nothing to fill and copy over
            model = cls(config)
        expected = model.state_dict()
        if wrong := sorted(expected.keys() ^ arrays.keys()):
            state = "missing" if wrong[0] in expected else "unknown"
            raise ArtifactError(f"tensor {wrong[0]} is {state}: these are not the tensors of {config!r}")
        for name, tensor in expected.items():
            if tuple(tensor.shape) != arrays[name].shape:
                raise ArtifactError(f"tensor {name} has shape {arrays[name].shape}, not {tuple(tensor.shape)}")
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(False).eval()


class Network(Model):
    """A whole model of one network: normalisation, the first codebook or the coarse centroids, and the steps.

    Attributes:
        mean [D], std []: x = (v − mean) / std.
        codebook0 [K, D]: the plain codebook of step 0; None with an IVF.
        centroids [ivf_K, D]: the frozen coarse codebook, normalised; None without an IVF.
        steps: M − 1 networks, or M with an IVF.
    """

    mean: Tensor
    std: Tensor
    centroids: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config.D))
        self.register_buffer("std", torch.ones(()))
        if config.ivf_K:
            self.register_buffer("centroids", torch.zeros(config.ivf_K, config.D))
            self.codebook0 = None
        else:
            self.centroids = None
            self.codebook0 = nn.Parameter(torch.zeros(config.K, config.D))
        self.steps = nn.ModuleList(Step(config) for _ in range(config.M - (self.codebook0 is not None)))

    def normalize(self, v_ND: Tensor) -> Tensor:
        """Vectors as the network sees them, float32 [N, D]."""
        return (v_ND.float() - self.mean) / self.std

    def denormalize(self, x_ND: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return x_ND * self.std + self.mean

    def start(self, codes_NM: Tensor, lists_N: Tensor | None = None) -> tuple[Tensor, int]:
        """Where decoding starts: x̂ [N, D] and the number of symbols it has used (1, or 0 with an IVF)."""
        if self.codebook0 is not None:
            return self.codebook0[codes_NM[:, 0].long()], 1
        if self.centroids is None or lists_N is None:
            raise ValueError("an IVF model decodes from list numbers: pass lists_N")
        return self.centroids[lists_N.long()], 0

    def decode(self, codes_NM: Tensor, steps: int | None = None, lists_N: Tensor | None = None) -> Tensor:
        """Decode the first `steps` symbols by the plain chain of method §2.

        Args:
            codes_NM: symbols, any integer dtype [N, ≥ steps].
            steps: how many symbols to use; all by default. Any prefix is a valid code.
            lists_N: list numbers [N], for an IVF model.

        Returns:
            Normalised reconstructions, float32 [N, D].
        """
        steps = self.config.M if steps is None else steps
        xhat, used = self.start(codes_NM, lists_N)
        for m in range(used, steps):
            step = self.steps[m - used]
            assert isinstance(step, Step)
            xhat = xhat + step(step.codebook[codes_NM[:, m].long()], xhat)
        return xhat
