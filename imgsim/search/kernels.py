"""The inner loop of a search, compiled: buckets near the query, sketches that rank, exact cosines.

No scratch array is as long as the index, but for one bit per candidate. What is read from an index's arrays is checked
against their lengths, so that a damaged index ends in an error. Numba keeps what it compiled until this file changes:
touch it after a change of intrinsics.py, probing.py or products.py.
"""

import numpy as np
from numba import njit, uint64

from imgsim.search.compiled import kept
from imgsim.search.intrinsics import popcount, prefetch
from imgsim.search.probing import OUT_OF_RANGE, collect, find_bounds, nearest_buckets
from imgsim.search.products import multiply, project

QUERY_BITS = 4  # of each of a query's numbers (Gao and Long 2024: more bring nothing)
SCALE = 1 << 25  # estimates become whole numbers, so that their order is the same on every machine
AHEAD = 4  # candidates whose vectors are asked of the memory before they are compared


@njit
def quantise(rotated, planes):
    """Round a query's numbers (64 words,) to QUERY_BITS and slice these: bit p of number j is bit j of plane p.

    Returns:
        The smallest number and the step: number = smallest + step x its bits.
    """
    low, step = rotated.min(), (rotated.max() - rotated.min()) / np.float32((1 << QUERY_BITS) - 1)
    scale = np.float32(1) / step if step > 0 else np.float32(0)
    for word in range(planes.shape[1]):
        plane0 = plane1 = plane2 = plane3 = uint64(0)
        for j in range(64):
            level = uint64((rotated[64 * word + j] - low) * scale + np.float32(0.5))
            plane0 |= (level & uint64(1)) << uint64(j)
            plane1 |= (level >> uint64(1) & uint64(1)) << uint64(j)
            plane2 |= (level >> uint64(2) & uint64(1)) << uint64(j)
            plane3 |= (level >> uint64(3) & uint64(1)) << uint64(j)
        planes[0, word], planes[1, word], planes[2, word], planes[3, word] = plane0, plane1, plane2, plane3
    return low, step


@njit(fastmath={"reassoc", "contract"})
def compare(query, vectors, candidates, best_rows, best_cosines):
    """Stage 3: write the nearest candidates (top_k,) and their cosines: highest cosine, then lowest row first.

    fastmath lets the sum of products use vector instructions; infinities and NaN keep their meaning.
    """
    room, count = len(best_rows), len(candidates)
    many = room > 64  # places are filled by sorting all, few by inserting one after another
    cosines = np.empty(count if many else 0, np.float32)
    if many:
        candidates.sort()
    for j in range(count):
        if j + AHEAD < count:
            for offset in range(0, 4 * vectors.shape[1], 64):
                prefetch(vectors, np.int64(candidates[j + AHEAD]), offset)
        row, cosine = candidates[j], np.float32(0)
        for x in range(vectors.shape[1]):
            cosine += vectors[row, x] * query[x]
        if many:
            cosines[j] = cosine
            continue
        place = min(j, room - 1)
        if j >= room and not better(cosine, row, best_cosines[place], best_rows[place]):
            continue
        while place > 0 and better(cosine, row, best_cosines[place - 1], best_rows[place - 1]):
            best_cosines[place], best_rows[place] = best_cosines[place - 1], best_rows[place - 1]
            place -= 1
        best_cosines[place], best_rows[place] = cosine, row
    if many:
        order = np.argsort(-cosines, kind="mergesort")[:room]
        best_rows[: len(order)], best_cosines[: len(order)] = candidates[order], cosines[order]


@njit(inline="always")
def better(cosine, row, other_cosine, other_row):
    """Tell whether a candidate comes before another one."""
    return cosine > other_cosine or (cosine == other_cosine and row < other_row)


@njit
def estimate(candidates, sketches, factors, bits, line, keys):
    """Estimate the cosines of candidates (c,) with a query as whole numbers (c,), see sketches.py.

    A key is an estimate and, to order equal ones, the row: the higher the better.
    """
    words, (slope, base, total) = bits.shape[1], line
    for j in range(len(candidates)):
        # Ones where the sketch and a plane of the query have one, weighted; and in the upper half, those of the sketch.
        row, both = uint64(candidates[j]), 0
        for word in range(words):
            sketch = sketches[row, word]
            both += (
                popcount(sketch & bits[0, word])
                + (popcount(sketch & bits[1, word]) << 1)
                + (popcount(sketch & bits[2, word]) << 2)
                + (popcount(sketch & bits[3, word]) << 3)
                + (popcount(sketch) << 32)
            )
        weighted, ones = np.float32(both & 0xFFFFFFFF), np.float32(both >> 32)
        value = factors[row, 2 * words] * (slope * weighted + base * ones - total)
        value = min(max(value + factors[row, 2 * words + 1], np.float32(-16)), np.float32(16))
        keys[j] = (np.int64(value * np.float32(SCALE)) << 32) - np.int64(row)


@njit
def select(keys, rerank, bins):
    """Move the `rerank` highest keys (c,) to the front, by counting how many fall into equal bins (b,)."""
    low, high = keys.min(), keys.max()
    shift = 0
    while (high - low) >> shift >= len(bins):
        shift += 1
    bins[:] = 0
    for key in keys:
        bins[uint64(key - low) >> uint64(shift)] += 1
    # Keep the bins from the highest on that fit; of the next one, the highest keys.
    limit, room = len(bins) - 1, rerank
    while bins[limit] <= room:
        room -= bins[limit]
        limit -= 1
    kept, at_edge, edge = 0, 0, np.empty(bins[limit], np.int64)
    for key in keys:
        bin = (key - low) >> shift
        if bin >= limit:  # few are
            if bin > limit:
                keys[kept] = key
                kept += 1
            else:
                edge[at_edge] = key
                at_edge += 1
    edge.sort()
    for j in range(room):
        keys[kept + j] = edge[at_edge - 1 - j]


@kept(nogil=True)
def search_block(queries, coder, parts, sketches, factors, vectors, gone, settings, found):
    """Answer a block of queries; the interpreter's lock is released, so that blocks share the cores.

    Args:
        queries: (m, d).
        coder: mean (d,), matrix (d, r + 64 words) and planes (r, L k) of a Coder.
        parts: the sorted tables of all candidates but those added last, and of these: codes, rows and starts (L, ...).
        sketches, factors: (n, words + 1) uint64, and the same memory as (n, 2 words + 2) float32.
        vectors: (n, d) float32.
        gone: a bit for each row, set if it was removed; whole words, uint64, of which all bits behind the last are set.
        settings: buckets looked up per table, candidates compared exactly, and whether to compare all there are.
        found: where to write rows and cosines (m, top_k), candidates seen and compared (m,).

    Returns:
        0, or OUT_OF_RANGE if a table points outside the index.
    """
    mean, matrix, planes = coder
    buckets_per_table, rerank, compare_all = settings
    best_rows, best_cosines, seen, compared = found
    words, num_tables = sketches.shape[1] - 1, len(parts[0][1])
    hash_size, width = planes.shape[1] // num_tables, matrix.shape[1] - 64 * words
    products, margins = np.empty((len(queries), matrix.shape[1]), np.float32), np.empty(planes.shape[1], np.float32)
    multiply(queries, mean, matrix, products)
    squares, bits = np.empty(hash_size, np.float32), np.empty((QUERY_BITS, words), np.uint64)
    far, flips = np.empty((2, buckets_per_table), np.float32), np.empty((2, buckets_per_table), np.uint64)
    bounds = np.empty((num_tables, 2, buckets_per_table, 2), np.int64)
    marked, bins = np.empty_like(gone), np.empty(512, np.int32)
    candidates, keys = np.empty(0, np.int32), np.empty(0, np.int64)
    for i in range(len(queries)):
        project(products[i, :width], planes, margins)
        # Stage 1: the rows in the nearest buckets of each table. All bounds come first, so that the processor waits
        # for many reads at a time.
        room = 0
        for t in range(num_tables):
            buckets = nearest_buckets(margins[t * hash_size : (t + 1) * hash_size], squares, far, flips)
            for part in range(2):
                codes, rows, starts = parts[part]
                held = find_bounds(buckets, codes[t], rows[t], starts[t], bounds[t, part]) if rows.shape[1] else 0
                if held == OUT_OF_RANGE:
                    return OUT_OF_RANGE
                room += held
        if room >= len(candidates):
            candidates, keys = np.empty(room + 1, np.int32), np.empty(room + 1, np.int64)
        marked[:], total = gone, 0
        for t in range(num_tables):
            for part in range(2):
                if parts[part][1].shape[1]:
                    within = bounds[t, part, : len(buckets)]
                    total = collect(parts[part][1][t], within, marked, candidates, total, sketches)
                    if total == OUT_OF_RANGE:
                        return OUT_OF_RANGE
        seen[i] = total
        # Stage 2: the candidates of the highest estimates.
        kept = min(total, rerank)
        if compare_all:
            kept = 0
            candidates = candidates if len(candidates) >= len(vectors) else np.empty(len(vectors), np.int32)
            for row in range(len(vectors)):
                candidates[kept] = row
                kept += 1 - np.int64(gone[row >> 6] >> uint64(row & 63) & uint64(1))
        elif 0 < kept < total:
            rotated = products[i, width:]
            low, step = quantise(rotated, bits)
            line = np.float32(2) * step, np.float32(2) * low, rotated.sum()
            estimate(candidates[:total], sketches, factors, bits, line, keys)
            select(keys[:total], rerank, bins)
            for j in range(kept):
                candidates[j] = -keys[j] & 0xFFFFFFFF
        # Stage 3: their cosines.
        best_rows[i], best_cosines[i] = -1, np.nan
        compare(queries[i], vectors, candidates[:kept], best_rows[i], best_cosines[i])
        compared[i] = kept
    return 0
