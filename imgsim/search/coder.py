"""What an index keeps of each vector besides itself: codes for its tables, and a sketch that ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from imgsim.hashing import Projection, code_dtype
from imgsim.search.products import encode_block, write_margins
from imgsim.search.threads import run_blocks

ROWS = 64  # encoded at a time
SKETCH_BITS = 256  # or a multiple: as many bits as a processor counts at a time


def draw_rotation(dim: int, seed: int = 0) -> np.ndarray:
    """Sample a random rotation (d, D) float32: orthonormal rows, D the next multiple of 256 from d on."""
    size = -(-dim // SKETCH_BITS) * SKETCH_BITS
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, dim)))
    return np.ascontiguousarray(rotation.T, dtype=np.float32)


@dataclass(frozen=True)
class Coder:
    """A projection and a rotation.

    A sketch is one bit per direction of the rotated x - mean: on which side it lies (RaBitQ, Gao and Long 2024). With
    s the vector of these signs and |x|1 the sum of absolute values, q . x is about

        (q - mean) . R s  x  |x - mean|^2 / |(x - mean) R|1  +  mean . (x - mean)  +  q . mean

    which is right on average over rotations. The fraction and the second term stand beside the bits as float32; the
    last term is the same for all candidates. The query keeps its numbers: only one side of the product is rounded.

    Attributes:
        projection: planes and mean.
        rotation: (d, D) float32, see `draw_rotation`.
    """

    projection: Projection
    rotation: np.ndarray

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode vectors (n, d): codes (n, L), and sketches (n, D / 64 + 1) uint64, whose last word holds the factors.

        A row's codes and sketch do not depend on the rows beside it.
        """
        vectors, count = np.ascontiguousarray(vectors, np.float32), len(vectors)
        num_tables, _, hash_size = self.projection.planes.shape
        codes = np.empty((count, num_tables), code_dtype(hash_size))
        sketches = np.zeros((count, self.rotation.shape[1] // 64 + 1), np.uint64)
        factors = as_factors(sketches)

        def encode(first: int) -> None:
            block = slice(first, first + ROWS)
            encode_block(vectors[block], self.compiled, codes[block], sketches[block], factors[block])

        run_blocks(encode, count, ROWS)
        return codes, sketches

    def margins(self, queries: np.ndarray) -> np.ndarray:
        """Return the margins (m, L, k) of queries (m, d), to the last bit those by which `encode` and a search go."""
        num_tables, _, hash_size = self.projection.planes.shape
        margins = np.empty((len(queries), num_tables * hash_size), np.float32)
        write_margins(np.ascontiguousarray(queries), self.compiled, self.rotation.shape[1] // 64, margins)
        return margins.reshape(-1, num_tables, hash_size)

    @cached_property
    def compiled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean (d,), directions or planes beside the rotation (d, r + D), and planes within the directions (r, L k)."""
        outer, inner = self.projection.factors
        matrix = np.ascontiguousarray(np.hstack([outer, self.rotation]))
        return np.ascontiguousarray(self.projection.mean), matrix, np.ascontiguousarray(inner)


def as_factors(sketches: np.ndarray) -> np.ndarray:
    """Look at sketches (n, words) uint64 as float32 (n, 2 words): the last two of a row are its factors."""
    return sketches.view(np.float32)
