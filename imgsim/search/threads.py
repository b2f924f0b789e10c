"""Work on blocks of rows, shared by the cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any


def count_threads() -> int:
    """Return OMP_NUM_THREADS, or as many threads as there are cores if it is no number from 1 on."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else os.cpu_count() or 1


THREADS = count_threads()


@cache
def helpers() -> ThreadPoolExecutor:
    """Return the threads that take part beside the caller's own, started once: that takes as long as many queries."""
    return ThreadPoolExecutor(THREADS - 1, "imgsim")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads; Windows has no forks
    os.register_at_fork(after_in_child=helpers.cache_clear)


def run_blocks(work: Callable[[int], Any], count: int, size: int) -> list:
    """Call work(first) for every block of `size` rows of `count`, which releases the interpreter's lock.

    Returns:
        What the calls return, in any order.
    """
    firsts = iter(range(0, count, size))

    def take() -> list:
        return [work(first) for first in firsts]  # each thread takes the next block that is left

    others = [helpers().submit(take) for _ in range(min(THREADS, -(-count // size)) - 1)]
    results = take()
    for other in others:
        if not other.cancel():  # one that has not begun has nothing left to do
            results += other.result()
    return results
