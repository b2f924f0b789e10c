"""The search in three stages, against a slow oracle; additions and removals, against a fresh index; recall."""

import warnings
from itertools import combinations, pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsim import BuildLSHTable, Projection
from imgsim.evaluation import exact_neighbours, recall_at_k
from imgsim.hashing import normalise
from imgsim.search import snapshot as search
from imgsim.search import threads as shared

# k, n and L: buckets are addressed directly from n = 2^k on, before that found by binary search.
SIZES = [(3, 300, 1), (3, 12, 6), (8, 600, 5), (8, 300, 3), (12, 300, 6), (17, 200, 4), (33, 200, 3), (64, 200, 2)]
NAMES = ("ids", "cosines", "candidates_seen", "compared_exactly")


def cone(n, m, dim=48):
    """Candidates (n, d) and queries (m, d) round one direction, with a spectrum that falls off.

    As with real embeddings, the cosine of two rows is .7 on average, and there are no clear-cut clusters.
    """
    rng = np.random.default_rng(5)
    spread = rng.standard_normal((n + m, dim)) / np.sqrt(1 + np.arange(dim) / 4)
    points = spread + 1.5 * np.linalg.norm(spread, axis=1).mean() * normalise(rng.standard_normal(dim))
    return points[:n].astype(np.float32), points[n:].astype(np.float32)


def near(n, m, dim=10):
    """Candidates (n, d) in small families, and queries (m, d) close to some: buckets of 64 bits are not all empty."""
    rng = np.random.default_rng(n)
    middles = 1 + rng.standard_normal((max(n // 8, 2), dim))
    points = middles[rng.integers(0, len(middles), n + m)] + 0.05 * rng.standard_normal((n + m, dim))
    return points[:n].astype(np.float32), points[n:].astype(np.float32)


def build(projection, candidates, labels=None, ids=None, **settings):
    """An index of candidates under this projection."""
    with mock.patch("imgsim.index.fit_projection", return_value=projection):
        return BuildLSHTable(**settings).build_from_embeddings(candidates, labels, ids)


def estimates(coder, vectors, query):
    """Estimates (n,) of the cosines with a query (d,) but for q . mean, as in the docstring of Coder, in float64."""
    mean, rotation = coder.projection.mean.astype(np.float64), coder.rotation.astype(np.float64)
    centred = vectors - mean
    rotated, turned = centred @ rotation, (query - mean) @ rotation
    low, step = turned.min(), np.ptp(turned) / 15  # the query in 4 bits
    rounded = low + step * np.floor((turned - low) / step + 0.5)
    lengths = np.square(centred).sum(axis=1) / np.maximum(np.abs(rotated).sum(axis=1), 1e-30)
    return np.where(rotated > 0, 1, -1) @ rounded * lengths + centred @ mean


def oracle(index, embeddings, query):
    """The three stages one after another in plain loops and float64.

    Returns the rows of the candidates seen, and the estimates (n,) and cosines (n,) of all.
    """
    x, q = (rows.astype(np.float64) / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (embeddings, query))
    heights = np.einsum("nd,ldk->nlk", x - index.projection.mean, index.projection.planes)
    margins = np.einsum("d,ldk->lk", q - index.projection.mean, index.projection.planes)
    seen = set()
    for t, row in enumerate(margins):
        near, buckets = np.argsort(np.abs(row))[:8], []  # for few probes no further bit need be flipped
        for size in range(len(near) + 1):
            for flipped in map(list, combinations(near, size)):
                code = row > 0
                code[flipped] ^= True
                buckets.append((np.square(row[flipped]).sum(), code))
        for _, code in sorted(buckets, key=lambda bucket: bucket[0])[: 1 + index.probes]:
            seen |= set(np.flatnonzero(((heights[:, t] > 0) == code).all(axis=1)))
    return sorted(seen), estimates(index.snapshot.coder, x, q), x @ q


@pytest.mark.parametrize("probes", [0, 1, 5])
@pytest.mark.parametrize(("hash_size", "n", "num_tables"), SIZES)
def test_a_search_equals_a_slow_oracle_of_its_stages(hash_size, n, num_tables, probes, clear):
    candidates, queries = near(n, 12)
    projection = Projection.fit(normalise(candidates), hash_size, num_tables)
    candidates, queries = (rows[clear(projection, normalise(rows))] for rows in (candidates, queries))
    assert len(candidates) >= n - 3 and len(queries) >= 10
    index = build(projection, candidates, hash_size=hash_size, num_tables=num_tables, probes=probes)
    assert (index.snapshot.tables.starts.size > 0) == (2**hash_size <= len(candidates))
    answers = [oracle(index, candidates, query) for query in queries]
    assert any(seen for seen, _, _ in answers)  # not all empty
    for index.rerank in (1, 7, None):
        result, short = index.search(queries, top_k=n), index.search(queries, top_k=3)
        for i, (seen, estimated, cosines) in enumerate(answers):
            compared = len(seen) if index.rerank is None else min(len(seen), index.rerank)
            assert (result.candidates_seen[i], result.compared_exactly[i]) == (len(seen), compared)
            found = result.ids[i, :compared]
            assert (result.ids[i, compared:] == -1).all() and np.isnan(result.cosines[i, compared:]).all()
            assert set(found) <= set(seen) and len(set(found)) == compared
            left_out = [row for row in seen if row not in found]
            if left_out and compared:  # the highest estimates are compared, but for roundings of the query
                assert estimated[left_out].max() <= estimated[found].min() + 2e-3
            np.testing.assert_allclose(result.cosines[i, :compared], cosines[found], atol=1e-6)  # float32
            assert (np.diff(result.cosines[i, :compared]) <= 0).all()
            np.testing.assert_array_equal(short.ids[i], np.pad(found, (0, 3), constant_values=-1)[:3])
        np.testing.assert_array_equal(short.candidates_seen, result.candidates_seen)
        np.testing.assert_array_equal(short.compared_exactly, result.compared_exactly)


@pytest.mark.parametrize("hash_size", [3, 8, 12, 17, 33, 64])
def test_every_candidate_finds_itself(hash_size, clear):
    candidates, _ = cone(300, 0)  # also those in the first and in the last bucket of their only table
    index = BuildLSHTable(hash_size=hash_size, num_tables=1, probes=0, rerank=None).build_from_embeddings(candidates)
    found, rows = index.search(candidates, 1).ids.ravel(), np.flatnonzero(clear(index.projection, index.vectors))
    assert len(rows) > 290 and (found[rows] == rows).all()


@pytest.mark.parametrize(("hash_size", "num_tables"), [(3, 2), (8, 10), (13, 20)])
def test_without_probes_and_limit_a_search_is_the_plain_look_up(hash_size, num_tables, clear):
    candidates, queries = cone(1000, 60)
    index = BuildLSHTable(hash_size=hash_size, num_tables=num_tables, probes=0, rerank=None)
    result = index.build_from_embeddings(candidates).search(queries, top_k=5)
    vectors, unit, codes = normalise(candidates), normalise(queries), index.projection(normalise(queries))
    for i in np.flatnonzero(clear(index.projection, unit)):
        rows = np.array(sorted({int(entry["id_label"]) for entry in index.lsh.query(codes[i])}), int)
        assert result.candidates_seen[i] == result.compared_exactly[i] == len(rows)
        if len(rows):
            _, cosines = exact_neighbours(unit[i : i + 1], vectors[rows], 5)
            ids = result.ids[i, : len(rows)]
            assert len(set(ids)) == len(ids) and set(ids) <= set(rows)
            np.testing.assert_allclose(result.cosines[i, : len(rows)], cosines[0], atol=1e-6)  # float32
            np.testing.assert_allclose(vectors[ids] @ unit[i], cosines[0], atol=1e-6)


def seen_by(index, queries):
    index.rerank = None
    result = index.search(queries, top_k=len(index))
    return [set(ids[:seen].tolist()) for ids, seen in zip(result.ids, result.candidates_seen, strict=True)]


def test_more_probes_never_lose_a_candidate():
    candidates, queries = cone(1000, 80)
    index = BuildLSHTable(hash_size=10, num_tables=6).build_from_embeddings(candidates)
    seen = []
    for index.probes in (0, 1, 2, 5, 30, 100, 1023):
        seen.append(seen_by(index, queries))
    for fewer, more in pairwise(seen):
        assert all(few <= many for few, many in zip(fewer, more, strict=True)) and fewer != more
    assert all(len(found) == 1000 for found in seen[-1])  # 2^10 buckets: all


def test_enough_probes_see_everything():
    candidates, queries = cone(200, 5)
    index = BuildLSHTable(hash_size=6, num_tables=2, probes=63, rerank=3).build_from_embeddings(candidates)
    assert (index.search(queries).candidates_seen == 200).all()
    index.probes, index.rerank = 10**6, None
    np.testing.assert_allclose(index.search(queries).cosines, exact_neighbours(queries, candidates, 10)[1], atol=1e-6)


@pytest.mark.parametrize("rerank", [0, 1, 40, 10**6, None])
def test_compared_are_as_many_as_rerank_says_or_all_that_are_seen(rerank):
    candidates, queries = cone(1000, 80)
    index = BuildLSHTable(probes=3, rerank=rerank).build_from_embeddings(candidates)
    result = index.search(queries)
    limit = np.inf if rerank is None else rerank
    seen = np.where(limit < 1000, result.candidates_seen, 1000) if rerank is not None else result.candidates_seen
    assert (result.compared_exactly == np.minimum(seen, limit)).all()  # all, if there are no more than that
    assert ((result.ids >= 0).sum(axis=1) == np.minimum(result.compared_exactly, 10)).all()


@pytest.mark.parametrize("m", [0, 1, 63, 64, 65, 300])
@pytest.mark.parametrize("threads", [1, 4])
def test_many_queries_get_the_answers_that_each_gets_alone(m, threads, monkeypatch, clear):
    monkeypatch.setattr(shared, "THREADS", threads)
    candidates, queries = cone(1000, m)
    index = BuildLSHTable(hash_size=10, probes=2, rerank=30).build_from_embeddings(candidates)
    result = index.search(queries)
    assert result.ids.shape == result.cosines.shape == (m, 10)
    assert result.candidates_seen.shape == result.compared_exactly.shape == (m,)
    same = []
    for i in np.flatnonzero(clear(index.projection, normalise(queries))):
        alone = index.search(queries[i])
        same.append(all(np.array_equal(getattr(alone, name)[0], getattr(result, name)[i]) for name in NAMES))
    assert len(same) >= 0.9 * m and sum(same) >= 0.98 * len(same)  # all but where two buckets are equally near


def test_threads_do_not_change_an_answer(monkeypatch):
    candidates, queries = cone(1000, 500)
    index = BuildLSHTable(hash_size=10, probes=2, rerank=30).build_from_embeddings(candidates)
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(shared, "THREADS", threads)
        results.append(index.search(queries))
    for result in results[1:]:
        for name in NAMES:
            np.testing.assert_array_equal(getattr(result, name), getattr(results[0], name))


# --- additions and removals ---------------------------------------------------------------------------------------

BUILT = {"hash_size": 4, "num_tables": 3, "probes": 2, "rerank": 7}  # fewer than are compared: all of them are


@pytest.fixture(scope="module")
def pool():
    """A projection of the first 12 of 120 points (n, d), and those points; none lies on a plane, so that its bits
    do not depend on how many are projected together."""
    points = normalise(1 + np.random.default_rng(2).standard_normal((400, 6)))
    projection = Projection.fit(points[:12], BUILT["hash_size"], BUILT["num_tables"])
    clear = np.abs(projection.margins(points)).min(axis=(1, 2)) > 1e-4
    points = np.concatenate([points[:12], points[12:][clear[12:]]])[:120]
    assert len(points) == 120 and clear[:12].all()
    return projection, points


def fresh(projection, points, labels, ids):
    return build(projection, points, labels, ids, **BUILT)


def assert_same_answers(index, other, queries):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(index.search(queries), name), getattr(other.search(queries), name))


def assert_same_index(index, other, queries):
    assert_same_answers(index, other, queries)
    for name in ("ids", "labels"):
        np.testing.assert_array_equal(getattr(index, name), getattr(other, name))
    np.testing.assert_array_equal(index.lsh.codes, other.lsh.codes)
    np.testing.assert_array_equal(index.vectors, other.vectors)
    assert [dict(table.items()) for table in index.lsh.tables] == [dict(table.items()) for table in other.lsh.tables]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 9), st.booleans()),
        st.tuples(st.just("remove"), st.floats(0, 1), st.integers(0, 2**32)),
        st.just(("search",)),
        st.just(("save",)),
    ),
    max_size=8,
)


@given(STEPS)
@pytest.mark.filterwarnings("ignore:The embeddings' mean")
def test_an_index_equals_a_fresh_one_of_what_is_left(pool, tmp_path_factory, steps):
    projection, points = pool
    queries = points[-9:]
    index = fresh(projection, points[:12], np.arange(12) % 3, np.arange(12) * 2)
    left, unused = {2 * i: (i, i % 3) for i in range(12)}, 12  # id: row of the pool, label
    for step, *how in steps:
        if step == "add":
            count, named = how
            rows = np.arange(unused, unused + count)
            ids = 1000 - rows if named else np.arange(count) + max(left, default=-1) + 1
            labels = rows % 3 if named else np.full(count, -1)
            index.add(points[rows], *((labels, ids) if named else ()))
            left |= {i: (row, label) for i, row, label in zip(ids.tolist(), rows, labels, strict=True)}
            unused += count
        elif step == "remove":
            share, seed = how
            ids = np.random.default_rng(seed).permutation(list(left))[: round(share * len(left))]
            index.remove(ids.astype(int))
            left = {i: entry for i, entry in left.items() if i not in ids}
        elif step == "search":
            index.search(queries)
        elif left:
            index = BuildLSHTable.load(index.save(tmp_path_factory.mktemp("index")))
    assert len(index) == len(left)
    if left:
        rows, labels = np.array(list(left.values())).T
        assert_same_index(index, fresh(projection, points[rows], labels, list(left)), queries)
    else:
        assert (index.search(queries).ids == -1).all()


def emptied(pool):
    projection, points = pool
    index = fresh(projection, points[:12], None, np.arange(12))
    index.remove(np.arange(12))
    return index


def test_an_index_that_was_emptied_finds_nothing_and_can_be_filled_again(pool):
    projection, points = pool
    index = emptied(pool)
    for queries in (points[:1], points[:100]):
        result = index.search(queries, top_k=4)
        assert len(index) == 0 and result.ids.shape == (len(queries), 0)
        assert np.isnan(result.cosines).all()
        assert not result.candidates_seen.any() and not result.compared_exactly.any()
    index.add(points[:12])
    assert_same_index(index, fresh(projection, points[:12], None, np.arange(12)), points)


def test_an_index_that_was_emptied_can_be_saved(pool, tmp_path):
    projection, points = pool
    loaded = BuildLSHTable.load(emptied(pool).save(tmp_path / "index"))
    assert len(loaded) == 0 and (loaded.search(points[:3]).ids == -1).all()
    loaded.add(points[:12])
    assert_same_index(loaded, fresh(projection, points[:12], None, np.arange(12)), points)


def test_nothing_may_be_added_or_removed(pool):
    projection, points = pool
    index = fresh(projection, points[:12], None, np.arange(12))
    index.remove([])
    index.add(points[:0])
    assert_same_index(index, fresh(projection, points[:12], None, np.arange(12)), points)


def test_one_embedding_may_be_added_and_one_id_removed(pool):
    projection, points = pool
    index = fresh(projection, points[:12], None, np.arange(12))
    index.add(points[12])
    index.add(points[13], ids=40)
    index.remove(3)
    ids = [*range(3), *range(4, 13), 40]
    assert_same_index(index, fresh(projection, points[[*range(3), *range(4, 14)]], None, ids), points)


def test_a_mask_removes_what_it_marks(pool):
    projection, points = pool
    index = fresh(projection, points[:12], None, np.arange(12) * 3)
    index.add(points[12:15])
    index.remove(np.arange(15) >= 12)
    assert_same_index(index, fresh(projection, points[:12], None, np.arange(12) * 3), points)


@pytest.mark.parametrize("missing", [None, np.nan, -1])
def test_labels_may_be_missing(missing, pool):
    index = fresh(pool[0], pool[1][:12], [missing, 1] * 6, None)
    assert index.labels.tolist() == [-1, 1] * 6


def test_ids_go_to_the_end_of_their_range(pool, refused):
    index = fresh(pool[0], pool[1][:2], None, [0, 2**63 - 1])
    with refused("ids"):
        index.add(pool[1][2:3])
    index.add(pool[1][2:3], ids=[7])
    assert index.search(pool[1][:2], 1).ids.ravel().tolist() == [0, 2**63 - 1]


def test_many_small_changes_equal_a_fresh_build(pool):
    """Enough of them that tables are merged and rows taken out, and with copies, so that estimates and cosines tie."""
    projection, points = pool
    points = np.concatenate([points] * 8)
    index = fresh(projection, points[:12], None, None)
    left = list(range(12))
    for row in range(12, len(points)):
        index.add(points[row], ids=[row])
        left.append(row)
        if row % 3 == 0:
            index.remove(left.pop(row // 2 % len(left)))
        if row % 100 == 0:
            assert_same_answers(index, fresh(projection, points[left], None, left), points[:20])
    assert_same_index(index, fresh(projection, points[left], None, left), points[:20])


def test_a_removed_id_may_be_given_again(pool):
    index = fresh(pool[0], pool[1][:12], None, np.arange(12))
    index.remove([4, 4])
    index.add(pool[1][20:21], ids=[4])
    assert len(index) == 12 and index.search(pool[1][20], 1).ids.tolist() == [[4]]


REFUSED = {
    "an id that is there": lambda index, x: index.add(x[:2], ids=[100, 22]),
    "the same id twice": lambda index, x: index.add(x[:2], ids=[100, 100]),
    "a negative id": lambda index, x: index.add(x[:2], ids=[100, -1]),
    "an id with a fraction": lambda index, x: index.add(x[:2], ids=[100, 101.5]),
    "too few ids": lambda index, x: index.add(x[:2], ids=[100]),
    "too few labels": lambda index, x: index.add(x[:2], [1]),
    "another length": lambda index, x: index.add(x[:2, :5]),
    "not a number": lambda index, x: index.add(x[:2] * np.nan),
    "an unknown id": lambda index, x: index.remove(1),
    "one unknown id of three": lambda index, x: index.remove([2, 1, 4]),
    "a text for an id": lambda index, x: index.remove(["2"]),
    "a fraction for an id": lambda index, x: index.remove([2.0]),
    "a mask of another length": lambda index, x: index.remove(np.ones(5, bool)),
    "names for labels": lambda index, x: index.add(x[:2], ["cat", "dog"]),
    "a fraction for a label": lambda index, x: index.add(x[:2], [1, 1.7]),
    "a label below -1": lambda index, x: index.add(x[:2], [1, -2]),
    "an infinite label": lambda index, x: index.add(x[:2], [1, np.inf]),
}


@pytest.mark.parametrize("ask", REFUSED)
def test_what_cannot_be_added_or_removed_is_refused_and_changes_nothing(ask, pool, refused):
    projection, points = pool
    index, other = (fresh(projection, points[:12], np.arange(12), np.arange(12) * 2) for _ in range(2))
    with refused():
        REFUSED[ask](index, points[30:40])
    assert len(index) == 12
    assert_same_index(index, other, points)
    index.add(points[12:15])
    other.add(points[12:15])
    assert_same_index(index, other, points)


@pytest.mark.parametrize("change", [lambda index: index.add(np.eye(4)), lambda index: index.remove([0])])
def test_an_index_that_was_never_built_cannot_be_changed(change, refused):
    with refused("empty"):
        change(BuildLSHTable(dim=4))


@pytest.mark.parametrize(("probes", "rerank"), [(-1, 5), (2.5, 5), (2, -1), (2, 1.5), ("2", 5), (None, 5)])
def test_impossible_switches_are_refused(probes, rerank, refused):
    with refused():
        BuildLSHTable(probes=probes, rerank=rerank).build_from_embeddings(np.eye(4)).search(np.eye(4))


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_search_for_no_places_gives_none_or_is_refused(top_k, pool):
    # Never a number below 1 reaches the compiled loop: it writes beside its arrays then.
    index = fresh(pool[0], pool[1][:12], None, np.arange(12))
    with mock.patch.object(search, "search_block", side_effect=ValueError("reached the loop")) as loop:
        try:
            assert index.search(pool[1][:2], top_k=top_k).ids.shape == (2, 0)
        except ValueError as refusal:
            assert "top_k" in str(refusal)
    assert not loop.called


def test_additions_of_the_same_kind_do_not_warn():
    candidates, _ = cone(4000, 0)
    index = BuildLSHTable(hash_size=8, num_tables=2).build_from_embeddings(candidates[:500])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in range(500, 4000, 700):
            index.add(candidates[start : start + 700])


def test_the_mean_follows_additions_and_removals():
    candidates, _ = cone(300, 0)
    points = normalise(candidates)
    index = BuildLSHTable(hash_size=8, num_tables=2).build_from_embeddings(candidates[:100])
    for step in (lambda: index.add(candidates[100:]), lambda: index.remove(np.arange(50)), lambda: index.remove(60)):
        step()
        np.testing.assert_allclose(index._built().mean, points[index.ids].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_additions_elsewhere_warn_once_they_weigh(share):
    candidates, _ = cone(1000, 0)
    elsewhere = candidates * np.where(np.arange(48) < 24, 1, -1).astype(np.float32)
    index = BuildLSHTable(hash_size=8, num_tables=2).build_from_embeddings(candidates)
    added = elsewhere[: int(1000 * share)]
    together = normalise(np.concatenate([candidates, added]))
    before = normalise(candidates)
    spread = np.sqrt(np.square(before - before.mean(axis=0)).sum(axis=1).mean())
    drift = np.linalg.norm(together.mean(axis=0) - before.mean(axis=0)) / spread
    assert drift < 0.15 or drift > 0.4  # clearly on one side of the quarter
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index.add(added)
    assert [f"{drift:.0%}" in str(one.message) for one in caught] == [True] * int(drift > 0.25)
    assert all(one.filename == __file__ for one in caught) and len(index) == 1000 + len(added)


# --- recall -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neighbours():
    """Candidates, queries, and the queries' ten true neighbours (m, 10)."""
    candidates, queries = cone(4000, 150)
    return candidates, queries, exact_neighbours(queries, candidates, 10)[0]


def measure(index, queries, true):
    """Recall, the share of candidates seen, and the share compared."""
    result = index.search(queries, top_k=10)
    counts = result.candidates_seen, result.compared_exactly
    return recall_at_k(result.ids, true), *(float(count.mean()) / len(index) for count in counts)


@pytest.mark.parametrize(
    ("settings", "recall", "seen", "compared"),
    [
        ({"hash_size": 8, "probes": 0, "rerank": None, "planes": "random"}, 0.28, 0.08, 0.08),
        ({"hash_size": 8, "rerank": None, "planes": "random"}, 0.87, 0.37, 0.37),
        ({"hash_size": 8, "rerank": None}, 0.87, 0.25, 0.25),
        ({}, 0.8, 0.2, 0.06),
    ],
    ids=["plain", "probes", "principal", "default"],
)
def test_neighbours_in_a_cone_are_found(settings, recall, seen, compared, neighbours):
    # Measured: .34 at 5% seen, .91 at 33%, .88 at 17%, the same with 5% compared. Seeds are fixed; numpy may change.
    candidates, queries, true = neighbours
    found = measure(BuildLSHTable(**settings).build_from_embeddings(candidates), queries, true)
    assert found[0] >= recall and found[1] <= seen and found[2] <= compared


def test_a_ranking_by_sketches_keeps_most_neighbours_among_few_compared(neighbours):
    candidates, queries, true = neighbours
    index = BuildLSHTable(hash_size=6, probes=8, rerank=100).build_from_embeddings(candidates)
    ranked, seen, compared = measure(index, queries, true)
    assert compared < 0.1 * seen
    index.rerank = None
    assert ranked > 0.9 * measure(index, queries, true)[0]


@pytest.fixture(scope="module")
def photographs(real):
    """Real embeddings: candidates (20,000, 256), queries (1,000, 256), true neighbours (1,000, 10)."""
    kept = np.load(real / "cifar10-mobilenet-v1-025.npz")
    candidates, queries = (kept[name].astype(np.float32) for name in ("candidates", "queries"))
    return candidates, queries, exact_neighbours(queries, candidates, 10)[0]


@pytest.mark.parametrize(
    ("settings", "recall", "seen", "compared"),
    [
        ({}, 0.92, 0.10, 0.01),
        ({"hash_size": 14, "num_tables": 16, "probes": 31, "rerank": 80}, 0.90, 0.05, 0.004),
        ({"hash_size": 12, "num_tables": 12, "probes": 47, "rerank": 100}, 0.96, 0.13, 0.005),
    ],
    ids=["default", "14x16", "12x12"],
)
def test_real_neighbours_are_found(settings, recall, seen, compared, photographs):
    # Measured: .935 at 8.3% seen, .915 at 4.7%, .969 at 10.8%.
    candidates, queries, true = photographs
    found = measure(BuildLSHTable(**settings).build_from_embeddings(candidates), queries, true)
    assert found[0] >= recall and found[1] <= seen and found[2] <= compared
