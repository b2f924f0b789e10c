"""The arrays of an index at one moment, and the search among them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from imgsim.hashing import Projection, check_integer
from imgsim.search.coder import Coder, as_factors
from imgsim.search.kernels import search_block
from imgsim.search.keys import no_keys
from imgsim.search.layout import Tables, compress, sort_tables
from imgsim.search.probing import OUT_OF_RANGE
from imgsim.search.threads import THREADS, run_blocks

MOST = 256  # queries that a thread answers at a time
WORTH = 2_000_000  # queries x (20,000 + candidates) that are worth another thread


@dataclass(frozen=True)
class Snapshot:
    """What a coder makes of n rows: tables to look up, sketches to rank by, vectors to compare.

    Nothing in it ever changes, so any number of threads may search it.

    Attributes:
        coder: projection and rotation.
        ids: (n,) int64; labels: (n,) int64, -1 if there is none; vectors: (n, d) float32 of length 1.
        sketches: (n, words + 1) uint64, see `Coder.encode`.
        keys: (n,) texts, "" if there is none.
        tables, added: of all rows but the last ones, and of these, which were added since the former were sorted.
        gone: a bit for each row, set if it was removed, and for all others of the last word: (ceil(n / 64),) uint64.
        count: rows that were not removed.
    """

    coder: Coder
    ids: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    sketches: np.ndarray
    keys: np.ndarray
    tables: Tables
    added: Tables
    gone: np.ndarray
    count: int

    def __post_init__(self):
        # Compiled code relies on these.
        tables, rows = self.tables, self.tables.rows.shape[1] + self.added.rows.shape[1]
        lengths = {len(self.ids), len(self.labels), len(self.vectors), len(self.sketches), len(self.keys), rows}
        if len(lengths) != 1 or len(self.gone) != -(-rows // 64):
            raise ValueError(f"The arrays of an index must have one length, not {sorted(lengths)}.")
        if not tables.starts.shape[1] and tables.codes.shape != tables.rows.shape:
            raise ValueError("The tables of an index need a code for each row.")

    @classmethod
    def build(cls, coder: Coder, vectors: np.ndarray, ids, labels, codes=None, sketches=None, keys=None) -> Snapshot:
        """Hash vectors (n, d) and sort them into tables.

        Args:
            coder: projection and rotation.
            vectors: (n, d) float32; (n, 0) together with codes and sketches, if candidates are to be ranked only.
            ids, labels: (n,) int64.
            codes, sketches: (n, L) and (n, words + 1) if they are known already.
            keys: (n,) texts, or None.
        """
        if codes is None:
            codes, sketches = coder.encode(vectors)
        tables = compress(*sort_tables(codes), coder.projection.planes.shape[2])
        keys = no_keys(len(vectors)) if keys is None else keys
        return cls.of_tables(coder, ids, labels, np.ascontiguousarray(vectors), sketches, keys, tables)

    @classmethod
    def of_tables(cls, coder: Coder, ids, labels, vectors, sketches, keys, tables: Tables) -> Snapshot:
        """Put together arrays of rows that are all in the tables."""
        return cls(coder, ids, labels, vectors, sketches, keys, tables, no_tables(tables), no_gone(len(ids)), len(ids))

    def __len__(self) -> int:
        return self.count

    @property
    def projection(self) -> Projection:
        """Planes and mean."""
        return self.coder.projection

    def live(self) -> np.ndarray:
        """Tell which rows were not removed: (n,) bool."""
        gone = np.unpackbits(self.gone.astype("<u8", copy=False).view(np.uint8), bitorder="little")
        return gone[: len(self.ids)] == 0

    def overlap(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the share of the tables in which one query (1, d) and candidates at rows (t,) have the same code."""
        return (self.coder.encode(self.vectors[rows])[0] == self.coder.encode(query)[0]).mean(axis=1)

    @cached_property
    def _compiled(self) -> tuple:
        vectors, sketches = np.ascontiguousarray(self.vectors), self.sketches
        return self.coder.compiled, (tuple(self.tables), tuple(self.added)), sketches, as_factors(sketches), vectors

    def search(
        self, queries: np.ndarray, top_k: int, probes: int, rerank: int | None, compare_all: bool | None = None
    ) -> tuple[np.ndarray, ...]:
        """Find the nearest candidates of queries (m, d), vectors of length 1; see BuildLSHTable for the stages.

        Args:
            queries: (m, d) float32.
            top_k, probes, rerank: see BuildLSHTable.
            compare_all: compare all candidates, seen or not; by default if there are no more than `rerank`.

        Returns:
            Rows (m, t) int64 and cosines (m, t) float32, best first, padded with -1 and NaN, where t is top_k or the
            number of candidates if that is less; how many candidates were seen (m,) and how many were compared (m,).

        Raises:
            ValueError: a number is impossible, or the index is damaged.
        """
        top_k, probes = check_integer(top_k, "top_k", 1), check_integer(probes, "probes", 0)
        if compare_all is None:
            compare_all = rerank is not None and self.count <= check_integer(rerank, "rerank", 0)
        rerank = len(self.ids) if rerank is None else min(rerank, len(self.ids))
        settings = min(1 + probes, 1 << self.projection.planes.shape[2]), rerank, compare_all
        shape = len(queries), min(top_k, self.count)
        rows, cosines = np.empty(shape, np.int64), np.empty(shape, np.float32)
        found = rows, cosines, np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64)
        queries = np.ascontiguousarray(queries)
        if not rows.size:
            return found
        size = min(max(len(queries) // (4 * THREADS), WORTH // (20_000 + len(self.ids))), MOST)

        def answer(first: int) -> int:
            block = slice(first, first + size)
            results = tuple(array[block] for array in found)
            coder, parts, *arrays = self._compiled
            return search_block(queries[block], coder, parts, *arrays, self.gone, settings, results)

        if OUT_OF_RANGE in run_blocks(answer, len(queries), size):
            raise ValueError("The index is damaged: its tables point outside it; build it again.")
        return found

    def warm_up(self) -> None:
        """Compile the search now, and say so if it has not been compiled on this machine yet."""
        place = search_block.stats.cache_path
        if not (place and any(Path(place).glob("kernels.search_block*.nbi"))):
            print("Compiling the search, once on this machine (some ten seconds).", file=sys.stderr)
        self.search(self.vectors[:1], 1, 0, 0)


def no_tables(tables: Tables) -> Tables:
    """Return tables of no rows beside these."""
    return Tables(*(array[:, :0] for array in tables))


def no_gone(rows: int) -> np.ndarray:
    """Return the bits of rows of which none was removed."""
    gone = np.zeros(-(-rows // 64), np.uint64)
    if rows % 64:
        gone[-1] = np.uint64(2**64 - (1 << rows % 64))
    return gone
