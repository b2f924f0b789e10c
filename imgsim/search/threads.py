"""Work on blocks of rows, shared by the cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def count_threads() -> int:
    """Return OMP_NUM_THREADS, or as many threads as there are cores if it is no number from 1 on."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else os.cpu_count() or 1


THREADS = count_threads()


def run_blocks(work: Callable[[int], Any], count: int, size: int) -> list:
    """Call work(first) for every block of `size` rows of `count`, which releases the interpreter's lock."""
    firsts = range(0, count, size)
    if len(firsts) < 2 or THREADS == 1:
        return [work(first) for first in firsts]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, firsts))
