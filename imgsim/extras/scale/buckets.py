"""The buckets that a search looks up, where the tables lie elsewhere."""

from __future__ import annotations

import numpy as np
from numba import njit

from imgsim.search.coder import Coder
from imgsim.search.kernels import nearest_buckets
from imgsim.search.products import multiply, project


def nearest_codes(queries: np.ndarray, coder: Coder, buckets_per_table: int) -> np.ndarray:
    """Find the codes (m, L, b) uint64 of the b buckets per table that lie nearest to queries (m, d)."""
    num_tables, _, hash_size = coder.projection.planes.shape
    codes = np.empty((len(queries), num_tables, buckets_per_table), np.uint64)
    write_codes(np.ascontiguousarray(queries), coder.compiled, coder.rotation.shape[1], hash_size, codes)
    return codes


@njit(cache=True)
def write_codes(queries, coder, sketch_bits, hash_size, codes):
    """Write what `nearest_codes` returns."""
    mean, matrix, planes = coder
    products, margins = np.empty((1, matrix.shape[1]), np.float32), np.empty(planes.shape[1], np.float32)
    squares, room = np.empty(hash_size, np.float32), codes.shape[2]
    far, flips = np.empty((2, room), np.float32), np.empty((2, room), np.uint64)
    for i in range(len(queries)):
        multiply(queries[i : i + 1], mean, matrix, products)
        project(products[0, : matrix.shape[1] - sketch_bits], planes, margins)
        for t in range(codes.shape[1]):
            codes[i, t] = nearest_buckets(margins[t * hash_size : (t + 1) * hash_size], squares, far, flips)
