"""The measures, against brute force and cases computed by hand."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsim.evaluation import (
    BLOCK,
    exact_neighbours,
    label_precision,
    mean_average_precision,
    participation_ratio,
    recall_at_k,
)
from imgsim.hashing import normalise


def brute_force(queries, candidates, k):
    """Cosines (m, k) of the nearest candidates in double precision, and those of all (m, n)."""
    q, c = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates))
    return -np.sort(-(q @ c.T), axis=1)[:, :k], q @ c.T


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32))
def test_exact_neighbours_equal_brute_force(n, m, k, dim, seed):
    rng = np.random.default_rng(seed)
    queries, candidates = rng.integers(1, 4, (m, dim)), rng.integers(1, 4, (n, dim))  # small numbers: many ties
    rows, cosines = exact_neighbours(queries, candidates, k)
    best, every = brute_force(queries, candidates, k)
    assert rows.shape == cosines.shape == (m, min(n, k)) and rows.dtype == np.int64 and cosines.dtype == np.float32
    np.testing.assert_allclose(cosines, best, atol=1e-6)  # float32 rounds at 6e-8
    np.testing.assert_allclose(np.take_along_axis(every, rows, axis=1), best, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_of_equally_near_candidates_the_first_comes_first():
    candidates = np.eye(4)[[0, 1, 1, 1, 0]]
    assert exact_neighbours(np.eye(4)[[1]], candidates, 5)[0].tolist() == [[1, 2, 3, 0, 4]]


def test_exact_neighbours_of_more_queries_than_a_block():
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((BLOCK + 50, 8)), rng.standard_normal((40, 8))
    rows, _ = exact_neighbours(queries, candidates, 3)
    expected = np.argsort(-brute_force(queries, candidates, 3)[1], axis=1)[:, :3]
    assert (rows == expected).mean() > 0.99  # all but what float32 cannot tell apart


def test_exact_neighbours_do_not_depend_on_lengths():
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((5, 8)), rng.standard_normal((40, 8))
    scaled = candidates * rng.uniform(0.1, 10, (40, 1))
    np.testing.assert_allclose(
        exact_neighbours(queries, candidates, 4)[1], exact_neighbours(queries, scaled, 4)[1], atol=1e-6
    )


@pytest.mark.parametrize(
    ("found", "true", "recall"),
    [
        ([[1, 2, 3]], [[1, 2, 3]], 1),
        ([[3, 1, 2]], [[1, 2, 3]], 1),  # in any order
        ([[1, -1, -1]], [[1, 2, 3]], 1 / 3),
        ([[-1, -1], [5, 6]], [[1, 2], [6, 7]], 1 / 4),
        ([[1, 2, 3, 4, 5]], [[5, 6]], 1 / 2),  # a longer list may be searched for a shorter one
    ],
)
def test_recall_by_hand(found, true, recall):
    assert recall_at_k(found, true) == pytest.approx(recall)


def test_recall_wants_an_answer_to_each_query():
    with pytest.raises(ValueError):
        recall_at_k([[1, 2]], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("ids", "query_labels", "k", "precision"),
    [
        ([[0, 1]], [7], 2, 1 / 2),
        ([[0, 1], [2, 1]], [7, 8], 2, 3 / 4),
        ([[0, 1, 2]], [7], 1, 1),  # only the first k places count
        ([[0, -1]], [7], 2, 1 / 2),  # a missing place is wrong
        ([[-1, -1]], [9], 2, 0),  # and is not the last candidate, whose label is 9
        ([[3]], [9], 5, 1 / 5),  # as is one beyond the list's end
    ],
)
def test_label_precision_by_hand(ids, query_labels, k, precision):
    assert label_precision(ids, [7, 8, 8, 9], query_labels, k) == pytest.approx(precision)


def test_label_precision_counts_five_places_by_default():
    assert label_precision([[0] * 5 + [1] * 5], [7, 8], [7]) == 1


def test_participation_ratio_of_a_round_cloud_is_its_dimension():
    cloud = np.random.default_rng(0).standard_normal((20000, 12))
    assert participation_ratio(cloud + 5) == pytest.approx(12, rel=0.01)  # d / (1 + d/n) for n points


def test_participation_ratio_of_a_line_is_one():
    assert participation_ratio(np.outer(np.arange(10), [1, 2, 3]) + 4) == pytest.approx(1)


@given(st.integers(2, 20), st.integers(1, 8), st.integers(0, 2**32))
def test_participation_ratio_equals_the_eigenvalue_formula(n, dim, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)) * rng.uniform(0.1, 3, dim)
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T)))
    assert participation_ratio(x) == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())


def test_normalise_scales_rows_to_length_one_and_keeps_zeros():
    x = np.array([[3, 4], [0, 0], [-5, 0], [1e-3, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = normalise(x)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [-1, 0], [1, 0]], rtol=1e-6)
    assert x[0, 0] == 3  # the original stays as it was


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32))
def test_normalising_twice_changes_nothing(n, dim, seed):
    rows = normalise(np.random.default_rng(seed).standard_normal((n, dim)) * 100)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(normalise(rows), rows, atol=1e-6)


def test_queries_without_a_label_do_not_count():
    ids, labels = [[0, 1], [0, 1], [2, 1]], [0, -1, -1]
    assert label_precision(ids, labels, [0, -1, -1], k=2) == 0.5 == label_precision(ids[:1], labels, [0], k=2)
    assert mean_average_precision(ids, labels, [0, -1, -1]) == 1
    assert label_precision(ids, labels, [-1, -1, -1], k=2) is None
