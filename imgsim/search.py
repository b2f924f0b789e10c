"""The candidates of an index in memory, and the search among them: rows of arrays, neither images nor files."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imgsim.hashing import Projection, pack_bits, signatures, whole
from imgsim.kernels import search_block
from imgsim.tables import LSH

THREADS = int((os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())).split(",")[0])
BLOCK, CHUNK = 64, 4096  # queries a thread answers at a time, and that are projected at a time


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array, which takes their place."""
    if len(parts) > 1:
        parts[:] = [np.concatenate(parts)]
    return parts[0]


class Candidates:
    """What a projection makes of embeddings: tables to look up, signatures to rank by, unit rows to compare."""

    def __init__(self, projection: Projection):
        self.projection = projection
        num_tables, _, hash_size = projection.planes.shape
        self.lsh = LSH(hash_size, num_tables)
        self._points: list[np.ndarray] = []  # additions wait in parts until the next search
        self._signatures: list[np.ndarray] = []
        self.total = np.zeros(len(projection.mean))  # of the unit rows, to see their mean drift

    @property
    def points(self) -> np.ndarray:
        """The embeddings as unit rows (n, d)."""
        return joined(self._points)

    @property
    def signatures(self) -> np.ndarray:
        """All bits of each candidate (n, words), see hashing.signatures."""
        return joined(self._signatures)

    def insert(self, points: np.ndarray, ids: np.ndarray, labels=None, words: np.ndarray | None = None) -> None:
        """Add unit rows (n, d) with ids (n,) and labels (n,); words are their signatures, where they are known."""
        bits = self.projection.bits(points) if words is None else self.unpack(words)
        self.lsh.add(ids, pack_bits(bits), labels)
        self._points.append(np.ascontiguousarray(points))
        self.total += points.sum(axis=0, dtype=np.float64)
        self._signatures.append(signatures(bits))

    def keep(self, kept: np.ndarray) -> None:
        """Drop all candidates but those marked in kept (n,) bool."""
        self.total -= self.points[~kept].sum(axis=0, dtype=np.float64)
        self._points, self._signatures = [self.points[kept]], [self.signatures[kept]]
        self.lsh.keep(kept)

    def unpack(self, words: np.ndarray) -> np.ndarray:
        """The bits (n, L, k) of signatures (n, words)."""
        shape = self.lsh.num_tables, self.lsh.hash_size
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=shape[0] * shape[1])
        return bits.reshape(-1, *shape)

    def overlap(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The share of the tables in which one query (1, d) and candidates (t,) have the same code: (t,)."""
        differs = self.unpack(self.signatures[rows] ^ signatures(self.projection.bits(points)))
        return (~differs.any(axis=2)).mean(axis=1)

    def search(self, points: np.ndarray, top_k: int, probes: int, rerank: int | None) -> tuple[np.ndarray, ...]:
        """The nearest candidates of unit rows (m, d), see BuildLSHTable: rows and cosines (m, top_k), padded with -1
        and NaN, how many candidates were seen (m,), and how many compared (m,)."""
        top_k, probes = whole("top_k", top_k, 1), whole("probes", probes, 0)
        rerank = len(self.lsh) if rerank is None else whole("rerank", rerank, 0)
        points = np.ascontiguousarray(points)
        found = (
            np.full((len(points), top_k), -1, np.int64),
            np.full((len(points), top_k), np.nan, np.float32),
            *np.zeros((2, len(points)), np.int64),
        )
        # Of the smallest margins that may be flipped there are enough to choose from, yet not too many to sort.
        depth = min((4 * probes + 3).bit_length(), self.lsh.hash_size, 10) if probes else 0
        lookups = self.lsh.num_tables * (1 + probes)
        candidates = self.lsh.arrays(), self.signatures, self.points

        def answer(block: slice) -> None:
            query = margins[block], words[block], chunk[block]
            search_block(query, candidates, depth, lookups, rerank, tuple(array[start:][block] for array in found))

        for start in range(0, max(len(points), 1), CHUNK):
            chunk = points[start : start + CHUNK]
            margins = self.projection.margins(chunk)  # one product, on BLAS's own threads
            words = signatures(margins > 0)
            blocks = [slice(first, min(first + BLOCK, len(chunk))) for first in range(0, len(chunk), BLOCK)]
            if len(blocks) > 1:
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(answer, blocks))
            else:
                answer(slice(0, len(chunk)))
        return found
