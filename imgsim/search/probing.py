"""Stage 1 of a search, compiled: the buckets near a query and the rows in them. See kernels.py."""

import numpy as np
from numba import njit, uint64

from imgsim.search.intrinsics import prefetch

OUT_OF_RANGE = -1


@njit
def nearest_buckets(margins, squares, far, codes):
    """Find the buckets of one table that lie nearest to a query, its own first (Lv et al. 2007).

    The distance of a bucket is the sum of the squared margins of the bits that are flipped to reach it.

    Args:
        margins: (k,) of the query to the table's planes.
        squares: (k,) float32 to work in.
        far, codes: (2, b) to work in: distances and codes of the b nearest buckets so far, and of the next round.

    Returns:
        Codes (at most b,), nearest first.
    """
    room = far.shape[1]
    # The query's own bucket: the sides of the planes that it lies on.
    code = uint64(0)
    for bit in range(len(margins)):
        squares[bit] = margins[bit] * margins[bit]
        if margins[bit] > 0:
            code |= uint64(1) << uint64(bit)
    far[0, 0], codes[0, 0] = 0, code
    # Take the bits from the smallest margin on. Each doubles the list: as it is, and with the bit flipped. Both halves
    # are in order, so that merging them keeps the nearest, as many as there is room for.
    old, count = 0, 1
    for _ in range(len(margins)):
        bit = np.argmin(squares)
        step, flip, new = squares[bit], uint64(1) << uint64(bit), 1 - old
        if count == room and far[old, count - 1] <= step:
            break  # neither this bit nor a later one leads to a nearer bucket
        squares[bit] = np.inf
        kept = flipped = 0
        while kept + flipped < room and flipped < count:
            place = kept + flipped
            if kept < count and far[old, kept] <= far[old, flipped] + step:
                far[new, place], codes[new, place] = far[old, kept], codes[old, kept]
                kept += 1
            else:
                far[new, place], codes[new, place] = far[old, flipped] + step, codes[old, flipped] ^ flip
                flipped += 1
        old, count = new, kept + flipped
    return codes[old, :count]


@njit(inline="always")
def first_not_below(codes, code):
    """Find the first place in sorted codes (n,) whose code is not smaller, by bisection."""
    low, high = 0, len(codes)
    while low < high:
        middle = (low + high) // 2
        if uint64(codes[middle]) < code:
            low = middle + 1
        else:
            high = middle
    return low


@njit
def find_bounds(buckets, codes, rows, starts, bounds):
    """Write where buckets (b,) of a table begin and end among its rows to bounds (b, 2); see tables.sort_codes.

    Returns:
        How many rows they hold, or OUT_OF_RANGE.
    """
    total = 0
    for j in range(len(buckets)):
        code = buckets[j]
        if len(starts):
            first, last = np.int64(starts[code]), np.int64(starts[code + uint64(1)])
        else:
            first = last = first_not_below(codes, code)
            while last < len(codes) and uint64(codes[last]) == code:
                last += 1
        if not 0 <= first <= last <= len(rows):
            return OUT_OF_RANGE
        bounds[j, 0], bounds[j, 1] = first, last
        prefetch(rows, first, 0)
        total += last - first
    return total


@njit
def collect(table, bounds, marked, candidates, total, sketches):
    """Write the rows in the buckets of one table that are not marked yet to `candidates`, from place `total` on.

    Every row is written, but its place is kept only if the row is new: no branch to mispredict.

    Returns:
        How many candidates there are, or OUT_OF_RANGE.
    """
    count, last_byte = uint64(64 * len(marked)), 8 * sketches.shape[1] - 1
    for bucket in range(len(bounds)):
        for place in range(bounds[bucket, 0], bounds[bucket, 1]):
            row = uint64(table[place])  # a row below 0 becomes a large one
            if row >= count:
                return OUT_OF_RANGE
            word, shift = marked[row >> uint64(6)], row & uint64(63)
            prefetch(sketches, row, 0)
            prefetch(sketches, row, last_byte)
            candidates[total] = row
            total += 1 - np.int64((word >> shift) & uint64(1))
            marked[row >> uint64(6)] = word | (uint64(1) << shift)
    return total
