"""Keys: what entries are called beside their ids, through additions, removals, searches and files."""

import json

import numpy as np
import pytest

from imgsim import BuildLSHTable
from imgsim.search.storage import write_array

KEYS = ["a.jpg", "two\nlines", "ü 日本", "", "\udcff\udcfe.png", "=1+1", "n" * 5000, "a.jpg"]
POINTS = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)


def index_of(count=8, keys=KEYS):
    return BuildLSHTable(hash_size=3, num_tables=2).build_from_embeddings(POINTS[:count], keys=keys)


def test_keys_follow_additions_and_removals():
    index = index_of()
    index.add(POINTS[8:11], keys=["x", None, "z"])
    index.remove([1, 2])
    left = [KEYS[0], *KEYS[3:], "x", "", "z"]
    assert index.search(POINTS[8], 1).keys.tolist() == [["x"]]  # before it is settled
    assert index.keys.tolist() == left and index.ids.tolist() == [0, *range(3, 11)]
    index.remove(["a.jpg", "z"])  # the first of them twice
    assert index.keys.tolist() == [*left[1:5], "x", ""]


@pytest.mark.parametrize("mapped", [False, True])
def test_keys_are_saved_and_loaded(mapped, tmp_path):
    index_of().save(tmp_path / "index")
    loaded = BuildLSHTable.load(tmp_path / "index", mapped=mapped)
    assert loaded.keys.tolist() == KEYS
    loaded.add(POINTS[8], keys="one")
    loaded.save(tmp_path / "index")
    assert BuildLSHTable.load(tmp_path / "index").keys.tolist() == [*KEYS, "one"]
    assert len(list((tmp_path / "index").glob("keys-*.npy"))) == 1


def test_an_index_without_keys_has_empty_ones(tmp_path):
    index = index_of(keys=None)
    for one in (index, BuildLSHTable.load(index.save(tmp_path / "index"))):
        assert one.keys.tolist() == one.search(POINTS[0], 8).keys[0].tolist() == [""] * 8


def test_answers_name_what_they_found():
    found = index_of().search(np.vstack([POINTS[:3], np.full((1, 16), 1e-9)]), 8)
    names = np.array([*KEYS, ""])  # the last one for padding
    assert found.keys.shape == found.ids.shape and (found.keys == names[found.ids]).all()
    assert BuildLSHTable(rerank=0, probes=0).build_from_embeddings(POINTS, keys=map(str, range(40))).search(
        POINTS[:0]
    ).keys.shape == (0, 10)


@pytest.mark.parametrize("keys", [["a"], [*KEYS[:7], 5], [*KEYS[:7], "null\0"], [*KEYS[:7], "\ud800"], "abc"])
def test_keys_that_do_not_fit_are_refused(keys, refused):
    with refused("keys" if len(keys) != 8 else "Keys"):
        index_of(keys=keys)
    index = index_of()
    with refused():
        index.add(POINTS[8:16], keys=keys)
    assert len(index) == 8


@pytest.mark.parametrize("keys", [["nowhere.jpg"], ["a.jpg", "nowhere.jpg"], [""]])
def test_an_unknown_key_cannot_be_removed(keys, refused):
    index = index_of()
    with refused("no key"):
        index.remove(keys)
    assert len(index) == 8


@pytest.mark.parametrize(
    "content", [b"a\0b\0", b"a\0" * 9, b"a\0" * 8 + b"rest", [[1, 2]], np.zeros(8), np.zeros(8, np.int8)]
)
def test_keys_that_are_not_those_of_the_index_are_damage(content, tmp_path, refused):
    folder = index_of().save(tmp_path / "index")
    array = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else np.array(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arrays"]["keys"] = write_array(folder, "keys", array)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with refused(folder):
        BuildLSHTable.load(folder)
