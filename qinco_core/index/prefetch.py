"""Asking for memory before it is needed, so that it is on its way while other work is done.

What a search reads lies at random places, list by list and row by row: no processor guesses them, and each would be
waited for. For compiled functions only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_LINE = 64  # bytes that come together


@intrinsic
def _fetch(typing: Any, address: Any) -> Any:
    """LLVM's prefetch of an address, to read it, into all caches."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@njit(nogil=True, cache=True)
def fetch_rows(array: NDArray[Any], first: int, last: int) -> None:
    """Ask for the rows first..last - 1 of an array whose rows lie one after another."""
    start, width = array.ctypes.data, np.int64(array.strides[0])
    begin = start + first * width
    for address in range(begin - begin % _LINE, start + last * width, _LINE):
        _fetch(address)  # type: ignore[call-arg]  # numba passes what it knows of types
