"""The candidates of an index, the search among them and its answers: rows of arrays, neither images nor files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from imgsim.hashing import Projection, codes_of, column_sums, signatures, whole
from imgsim.search.kernels import search_block
from imgsim.tables import LSH

THREADS = int((os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())).split(",")[0])
BLOCK, CHUNK = 64, 4096  # queries a thread answers at a time, and that are projected at a time


@dataclass(frozen=True, eq=False)  # Mapping's comparison, which knows other mappings
class Matches(Mapping):
    """The ranked answer to one query, best first; also a mapping {"id_label": overlap}, as in the article.

    ids (t,), labels (t,) (-1 where there is none), overlap (t,): the share of the tables in which query and
    match fall into the same bucket, cosine (t,): of their embeddings. candidates: how many the tables returned.
    """

    ids: np.ndarray
    labels: np.ndarray
    overlap: np.ndarray
    cosine: np.ndarray
    candidates: int

    def _pairs(self) -> dict[str, float]:
        names = (f"{i}_{label}" if label >= 0 else f"{i}" for i, label in zip(self.ids, self.labels, strict=True))
        return dict(zip(names, self.overlap.tolist(), strict=True))

    def __getitem__(self, id_label: str) -> float:
        return self._pairs()[id_label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class SearchResult:
    """Ranked answers to m queries: ids (m, top_k) int64 and cosines (m, top_k) float32, short rows padded with
    -1 and NaN; candidates_seen (m,) from the tables, compared_exactly (m,) by their cosine."""

    ids: np.ndarray
    cosines: np.ndarray
    candidates_seen: np.ndarray
    compared_exactly: np.ndarray


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
        self._total: np.ndarray | None = None  # of the unit rows, from when it is first asked for

    @property
    def points(self) -> np.ndarray:
        """The embeddings as unit rows (n, d)."""
        return joined(self._points)

    @property
    def signatures(self) -> np.ndarray:
        """All bits of each candidate (n, words), see hashing.signatures."""
        return joined(self._signatures)

    @property
    def mean(self) -> np.ndarray:
        """The mean (d,) of the unit rows, which additions may move away from the projection's."""
        if self._total is None:
            self._total = column_sums(self.points)
        return self._total / len(self.lsh)

    def insert(self, points: np.ndarray, ids: np.ndarray, labels=None, words: np.ndarray | None = None) -> None:
        """Add unit rows (n, d) with ids (n,) and labels (n,); words are their signatures, where they are known."""
        words = self.projection.signatures(points) if words is None else words
        self.lsh.add(ids, self.codes(words), labels)
        self._points.append(np.ascontiguousarray(points))
        if self._total is not None:
            self._total += column_sums(points)
        self._signatures.append(words)

    def fill(self, ids, labels, signatures, embeddings, codes, rows, starts) -> None:
        """Hold the candidates of another index, given by its arrays, and nothing else."""
        self.lsh.fill(ids, labels, (codes, rows, starts))
        self._points, self._signatures, self._total = [embeddings], [signatures], None

    def keep(self, kept: np.ndarray) -> None:
        """Drop all candidates but those marked in kept (n,) bool."""
        if self._total is not None:
            self._total -= column_sums(self.points[~kept])
        self._points, self._signatures = [self.points[kept]], [self.signatures[kept]]
        self.lsh.keep(kept)

    def codes(self, words: np.ndarray) -> np.ndarray:
        """The codes (n, L) in signatures (n, words)."""
        return codes_of(words, self.lsh.hash_size, self.lsh.num_tables)

    def overlap(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The share of the tables in which one query (1, d) and candidates (t,) have the same code: (t,)."""
        return (self.codes(self.signatures[rows]) == self.codes(self.projection.signatures(points))).mean(axis=1)

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
        lookups = min(1 + probes, 1 << self.lsh.hash_size)
        candidates = self.lsh.arrays(), self.signatures, self.points

        def answer(block: slice) -> None:
            query = margins[block], words[block], queries[block]
            search_block(query, candidates, lookups, rerank, tuple(array[start:][block] for array in found))

        for start in range(0, len(points), CHUNK):
            chunk = points[start : start + CHUNK]
            margins = self.projection.margins(chunk)  # one product, on BLAS's own threads
            words = signatures((margins > 0).reshape(len(chunk), -1))
            # Candidates whose points have no dimensions are ranked by their signatures only.
            queries = np.ascontiguousarray(chunk[:, : self.points.shape[1]])
            blocks = [slice(first, min(first + BLOCK, len(chunk))) for first in range(0, len(chunk), BLOCK)]
            if len(blocks) > 1:
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(answer, blocks))
            else:
                answer(slice(0, len(chunk)))
        return found
