"""How many multiplications a vector takes in each step, in the plain path and in the engine, by method §8.1."""

from __future__ import annotations

from qinco_core.config import EncodeConfig, ModelConfig

# per candidate that is not evaluated in full: a gather, a sum and the forecast of 32 numbers from half of h
_FORECAST = 32


def plain_decoding(c: ModelConfig) -> int:
    """f(c, x̂) of one codeword."""
    return _ends(c) + c.E * (c.E + c.D) + 2 * c.L * c.H * c.E


def engine_decoding(c: ModelConfig) -> int:
    """The same with tables for the codeword's part."""
    return _beam(c) + _blocks(c) + _ends(c) // 2


def plain_encoding(c: ModelConfig, search: EncodeConfig) -> int:
    """A candidates of each of B beams, chosen by their distances to G."""
    return search.B * c.K * c.D + search.A * search.B * plain_decoding(c)


def engine_encoding(c: ModelConfig, fast: EncodeConfig) -> int:
    """T pairs of all beams, of which `full` go through the network."""
    inside = c.E * c.D if c.D > c.E else 0
    candidate = _blocks(c) + (c.E * c.E if inside else _ends(c) // 2)
    beams = fast.B * (c.K * c.D + _beam(c) + inside + _ends(c) // 2)
    if not fast.full:
        return beams + fast.T * candidate
    return beams + fast.B * _FORECAST * (c.D + c.E) + fast.T * _FORECAST * c.H // 2 + fast.full * candidate


def _ends(c: ModelConfig) -> int:
    return 2 * c.E * c.D if c.projects else 0


def _beam(c: ModelConfig) -> int:
    return c.E * c.D + c.H * c.E


def _blocks(c: ModelConfig) -> int:
    return c.H * c.E + 2 * (c.L - 1) * c.H * c.E
