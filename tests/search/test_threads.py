"""One holder, many threads: a search sees whole states of an index, and a change that breaks off changes nothing."""

import os
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest

from imgsim import BuildLSHTable
from imgsim.search import candidates, threads

SETTINGS = {"hash_size": 6, "num_tables": 4, "probes": 4}


def random_index(count, dim=16):
    vectors = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
    return BuildLSHTable(**SETTINGS).build_from_embeddings(vectors), vectors


@pytest.fixture
def busy():
    """Let threads take turns as on a busy machine."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_together(*works):
    """Start all works at one moment in threads of their own; what any of them raised is raised here."""
    start, errors = threading.Barrier(len(works)), []

    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.filterwarnings("ignore:The embeddings' mean")
def test_searches_see_an_addition_wholly_or_not_at_all(busy):
    index, vectors = random_index(2000)
    queries, answers, ended = vectors[:40] + 0.01, [], threading.Event()

    def search():
        while not ended.is_set():
            answers.append(index.search(queries, 10))

    def add():
        for _ in range(30):
            index.add(np.random.default_rng(len(index)).standard_normal((300, 16)))
        ended.set()

    run_together(search, search, search, add)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    assert len(index) == 2000 + 30 * 300 and len(answers) >= 3
    for answer in answers:
        found = answer.ids >= 0
        cosines = np.einsum("mkd,md->mk", index.vectors[answer.ids], unit)
        np.testing.assert_allclose(answer.cosines[found], cosines[found], atol=1e-5)


def test_first_searches_after_an_addition_agree(busy):
    for _ in range(5):
        index, vectors = random_index(5000)
        index.add(vectors[:3000] + 0.5)
        results = []

        def search(index=index, queries=vectors[:30], results=results):
            results.append(index.search(queries, 5))

        run_together(*[search] * 6)
        for result in results[1:]:
            np.testing.assert_array_equal(result.ids, results[0].ids)
            np.testing.assert_array_equal(result.candidates_seen, results[0].candidates_seen)


@pytest.mark.filterwarnings("ignore:The embeddings' mean")
def test_additions_at_once_get_ids_of_their_own(busy):
    index, vectors = random_index(100)
    run_together(*[lambda: [index.add(vectors[:7]) for _ in range(20)]] * 4)
    assert np.array_equal(np.sort(index.ids), np.arange(100 + 4 * 20 * 7))


@pytest.mark.parametrize(
    ("change", "place"), [("add", "check_entries"), ("add", "column_sums"), ("add", "_State"), ("remove", "_State")]
)
def test_a_change_that_breaks_off_changes_nothing(change, place):
    index, vectors = random_index(300)
    index.add(vectors[:10])
    before = index.search(vectors, 5)
    with mock.patch.object(candidates, place, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        index.add(vectors) if change == "add" else index.remove([3])
    assert len(index) == 310
    np.testing.assert_array_equal(index.search(vectors, 5).ids, before.ids)
    index.add(vectors[:5])  # the lock is free again


@pytest.mark.filterwarnings("ignore:The embeddings' mean")
def test_what_is_read_beside_additions_belongs_together(busy):
    index, vectors = random_index(500)
    ended, read = threading.Event(), []

    def look():
        while not ended.is_set():
            now = index.snapshot
            read.append((len(now.ids), now.tables.rows.shape[1], now.added.rows.shape[1], now.count))

    def change():
        for step in range(150):
            index.add(vectors[:3])
            index.remove([step])
        ended.set()

    run_together(look, look, change)
    assert read and all(ids == rows == count and added == 0 for ids, rows, added, count in read)


def test_blocks_are_shared_with_helpers_that_start_once(monkeypatch):
    monkeypatch.setattr(threads, "THREADS", 3)
    threads.helpers.cache_clear()
    names, met = [set(), set()], threading.Barrier(3)

    def work(first, turn):
        names[turn].add(threading.current_thread().name)
        if first < 3:
            met.wait(60)  # three threads are at work at once
        return first

    try:
        for turn in range(2):
            assert sorted(threads.run_blocks(lambda first, turn=turn: work(first, turn), 9, 1)) == list(range(9))
        assert len(names[0]) == 3 and names[0] == names[1] and threading.current_thread().name in names[0]
        assert threads.run_blocks(lambda first: first, 0, 5) == [] and threads.run_blocks(
            lambda first: first, 5, 5
        ) == [0]
        with pytest.raises(ZeroDivisionError):
            threads.run_blocks(lambda first: 1 // (8 - first), 9, 1)
    finally:
        threads.helpers().shutdown()
        threads.helpers.cache_clear()


FORK = """
import os
import numpy as np
from imgsim import BuildLSHTable

vectors = np.random.default_rng(0).standard_normal((50_000, 16))
index = BuildLSHTable(hash_size=8, num_tables=4).build_from_embeddings(vectors)
expected = index.search(vectors[:2000]).ids
child = os.fork()
if not child:
    os._exit(int(not np.array_equal(index.search(vectors[:2000]).ids, expected)))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_fork_of_a_process_that_has_searched_searches_too():
    answer = subprocess.run([sys.executable, "-c", FORK], env=os.environ | {"OMP_NUM_THREADS": "2"}, timeout=500)
    assert answer.returncode == 0
