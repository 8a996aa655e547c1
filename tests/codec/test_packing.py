"""Packing of symbols into bytes."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from qinco_core.codec.packing import pack, truncate, unpack
from qinco_core.errors import DimensionError, UsageError


@st.composite
def symbols(draw):
    K = 1 << draw(st.integers(1, 16))
    shape = draw(st.integers(0, 5)), draw(st.integers(1, 19))
    return draw(arrays(np.int64, shape, elements=st.integers(0, K - 1))), K


def as_integer(row):
    """The definition: the row as one little-endian number."""
    return int.from_bytes(bytes(row), "little")


@settings(deadline=None)
@given(symbols())
def test_packing_is_the_sum_of_shifted_symbols(case):
    codes, K = case
    bits, M = K.bit_length() - 1, codes.shape[1]
    packed = pack(codes, K)
    assert packed.dtype == np.uint8 and packed.shape == (len(codes), -(-M * bits // 8))
    for row, code in zip(packed, codes, strict=True):
        assert as_integer(row) == sum(int(k) << (bits * m) for m, k in enumerate(code))
    unpacked = unpack(packed, M, K)
    assert unpacked.dtype == (np.uint8 if K <= 256 else np.uint16)
    np.testing.assert_array_equal(unpacked, codes)


@settings(deadline=None)
@given(symbols(), st.data())
def test_truncated_code_is_the_code_of_the_prefix(case, data):
    codes, K = case
    M = codes.shape[1]
    m = data.draw(st.integers(1, M))
    np.testing.assert_array_equal(truncate(pack(codes, K), M, K, m), pack(codes[:, :m], K))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64])
def test_every_integer_dtype_packs_alike(dtype):
    codes = np.array([[1, 2, 15], [0, 7, 8]])
    np.testing.assert_array_equal(pack(codes.astype(dtype), 16), pack(codes, 16))


def test_strided_input():
    codes = np.arange(48).reshape(6, 8)
    np.testing.assert_array_equal(pack(codes[::2, ::-2], 256), codes[::2, ::-2])
    packed = pack(codes, 65536)
    np.testing.assert_array_equal(unpack(packed[::-1], 8, 65536), codes[::-1])


def test_bytes_of_the_common_cases():
    assert pack(np.array([[1, 2, 255]]), 256).tobytes() == b"\x01\x02\xff"
    assert pack(np.array([[1, 0x0203]]), 65536).tobytes() == b"\x01\x00\x03\x02"
    assert pack(np.array([[1, 0, 1]]), 2).tobytes() == b"\x05"


@pytest.mark.parametrize("codes", [[[256]], [[-1]], [[0.5]]])
def test_symbols_out_of_range_are_refused(codes):
    with pytest.raises(UsageError):
        pack(np.array(codes), 256)


def test_wrong_sizes_are_refused():
    packed = np.zeros((2, 3), np.uint8)
    for call in (lambda: unpack(packed, 4, 256), lambda: pack(np.zeros(3, int), 256)):
        with pytest.raises(DimensionError):
            call()
    for call in (
        lambda: unpack(packed.astype(int), 3, 256),
        lambda: unpack(packed, 3, 255),
        lambda: truncate(packed, 3, 256, 4),
        lambda: truncate(packed, 3, 256, 0),
    ):
        with pytest.raises(UsageError):
            call()
