"""What options mean: durations, sizes, metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_cli import options
from qinco_core.errors import UsageError


@given(st.integers(0, 48), st.integers(0, 59), st.integers(0, 59), st.integers(1, 999))
def test_durations_add_up(h, m, s, ms):
    assert options.parse_duration(f"{h}h{m}m{s}s{ms}ms") == pytest.approx(3600 * h + 60 * m + s + ms / 1000)
    assert options.parse_duration(f"{ms}") == ms


@given(st.integers(1, 1000), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "b"]))
def test_sizes_are_powers_of_1024(count, unit, end):
    factor = 1024 ** ("KMGT".index(unit) + 1)
    assert options.parse_size(f"{count}{unit}{end}") == count * factor
    assert options.parse_size(f"{count}.5{unit.lower()}{end}") == int((count + 0.5) * factor)
    assert options.parse_size(f"{count}{end}") == count


@pytest.mark.parametrize("text", ["", "s", "1x", "-1s", "1 s", "0", "0ms", "1.s", "mss"])
def test_no_duration(text):
    with pytest.raises(UsageError, match=r"no duration|no time"):
        options.parse_duration(text)


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "0.1", "1GG", "1 G", "1e9", "nan"])
def test_no_size(text):
    with pytest.raises(UsageError, match="no size: write it like 512M or 2G"):
        options.parse_size(text)


def test_metrics():
    assert [options.check_metric(name) for name in ("l2", "ip", "cosine")] == ["l2", "ip", "cosine"]
    with pytest.raises(UsageError, match="there are l2, ip, cosine"):
        options.check_metric("L2")
