"""The arrays of an index at one moment, and the search among them."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imgsim.hashing import Projection, check_integer, pack_bits, unpack_codes
from imgsim.search.kernels import search_block
from imgsim.tables import sort_codes

THREADS = int((os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())).split(",")[0])
BLOCK, CHUNK = 64, 4096  # queries that a thread answers at a time, and queries projected at a time


@dataclass(frozen=True)
class Snapshot:
    """What a projection makes of n candidates: tables to look up, signatures to rank by, vectors to compare.

    Nothing in it ever changes, so any number of threads may search it.

    Attributes:
        projection: planes and mean.
        ids: (n,) int64; labels: (n,) int64, -1 if there is none; vectors: (n, d) float32 of length 1.
        signatures: all bits of each candidate (n, words) uint64, see `hashing.pack_bits`.
        codes, rows, starts: the sorted tables (L, ...), see `tables.sort_codes`.
    """

    projection: Projection
    ids: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    signatures: np.ndarray
    codes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    def __post_init__(self):
        # Compiled code checks no bounds: arrays of unequal length never get that far.
        lengths = {len(self.ids), len(self.labels), len(self.vectors), len(self.signatures), self.rows.shape[1]}
        if len(lengths) != 1:
            raise ValueError(f"The arrays of an index must have one length, not {sorted(lengths)}.")

    @classmethod
    def build(cls, projection: Projection, vectors: np.ndarray, ids, labels, signatures=None) -> Snapshot:
        """Hash vectors (n, d) and sort them into tables.

        Args:
            projection: planes and mean.
            vectors: (n, d) float32; (n, 0) together with signatures, if candidates are to be ranked only.
            ids, labels: (n,) int64.
            signatures: (n, words) uint64 if they are known already.
        """
        signatures = projection.signatures(vectors) if signatures is None else signatures
        num_tables, _, hash_size = projection.planes.shape
        tables = [sort_codes(column, hash_size) for column in unpack_codes(signatures, hash_size, num_tables).T]
        codes, rows, starts = (np.stack(arrays) for arrays in zip(*tables, strict=True))
        return cls(projection, ids, labels, np.ascontiguousarray(vectors), signatures, codes, rows, starts)

    def __len__(self) -> int:
        return len(self.ids)

    def code_table(self, signatures: np.ndarray) -> np.ndarray:
        """Return the codes (m, L) in signatures (m, words)."""
        num_tables, _, hash_size = self.projection.planes.shape
        return unpack_codes(signatures, hash_size, num_tables)

    def overlap(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the share of the tables in which one query (1, d) and candidates at rows (t,) have the same code."""
        return (self.code_table(self.signatures[rows]) == self.code_table(self.projection.signatures(query))).mean(
            axis=1
        )

    def search(self, queries: np.ndarray, top_k: int, probes: int, rerank: int | None) -> tuple[np.ndarray, ...]:
        """Find the nearest candidates of queries (m, d), vectors of length 1; see BuildLSHTable for the stages.

        Returns:
            Rows (m, top_k) int64 and cosines (m, top_k) float32, best first, padded with -1 and NaN; how many
            candidates were seen (m,) and how many were compared (m,).
        """
        top_k, probes = check_integer(top_k, "top_k", 1), check_integer(probes, "probes", 0)
        rerank = len(self) if rerank is None else check_integer(rerank, "rerank", 0)
        found = (
            np.full((len(queries), top_k), -1, np.int64),
            np.full((len(queries), top_k), np.nan, np.float32),
            np.zeros(len(queries), np.int64),
            np.zeros(len(queries), np.int64),
        )
        buckets_per_table = min(1 + probes, 1 << self.projection.planes.shape[2])
        candidates = (self.codes, self.rows, self.starts), self.signatures, self.vectors

        def answer(block: slice) -> None:
            query = margins[block], signatures[block], compared[block]
            results = tuple(array[start:][block] for array in found)
            search_block(query, candidates, buckets_per_table, rerank, results)

        for start in range(0, len(queries), CHUNK):
            chunk = np.ascontiguousarray(queries[start : start + CHUNK])
            margins = self.projection.margins(chunk)  # one product, on BLAS's own threads
            signatures = pack_bits((margins > 0).reshape(len(chunk), -1))
            # Candidates whose vectors have no dimensions are ranked by their signatures only.
            compared = np.ascontiguousarray(chunk[:, : self.vectors.shape[1]])
            blocks = [slice(first, min(first + BLOCK, len(chunk))) for first in range(0, len(chunk), BLOCK)]
            if len(blocks) > 1:
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(answer, blocks))
            else:
                answer(blocks[0])
        return found

    def warm_up(self) -> None:
        """Compile the search now, and say so if it has not been compiled on this machine yet."""
        if not any(Path(search_block.stats.cache_path).glob("kernels.search_block*.nbi")):
            print("Compiling the search, once on this machine (some ten seconds).", file=sys.stderr)
        self.search(self.vectors[:1], 1, 0, 0)
