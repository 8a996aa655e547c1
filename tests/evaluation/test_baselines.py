from __future__ import annotations

import numpy as np
import pytest

from qinco_core.errors import DimensionError, UsageError
from qinco_core.evaluation.baselines import baseline_names, run_baseline, usual_baselines


@pytest.mark.parametrize(("name", "code_bytes"), [("PQ", 4), ("OPQ", 2), ("RQ", 4), ("LSQ", 2), ("PRQ", 4), ("SQ", 8)])
def test_a_baseline_measures_what_it_decodes(learn, base, name, code_bytes):
    xb = base[:300]
    result = run_baseline(name, learn, xb, code_bytes, seed=1, threads=1)
    assert (result.name, result.bytes) == (name, code_bytes)
    assert result.decoded.shape == xb.shape
    assert result.decoded.dtype == np.float32
    squared = np.square(result.decoded.astype(np.float64) - xb).sum(axis=1).mean()
    assert result.mse == pytest.approx(squared, rel=1e-9)
    # coarse as they are, these codes explain real vectors far better than their mean does
    assert 0.2 < result.relative_mse < 0.75
    assert min(result.train_seconds, result.encode_rate, result.decode_rate) > 0
    assert str(code_bytes) in result.note


def test_one_code_is_of_the_size_it_says(learn, base):
    """256 vectors are their own codewords: one byte codes them without error."""
    xt = np.unique(learn, axis=0)[:256]
    result = run_baseline("PQ", xt, xt, 1, seed=1, threads=1)
    assert result.mse == 0
    more = np.unique(learn, axis=0)[:512]
    assert len(np.unique(run_baseline("PQ", more, more, 1, seed=1, threads=1).decoded, axis=0)) == 256


def test_more_bytes_and_wider_beams_lower_the_error(learn, base):
    def error(code_bytes, beam):
        return run_baseline("RQ", learn[:1000], base[:500], code_bytes, seed=1, threads=1, beam=beam).mse

    assert error(4, 1) > error(4, 8) > error(6, 8)


@pytest.mark.parametrize("name", ["PQ", "OPQ"])
def test_dimensions_that_bytes_do_not_divide_are_filled_up(learn, base, name):
    result = run_baseline(name, learn[:, :21], base[:200, :21], 2, seed=1, threads=1)
    assert result.decoded.shape == (200, 21)
    assert "21 dimensions filled up with zeros to 22" in result.note
    assert result.relative_mse < 0.6


def test_the_seed_decides_the_result(learn, base):
    first, again, other = (run_baseline("PQ", learn, base[:100], 2, seed=seed, threads=1).decoded for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_threads_are_given_back(learn, base):
    import faiss

    before = faiss.omp_get_max_threads()
    run_baseline("PQ", learn, base[:10], 2, seed=1, threads=before + 1)
    assert faiss.omp_get_max_threads() == before


def test_a_code_of_one_bit_per_dimension_is_coarse(learn, base):
    few, many = (run_baseline("RaBitQ", learn, base[:300], size, seed=1, threads=1) for size in (12, 24))
    assert 1 > few.relative_mse > many.relative_mse > 0.2
    assert "128 principal components" in many.note


def test_what_cannot_be_is_refused(learn, base):
    assert baseline_names() == (*usual_baselines(), "PRQ", "SQ", "RaBitQ")
    with pytest.raises(UsageError, match="PQ, OPQ, RQ, LSQ, PRQ, SQ, RaBitQ"):
        run_baseline("VQ", learn, base, 2, seed=1)
    with pytest.raises(UsageError, match="no PRQ of 3 bytes"):
        run_baseline("PRQ", learn, base, 3, seed=1)
    with pytest.raises(UsageError, match="no SQ of 65 bytes for 128 dimensions"):
        run_baseline("SQ", learn, base, 65, seed=1)
    for size in (8, 25):
        with pytest.raises(UsageError, match="9 to 24 bytes"):
            run_baseline("RaBitQ", learn, base, size, seed=1)
    with pytest.raises(UsageError, match="no PQ of 8 bytes for 4 dimensions"):
        run_baseline("PQ", learn[:, :4], base[:, :4], 8, seed=1)
    with pytest.raises(UsageError, match="256 training vectors or more, not 100"):
        run_baseline("LSQ", learn[:100], base, 2, seed=1)
    with pytest.raises(UsageError, match="at least one vector"):
        run_baseline("PQ", learn, base[:0], 2, seed=1)
    with pytest.raises(UsageError, match="0 threads"):
        run_baseline("PQ", learn, base, 2, seed=1, threads=0)
    with pytest.raises(DimensionError, match="one D"):
        run_baseline("PQ", learn, base[:, :64], 2, seed=1)
