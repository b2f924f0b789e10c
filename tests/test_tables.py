"""Hash tables, against the article's: a dict of lists for each table."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsim import LSH, Projection, Table
from imgsim.hashing import code_dtype
from imgsim.tables import sort_codes


@st.composite
def batches(draw):
    """A hash size and what to add, one after another: lists of ids, of codes and of labels, or None for labels."""
    hash_size = draw(st.sampled_from([1, 3, 8, 9, 16, 20, 33, 64]))
    top = 2**hash_size - 1
    code = st.one_of(st.integers(0, min(top, 5)), st.integers(0, top))
    entry = st.tuples(st.integers(-5, 2**40), code, st.integers(0, 3))
    batch = st.tuples(st.lists(entry, min_size=1, max_size=6), st.booleans())
    return hash_size, draw(st.lists(batch, max_size=6))


def buckets(table):
    return {code: [entry["id_label"] for entry in entries] for code, entries in table.items()}


def mixture(n=400, dim=16):
    """Embeddings in eight clusters, so that tables return some entries but not all."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((8, dim))[rng.integers(0, 8, n)] + 0.4 * rng.standard_normal((n, dim))).astype("f4")


def filled(codes, hash_size):
    lsh = LSH(hash_size, codes.shape[1])
    lsh.add(np.arange(len(codes)), codes)
    return lsh


@given(batches())
def test_a_table_holds_what_a_dict_of_lists_holds(case):
    hash_size, added = case
    table, oracle = Table(hash_size), defaultdict(list)
    for entries, labelled in added:
        ids, codes, labels = zip(*entries, strict=True)
        table.add(ids, np.array(codes, code_dtype(hash_size)), labels if labelled else None)
        for i, code, label in entries:
            oracle[code].append(f"{i}_{label}" if labelled else f"{i}")
        assert buckets(table) == oracle  # after each batch: what comes later is sorted into what is there
    assert list(table) == sorted(oracle) and len(table) == len(oracle)
    assert table.bucket_sizes().tolist() == [len(oracle[code]) for code in sorted(oracle)]
    for code in {*oracle, *(code ^ 1 for code in oracle)}:
        found = [entry["id_label"] for entry in table.query(np.array(code, code_dtype(hash_size)))]
        assert found == oracle.get(code, [])


@given(batches())
def test_one_entry_at_a_time_equals_whole_arrays(case):
    hash_size, added = case
    table, single = Table(hash_size), Table(hash_size)
    for entries, labelled in added:
        ids, codes, labels = zip(*entries, strict=True)
        table.add(ids, np.array(codes, code_dtype(hash_size)), labels if labelled else None)
        for i, code, label in entries:
            single.add(i, code, label if labelled else None)
    assert buckets(table) == buckets(single)


def test_the_article_s_calls_on_a_table():
    table = Table(8)
    table.add(16, [57], 0)
    table.add(17, [57], 2)
    table.add(3, [255])
    assert table.query([57]) == [{"id_label": "16_0"}, {"id_label": "17_2"}]
    assert table.query(255) == [{"id_label": "3"}] and table.query([1]) == []
    assert dict(table.table.items()) == {57: [{"id_label": "16_0"}, {"id_label": "17_2"}], 255: [{"id_label": "3"}]}


def test_a_table_reads_like_a_dict():
    table = Table(8)
    table.add([1, 2, 3], [9, 4, 9], [0, 0, 1])
    assert len(table) == 2 and 9 in table and 5 not in table and 4096 not in table
    assert table[9] == [{"id_label": "1_0"}, {"id_label": "3_1"}] and table.get(5) is None
    with pytest.raises(KeyError):
        table[5]


def test_an_empty_table():
    table = Table(8)
    assert len(table) == 0 and list(table) == [] and table.query(3) == [] and 3 not in table


def test_several_codes_are_answered_one_after_another():
    table = Table(8)
    table.add([1, 2, 3], [9, 4, 9], [0, 0, 1])
    assert [entry["id_label"] for entry in table.query([4, 9])] == ["2_0", "1_0", "3_1"]
    assert table.query([]) == []


@pytest.mark.parametrize("code", [2**60, 2**63 + 2048, 2**64 - 2])
def test_python_ints_find_64_bit_codes_exactly(code):
    table = Table(64)
    table.add(1, code, 0)
    assert code in table and code + 1 not in table and code - 1 not in table
    assert table[code] == [{"id_label": "1_0"}] and table.get(code + 1) is None


def test_codes_of_64_bits_may_be_mixed_in_a_list():
    table = Table(64)
    table.add([1, 2], [2**64 - 1, 5])
    assert list(table) == [5, 2**64 - 1]


def test_the_article_s_calls_on_an_lsh():
    lsh = LSH(8, 3)
    lsh.add(16, [1, 2, 3], 0)
    lsh.add(17, [1, 9, 3], 1)
    assert len(lsh) == 2 and len(lsh.tables) == 3
    for h, entry in lsh.tables[0].table.items():
        assert h == 1 and entry == [{"id_label": "16_0"}, {"id_label": "17_1"}]
    assert list(lsh.tables[1].table) == [2, 9]  # another table, other codes
    assert [entry["id_label"] for entry in lsh.query([1, 9, 0])] == ["16_0", "17_1", "17_1"]


def test_an_entry_comes_once_for_each_table_it_shares():
    codes = np.random.default_rng(1).integers(0, 4, (60, 5), dtype=np.uint8)
    found = [entry["id_label"] for entry in filled(codes, 2).query(codes[7])]
    assert {name: found.count(name) for name in found} == {
        str(i): shared for i, shared in enumerate((codes == codes[7]).sum(axis=1)) if shared
    }


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**32))
def test_a_query_finds_what_a_brute_force_count_finds(hash_size, num_tables, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2**hash_size, (n + 1, num_tables), dtype=np.uint8)
    lsh, query = filled(codes[1:], hash_size), codes[0]
    count = (codes[1:] == query).sum(axis=1)
    assert Counter(entry["id_label"] for entry in lsh.query(query)) == {str(i): c for i, c in enumerate(count) if c}


def test_the_codes_come_back_by_row():
    codes = np.random.default_rng(2).integers(0, 2**12, (50, 4), dtype=np.uint16)
    lsh = LSH(12, 4)
    for half in (slice(0, 20), slice(20, 50)):
        lsh.add(np.arange(50)[half] * 3, codes[half])
        assert len(lsh) == half.stop  # a look-up between two additions
    np.testing.assert_array_equal(lsh.codes, codes)


def test_more_tables_never_lose_candidates_and_more_bits_never_gain_them():
    x = mixture()
    codes = Projection.fit(x, 12, 8)(x)
    sizes = {}
    for num_tables in (1, 3, 8):
        for hash_size in (2, 6, 12):
            lower = codes[:, :num_tables] & (2**hash_size - 1)  # the codes of the first tables and planes
            lsh = filled(lower.astype(code_dtype(hash_size)), hash_size)
            sizes[num_tables, hash_size] = [{entry["id_label"] for entry in lsh.query(row)} for row in lower[:50]]
    for (num_tables, hash_size), found in sizes.items():
        for (more_tables, more_bits), other in sizes.items():
            if more_tables >= num_tables and more_bits == hash_size:
                assert all(few <= many for few, many in zip(found, other, strict=True))
            if more_tables == num_tables and more_bits >= hash_size:
                assert all(few <= many for few, many in zip(other, found, strict=True))
    assert np.mean([len(found) for found in sizes[8, 12]]) < np.mean([len(found) for found in sizes[1, 2]])


@pytest.mark.parametrize("code", [256, -1, [3, 300], 2**70])
def test_codes_too_large_for_a_table_are_refused(code, refused):
    table = Table(8)
    for refuse in (lambda: table.add(list(range(np.size(code))), code), lambda: table.query(code)):
        with refused("2^8"):
            refuse()
    assert len(table) == 0


@pytest.mark.parametrize(
    ("ids", "codes", "labels"), [([1, 2], 5, None), (1, [5, 6], None), ([1, 2], [5, 6], [0]), ([1, 2], [[5, 6]], None)]
)
def test_a_table_refuses_entries_of_unequal_number(ids, codes, labels, refused):
    table = Table(8)
    with refused():
        table.add(ids, codes, labels)
    assert len(table) == 0


@pytest.mark.parametrize(
    ("ids", "codes", "labels"),
    [
        (1, [5, 6], None),
        (1, [5, 6, 7, 8], None),
        ([1, 2], [5, 6, 7], None),
        ([1, 2], [[5, 6, 7]] * 3, None),
        ([1, 2], [[5, 6, 7]] * 2, [0]),
        (1, [5, 6, 256], None),
    ],
)
def test_an_lsh_refuses_codes_of_another_shape(ids, codes, labels, refused):
    lsh = LSH(8, 3)
    with refused():
        lsh.add(ids, codes, labels)
    assert len(lsh) == 0 and all(len(table) == 0 for table in lsh.tables)


@pytest.mark.parametrize("codes", [[5, 6], [5, 6, 7, 8], [5, 6, 256], [[1, 2, 3], [4, 5, 6]], []])
def test_an_lsh_refuses_queries_of_another_shape(codes, refused):
    lsh = LSH(8, 3)
    lsh.add([1, 2], [[1, 2, 3], [4, 5, 6]])
    with refused():
        lsh.query(codes)


@pytest.mark.parametrize(("hash_size", "n"), [(1, 4), (3, 7), (8, 256), (9, 700), (20, 99), (33, 40), (64, 9)])
def test_sorted_codes_keep_the_order_of_equal_ones(hash_size, n):
    codes = np.random.default_rng(n).integers(0, min(2**hash_size, 40), n).astype(code_dtype(hash_size))
    ordered, rows = sort_codes(codes)
    np.testing.assert_array_equal(rows, np.argsort(codes, kind="stable"))
    np.testing.assert_array_equal(ordered, codes[rows])


@pytest.mark.parametrize(("hash_size", "n"), [(3, 50), (20, 50)])
def test_tables_of_an_index_read_like_tables_that_were_filled(hash_size, n, refused):
    codes = np.random.default_rng(3).integers(0, 2**hash_size, (n, 4)).astype(code_dtype(hash_size))
    ids, labels = np.arange(n) * 2, np.arange(n) % 3
    arrays = [np.stack(part) for part in zip(*(sort_codes(column) for column in codes.T), strict=True)]
    wrapped, lsh = LSH.from_arrays(hash_size, ids, labels, *arrays), LSH(hash_size, 4)
    lsh.add(ids, codes, labels)
    assert [buckets(table) for table in wrapped.tables] == [buckets(table) for table in lsh.tables]
    assert all(np.shares_memory(table.sorted_codes()[1], arrays[1]) for table in wrapped.tables)
    for one in (wrapped, wrapped.tables[0]):
        with refused("index"):
            one.add(999, codes[0] if one is wrapped else codes[0, 0], 1)
    assert len(wrapped) == n


@pytest.mark.parametrize(("hash_size", "num_tables"), [(0, 3), (65, 3), (8, 0), (8.0, 3)])
def test_impossible_tables_are_refused(hash_size, num_tables, refused):
    with refused():
        LSH(hash_size, num_tables)
