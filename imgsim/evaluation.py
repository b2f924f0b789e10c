"""How good is an answer? Exact neighbours to compare with, and the measures.

Shapes: n candidates, m queries, d dimensions, k places of a ranked list. An empty place holds id -1.
"""

from __future__ import annotations

import time

import numpy as np

from imgsim.hashing import check_integer, normalise

BLOCK = 1024  # queries compared with all candidates at a time


def exact_neighbours(queries, candidates, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare every query (m, d) with every candidate (n, d).

    Returns:
        Rows (m, k) int64 and cosines (m, k) float32, nearest first.
    """
    queries, candidates = normalise(queries), normalise(candidates)
    k = min(check_integer(k, "k", 1), len(candidates))
    rows, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        similarity = queries[block] @ candidates.T
        best = np.argpartition(similarity, -k, axis=1)[:, -k:]
        values = np.take_along_axis(similarity, best, axis=1)
        order = np.lexsort((best, -values))
        rows[block] = np.take_along_axis(best, order, axis=1)
        cosines[block] = np.take_along_axis(values, order, axis=1)
    return rows, cosines


def grow_vectors(vectors: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Sample a larger set like vectors (n, d), to time a search: points between a vector and a near one, with noise.

    Returns:
        (size, d) float32 of length 1.
    """
    rng, (near, _) = np.random.default_rng(seed), exact_neighbours(vectors, vectors, 11)
    first = rng.integers(len(vectors), size=size)
    second = near[first, rng.integers(near.shape[1], size=size)]
    grown = 0.1 / np.sqrt(vectors.shape[1]) * rng.standard_normal((size, vectors.shape[1]), dtype=np.float32)
    share = rng.random((size, 1), dtype=np.float32)
    return normalise(grown + (1 - share) * vectors[first] + share * vectors[second])


def recall_at_k(found, true) -> float:
    """Return the mean share of the true neighbours' ids (m, k) that are anywhere among the found ids (m, any)."""
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(np.asarray(true), np.asarray(found), strict=True)]))


def same_label(ids, labels, query_labels) -> np.ndarray | None:
    """Tell which places of ranked lists (m, k) hold a candidate with the query's label, for the queries with a label.

    Args:
        ids: (m, k), -1 for an empty place.
        labels: (n,) of the candidates, by id, or None.
        query_labels: (m,), -1 for a query without one, or None.

    Returns:
        Booleans (queries with a label, k), or None if there are no labels.
    """
    if labels is None or query_labels is None or not (known := np.asarray(query_labels) >= 0).any():
        return None
    ids = np.asarray(ids)[known]
    return (np.asarray(labels)[ids] == np.asarray(query_labels)[known, None]) & (ids >= 0)


def label_precision(ids, labels, query_labels, k: int = 5) -> float | None:
    """Return the mean share of the first k places with the query's label, see `same_label`; an empty place is wrong."""
    right = same_label(ids, labels, query_labels)
    return None if right is None else float(right[:, :k].sum() / (len(right) * k))


def mean_average_precision(ids, labels, query_labels) -> float | None:
    """Return the mean over queries of the average precision of a ranked list, see `same_label`.

    The average precision is the precision at each place with the query's label, averaged over those places.
    """
    right = same_label(ids, labels, query_labels)
    if right is None:
        return None
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    return float(np.mean((precision * right).sum(axis=1) / np.maximum(right.sum(axis=1), 1)))


def bucket_skew(sizes) -> float:
    """Return how unequal bucket sizes are: that of an entry's own bucket over that of a bucket; 1 if all are equal."""
    sizes = np.asarray(sizes, dtype=np.float64)
    return float(np.square(sizes).sum() / sizes.sum() / sizes.mean())


def participation_ratio(embeddings) -> float:
    """Count the directions that embeddings (n, d) really use: d for a round cloud, 1 for a line.

    It is (sum of l)^2 / sum of l^2 over the eigenvalues l of their covariance.
    """
    centred = np.asarray(embeddings, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    covariance = centred.T @ centred  # its trace is the eigenvalues' sum, its squared norm that of their squares
    return float(np.trace(covariance) ** 2 / np.square(covariance).sum())


def evaluate(index, candidates, queries, labels=None, query_labels=None) -> dict:
    """Measure an index with queries.

    Args:
        index: a BuildLSHTable of the candidates, with ids 0 to n - 1.
        candidates: embeddings (n, d).
        queries: embeddings (m, d).
        labels: (n,) or None.
        query_labels: (m,) or None.

    Returns:
        The measures of a run's metrics.json; those that need labels are None if there are none.
    """
    true, cosines = exact_neighbours(queries, candidates, 10)
    found = index.search(queries, top_k=10)
    seconds = []
    for query in np.asarray(queries):
        start = time.perf_counter()
        index.search(query)
        seconds.append(time.perf_counter() - start)
    return {
        "candidates": len(candidates),
        "queries": check_integer(len(queries), "the number of queries", 1),
        "exact_label_precision_at_5": label_precision(true, labels, query_labels),
        "label_precision_at_5": label_precision(found.ids, labels, query_labels),
        "recall_at_10": float((found.cosines >= cosines[:, -1:] - 1e-6).mean()),  # a copy of the tenth will do
        "candidate_fraction": float(found.candidates_seen.mean() / len(candidates)),
        "compared_fraction": float(found.compared_exactly.mean() / len(candidates)),
        "participation_ratio": participation_ratio(candidates),
        "build_seconds": index.build_seconds,
        "query_ms": float(np.median(seconds) * 1000),
    }
