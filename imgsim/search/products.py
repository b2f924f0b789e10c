"""Vectors times a coder's matrices, compiled, and what is kept of the products: codes and sketches.

A row gets the same numbers whatever rows stand beside it, in an index as in a query: a stored image finds itself. BLAS
does not promise that, and its threads would compete with those of a search.
"""

import numpy as np
from numba import njit, uint64

from imgsim.search.compiled import kept


@njit(fastmath={"reassoc", "contract"})
def multiply(block, mean, matrix, products):
    """Write (block - mean) @ matrix, (b, d) by (d, c), to `products`.

    Four numbers of a row at a time share one pass over its products.
    """
    products[:] = 0
    dim = matrix.shape[0]
    for first in range(0, dim, 4):
        if first + 4 <= dim:
            for i in range(len(block)):
                v0, v1 = block[i, first] - mean[first], block[i, first + 1] - mean[first + 1]
                v2, v3 = block[i, first + 2] - mean[first + 2], block[i, first + 3] - mean[first + 3]
                for c in range(matrix.shape[1]):
                    products[i, c] += (v0 * matrix[first, c] + v1 * matrix[first + 1, c]) + (
                        v2 * matrix[first + 2, c] + v3 * matrix[first + 3, c]
                    )
        else:
            for x in range(first, dim):
                for i in range(len(block)):
                    value = block[i, x] - mean[x]
                    for c in range(matrix.shape[1]):
                        products[i, c] += value * matrix[x, c]


@njit(fastmath={"contract"})
def project(product, planes, margins):
    """Write the margins (L k,) to all planes: a product (r,) times planes (r, L k), or as it is if there are none."""
    margins[:] = 0
    if not len(planes):
        margins[:] = product
    for x in range(len(planes)):
        for j in range(len(margins)):
            margins[j] += product[x] * planes[x, j]


@kept()
def write_margins(vectors, coder, words, margins):
    """Write the margins (n, L k) of vectors (n, d) to all planes of a coder whose sketches have so many words."""
    mean, matrix, planes = coder
    products = np.empty((1, matrix.shape[1]), np.float32)
    for i in range(len(vectors)):
        multiply(vectors[i : i + 1], mean, matrix, products)
        project(products[0, : matrix.shape[1] - 64 * words], planes, margins[i])


@kept(nogil=True)
def encode_block(vectors, coder, codes, sketches, factors):
    """Write the codes (b, L) and sketches (b, words + 1) of vectors (b, d), see Coder.

    Args:
        vectors: (b, d) float32.
        coder: mean (d,), matrix (d, r + 64 words) and planes (r, L k) of a Coder.
        codes: (b, L).
        sketches, factors: (b, words + 1) uint64, all 0, and the same memory as (b, 2 words + 2) float32.
    """
    mean, matrix, planes = coder
    words, hash_size = sketches.shape[1] - 1, planes.shape[1] // codes.shape[1]
    width = matrix.shape[1] - 64 * words
    products, margins = np.empty((len(vectors), matrix.shape[1]), np.float32), np.empty(planes.shape[1], np.float32)
    multiply(vectors, mean, matrix, products)
    for i in range(len(vectors)):
        project(products[i, :width], planes, margins)
        for t in range(codes.shape[1]):
            code = uint64(0)
            for bit in range(hash_size):
                code |= uint64(margins[t * hash_size + bit] > 0) << uint64(bit)
            codes[i, t] = code
        total = square = offset = np.float32(0)
        for j in range(64 * words):
            value = products[i, width + j]
            sketches[i, j >> 6] |= uint64(value > 0) << uint64(j & 63)
            total += abs(value)
        for x in range(len(mean)):
            centred = vectors[i, x] - mean[x]
            square += centred * centred
            offset += centred * mean[x]
        factors[i, 2 * words] = square / total if total > 0 else np.float32(0)
        factors[i, 2 * words + 1] = offset
