"""The inner loop of a search, compiled: buckets near the query, Hamming distances, exact cosines."""

import numpy as np
from numba import njit, uint64


@njit(inline="always")
def popcount(word):
    """How many bits of a 64-bit word are set (Warren, Hacker's Delight)."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    word = (word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return (word * uint64(0x0101010101010101)) >> uint64(56)


@njit(inline="always")
def choose_buckets(margins, depth, lookups):
    """The buckets nearest to a query, in one order across all tables: their tables and codes.

    margins (L, k): distances to the planes. A bucket is as far as the squared margins of the bits that are flipped
    to reach it add up to (Lv et al. 2007); flipped are any of a table's `depth` smallest.
    """
    tables, bits = margins.shape
    subsets = 1 << depth
    far = np.zeros((tables, subsets), np.float32)
    codes = np.zeros((tables, subsets), np.uint64)
    for t in range(tables):
        for bit in range(bits):
            if margins[t, bit] > 0:
                codes[t, 0] |= uint64(1) << uint64(bit)
        size = np.abs(margins[t])
        subset = 1
        for _ in range(depth):  # subsets double with each bit, from the smallest margin on
            bit = np.argmin(size)
            for other in range(subset):
                far[t, subset + other] = far[t, other] + size[bit] ** 2
                codes[t, subset + other] = codes[t, other] ^ (uint64(1) << uint64(bit))
            size[bit] = np.inf
            subset *= 2
    flat, codes = far.ravel(), codes.ravel()
    if lookups >= len(flat):
        chosen = np.arange(len(flat))
    else:
        chosen = np.argpartition(flat, lookups)[:lookups]
    return chosen >> depth, codes[chosen]


@njit(inline="always")
def find(codes, code):
    """The first place in sorted codes (n,) whose code is not smaller."""
    low, high = 0, len(codes)
    while low < high:
        middle = (low + high) // 2
        if uint64(codes[middle]) < code:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def search_block(query, candidate, depth, lookups, rerank, found):
    """Answer a block of queries; releases the interpreter's lock, so that blocks can share the cores.

    query: margins (m, L, k), signatures (m, words) and unit rows (m, d). candidate: the arrays of LSH.arrays,
    signatures (n, words) and unit rows (n, d). depth, lookups: see choose_buckets. rerank: how many are compared
    exactly. found: where to write rows (m, top_k), cosines (m, top_k), candidates seen (m,) and compared (m,).
    """
    margins, signature, queries = query
    (codes, rows, starts), signatures, points = candidate
    best_rows, best_cosines, seen, compared = found
    count, words = signatures.shape
    top_k = best_rows.shape[1]
    marked = np.zeros(count, np.uint8)
    candidates, distances = np.empty(count, np.int32), np.empty(count, np.int32)
    histogram = np.empty(64 * words + 1, np.int32)
    for i in range(len(queries)):
        total = 0
        chosen_tables, chosen_codes = choose_buckets(margins[i], depth, lookups)
        for t, code in zip(chosen_tables, chosen_codes):
            if starts.shape[1]:
                first, last = starts[t, code], starts[t, code + uint64(1)]
            else:
                first = last = find(codes[t], code)
                while last < count and uint64(codes[t, last]) == code:
                    last += 1
            for place in range(first, last):
                row = rows[t, place]
                if not marked[row]:
                    marked[row] = 1
                    candidates[total] = row
                    total += 1
        histogram[:] = 0
        for j in range(total):
            row = candidates[j]
            marked[row] = 0
            distance = uint64(0)
            for word in range(words):
                distance += popcount(signatures[row, word] ^ signature[i, word])
            distances[j] = distance
            histogram[distance] += 1
        # All up to a distance are compared exactly, and at that distance as many as there is room for.
        limit, room = 0, rerank
        while limit < len(histogram) - 1 and histogram[limit] <= room:
            room -= histogram[limit]
            limit += 1
        kept = 0
        for j in range(total):
            if distances[j] > limit or (distances[j] == limit and room <= 0):
                continue
            if distances[j] == limit:
                room -= 1
            row = candidates[j]
            cosine = np.float32(0)
            for x in range(points.shape[1]):
                cosine += points[row, x] * queries[i, x]
            kept += 1
            if kept > top_k and cosine <= best_cosines[i, top_k - 1]:
                continue
            place = min(kept, top_k) - 1
            while place > 0 and best_cosines[i, place - 1] < cosine:
                best_cosines[i, place], best_rows[i, place] = best_cosines[i, place - 1], best_rows[i, place - 1]
                place -= 1
            best_cosines[i, place], best_rows[i, place] = cosine, row
        seen[i], compared[i] = total, kept
