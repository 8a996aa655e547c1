"""Pairs of beams and codewords: what is compiled against what torch says, and both against the definition."""

from __future__ import annotations

import pytest
import torch

from qinco_core.codec import pairs


@pytest.mark.parametrize("K", [2, 16, 64, 256])
@pytest.mark.parametrize(("B", "T"), [(10, 1), (10, 8), (10, 20), (1, 2), (1, 1), (3, 6)])
def test_best_pairs_are_the_best(K: int, B: int, T: int) -> None:
    torch.manual_seed(K)
    score, norm = torch.randn(6, B, K), torch.rand(6, B)
    values = (score + norm[..., None]).flatten(1)
    best = values.topk(T, largest=False).values
    for pick in (pairs.best_pairs, pairs.torch_best_pairs):
        found, value = pick(score, norm, T)
        assert torch.equal(value.sort(1).values, best.sort(1).values)
        assert torch.equal(values.gather(1, found), value)
        assert all(len(row.unique()) == T for row in found)


def test_best_pairs_of_equals_and_of_all() -> None:
    found, value = pairs.best_pairs(torch.zeros(2, 4, 16), torch.zeros(2, 4), 5)
    assert not value.any() and all(len(row.unique()) == 5 for row in found)
    found, _ = pairs.best_pairs(torch.randn(2, 4, 16), torch.rand(2, 4), 64)
    assert torch.equal(found.sort(1).values, torch.arange(64).expand(2, -1))


def test_best_pairs_of_nan_are_pairs() -> None:
    """What is not finite is refused before it comes here; if it does come, nothing is read that is not there."""
    found, _ = pairs.best_pairs(torch.full((2, 4, 16), torch.nan), torch.zeros(2, 4), 5)
    assert ((found >= 0) & (found < 64)).all()


def test_pairs_split_into_rows_of_beams_and_codewords() -> None:
    pair = torch.tensor([[0, 17, 63], [16, 15, 32]])
    beam, k = pairs.split(pair, 4, 16)
    assert beam.tolist() == [0, 1, 3, 5, 4, 6]
    assert k.tolist() == [0, 1, 15, 0, 15, 0]


def test_sums_and_gaps() -> None:
    torch.manual_seed(0)
    book, rows = torch.randn(8, 21), torch.randn(5, 21)
    k, beam, z = torch.randint(8, (40,)), torch.randint(5, (40,)), torch.randn(40, 21)
    total, gap = book[k] + rows[beam], rows[beam] - book[k]
    assert torch.equal(pairs.add("test", book, k, rows, beam), total)
    assert torch.equal(pairs.torch_add(book, k, rows, beam), total)
    assert torch.equal(pairs.add_relu("test", book, k, rows, beam, 21), total.relu())
    assert torch.equal(pairs.add_relu("test", book, k, rows, beam, 7), total[:, :7].relu())
    for gaps in (pairs.squared_gaps, pairs.torch_squared_gaps):
        torch.testing.assert_close(gaps(rows, beam, book, k, None), gap.square().sum(1))
        torch.testing.assert_close(gaps(rows, beam, book, k, z), (gap - z).square().sum(1))
