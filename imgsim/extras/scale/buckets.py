"""The buckets that a search looks up, where the tables lie elsewhere."""

import numpy as np

from imgsim.search.compiled import kept
from imgsim.search.probing import nearest_buckets


@kept()
def nearest_codes(margins, buckets_per_table):
    """Find the codes (m, L, b) of the b buckets per table that lie nearest to queries of margins (m, L, k)."""
    squares = np.empty(margins.shape[2], np.float32)
    far, flips = np.empty((2, buckets_per_table), np.float32), np.empty((2, buckets_per_table), np.uint64)
    codes = np.empty((margins.shape[0], margins.shape[1], buckets_per_table), np.uint64)
    for i in range(margins.shape[0]):
        for t in range(margins.shape[1]):
            codes[i, t] = nearest_buckets(margins[i, t], squares, far, flips)
    return codes
