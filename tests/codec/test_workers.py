"""Memory of a thread's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from qinco_core.codec.workers import scratch


def test_scratch_is_kept_by_a_thread_and_grows():
    first = scratch("some", (3, 4))
    first.fill_(7)
    again = scratch("some", (2, 4))
    assert again.shape == (2, 4) and again.dtype == torch.float32
    assert (again == 7).all()
    assert scratch("other", (2, 4)).data_ptr() != again.data_ptr()
    wide = scratch("some", (5, 5), torch.bfloat16)
    assert wide.shape == (5, 5) and wide.dtype == torch.bfloat16
    assert scratch("some", (100, 100)).shape == (100, 100)


def test_threads_do_not_share_scratch():
    mine = scratch("some", (8,))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: scratch("some", (8,)).data_ptr()).result()
    assert other != mine.data_ptr()
