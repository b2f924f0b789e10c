"""The inner loop of a search, compiled: buckets near the query, Hamming distances, exact cosines.

The arrays that a query works in are made once per block of queries and handed down. Nothing here checks bounds:
Snapshot does so before.
"""

import numpy as np
from numba import njit, uint64


@njit(inline="always")
def popcount(word):
    """Count the bits set in a 64-bit word (Warren, Hacker's Delight); compiles to one instruction."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    word = (word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return (word * uint64(0x0101010101010101)) >> uint64(56)


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


@njit(cache=True)
def nearest_codes(margins, buckets_per_table):
    """Find the codes (m, L, b) of the b buckets per table that lie nearest to queries of margins (m, L, k)."""
    squares = np.empty(margins.shape[2], np.float32)
    far, flips = np.empty((2, buckets_per_table), np.float32), np.empty((2, buckets_per_table), np.uint64)
    codes = np.empty((margins.shape[0], margins.shape[1], buckets_per_table), np.uint64)
    for i in range(margins.shape[0]):
        for t in range(margins.shape[1]):
            codes[i, t] = nearest_buckets(margins[i, t], squares, far, flips)
    return codes


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
def look_up(margins, tables, squares, far, flips, bounds, marked, candidates):
    """Stage 1: write the rows in the buckets nearest to a query to `candidates`, each row once.

    Args:
        margins: (L, k) of the query.
        tables: codes, rows and starts, see Snapshot.
        squares, far, flips: see `nearest_buckets`.
        bounds: (L, b, 2) int32 to work in: where each bucket begins and ends among the rows of its table.
        marked: (n,) uint8, all 0, to work in.
        candidates: (n + 1,) int32.

    Returns:
        How many candidates there are.
    """
    codes, rows, starts = tables
    count = len(marked)
    # Find the bounds of all buckets first: the processor can then wait for many reads at a time.
    for t in range(len(rows)):
        buckets = nearest_buckets(margins[t], squares, far, flips)
        for j, code in enumerate(buckets):
            if starts.shape[1]:
                first, last = starts[t, code], starts[t, code + uint64(1)]
            else:
                first = last = first_not_below(codes[t], code)
                while last < count and uint64(codes[t, last]) == code:
                    last += 1
            bounds[t, j, 0], bounds[t, j, 1] = first, last
    # Collect the rows. Every row is written, but the place is kept only if the row is new: no branch to mispredict.
    total = 0
    for t in range(len(rows)):
        for j in range(len(buckets)):
            for place in range(bounds[t, j, 0], bounds[t, j, 1]):
                row = rows[t, place]
                candidates[total] = row
                total += 1 - marked[row]
                marked[row] = 1
    # Leave the marks clear for the next query.
    for j in range(total):
        marked[candidates[j]] = 0
    return total


@njit
def rank(signature, signatures, rerank, distances, histogram, candidates):
    """Stage 2: move the `rerank` candidates of the smallest Hamming distance to the front, and count them.

    Args:
        signature: (words,) of the query; signatures: (n, words).
        rerank: how many candidates to keep.
        distances: (n,) int32 and histogram: (64 * words + 1,) int32 to work in.
        candidates: rows (c,).
    """
    # Count how many candidates there are at each distance.
    histogram[:] = 0
    for j in range(len(candidates)):
        distance = uint64(0)
        for word in range(len(signature)):
            distance += popcount(signatures[candidates[j], word] ^ signature[word])
        distances[j] = distance
        histogram[distance] += 1
    # Find the distance up to which all fit; at that distance as many are kept as there is room for.
    limit, room = 0, rerank
    while limit < len(histogram) - 1 and histogram[limit] <= room:
        room -= histogram[limit]
        limit += 1
    kept = 0
    for j in range(len(candidates)):
        if distances[j] < limit or (distances[j] == limit and room > 0):
            room -= distances[j] == limit
            candidates[kept] = candidates[j]
            kept += 1
    return kept


@njit(fastmath={"reassoc", "contract"})
def compare(query, vectors, candidates, cosines, best_rows, best_cosines):
    """Stage 3: write the nearest candidates (top_k,) and their cosines, best first.

    fastmath lets the sum of products use vector instructions; infinities and NaN keep their meaning.
    """
    for j in range(len(candidates)):
        cosine = np.float32(0)
        for x in range(len(query)):
            cosine += vectors[candidates[j], x] * query[x]
        cosines[j] = cosine
    room, count = len(best_rows), len(candidates)
    # Many places are filled by sorting all, few by inserting one after another.
    if room > 64:
        order = np.argsort(-cosines[:count], kind="mergesort")[:room]
        best_rows[: len(order)], best_cosines[: len(order)] = candidates[order], cosines[order]
        return
    for j in range(count):
        if j >= room and cosines[j] <= best_cosines[room - 1]:
            continue
        place = min(j, room - 1)
        while place > 0 and best_cosines[place - 1] < cosines[j]:
            best_cosines[place], best_rows[place] = best_cosines[place - 1], best_rows[place - 1]
            place -= 1
        best_cosines[place], best_rows[place] = cosines[j], candidates[j]


@njit(nogil=True, cache=True)
def search_block(query, candidate, buckets_per_table, rerank, found):
    """Answer a block of queries; the interpreter's lock is released, so that blocks share the cores.

    Args:
        query: margins (m, L, k), signatures (m, words) and vectors (m, d).
        candidate: the tables (codes, rows, starts), signatures (n, words) and vectors (n, d) of a Snapshot.
        buckets_per_table: how many buckets are looked up.
        rerank: how many candidates are compared exactly.
        found: where to write rows and cosines (m, top_k), candidates seen and compared (m,).
    """
    margins, signature, queries = query
    tables, signatures, vectors = candidate
    best_rows, best_cosines, seen, compared = found
    count, words = signatures.shape
    squares, far, flips = (
        np.empty(margins.shape[2], np.float32),
        np.empty((2, buckets_per_table), np.float32),
        np.empty((2, buckets_per_table), np.uint64),
    )
    bounds = np.empty((margins.shape[1], buckets_per_table, 2), np.int32)
    marked = np.zeros(count, np.uint8)
    candidates, distances = np.empty(count + 1, np.int32), np.empty(count, np.int32)
    cosines, histogram = np.empty(count, np.float32), np.empty(64 * words + 1, np.int32)
    for i in range(len(queries)):
        seen[i] = look_up(margins[i], tables, squares, far, flips, bounds, marked, candidates)
        compared[i] = rank(signature[i], signatures, rerank, distances, histogram, candidates[: seen[i]])
        compare(queries[i], vectors, candidates[: compared[i]], cosines, best_rows[i], best_cosines[i])
