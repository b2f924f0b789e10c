"""Arrays under a manifest: written whole or not at all, and read as they were."""

import numpy as np
import pytest

from imgsim.figures import plot_images, show
from imgsim.search.storage import FORMAT, Blocks, read_arrays, write_arrays
from imgsim.sources.cache import write_json


def names(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))  # without the lock


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.array([[0.1, np.nan]], np.float32)}
    arrays["turned"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    write_arrays(tmp_path / "deep" / "folder", {"size": 2}, arrays)
    manifest, read = read_arrays(tmp_path / "deep" / "folder", ["size"], arrays)
    assert manifest["size"] == 2 and manifest["format"] == FORMAT and set(manifest["versions"]) >= {"numpy"}
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_an_array_may_be_written_block_by_block(tmp_path):
    whole = np.arange(35, dtype=np.int32).reshape(7, 5)
    write_arrays(tmp_path / "whole", {}, {"a": whole})
    write_arrays(tmp_path / "blocks", {}, {"a": Blocks((7, 5), whole.dtype, iter([whole[:3], whole[3:]]))})
    assert names(tmp_path / "blocks") == names(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "blocks" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_write_that_fails_leaves_the_arrays_that_were_there(tmp_path):
    def fail():
        yield np.zeros(2)
        raise OSError

    write_arrays(tmp_path, {}, {"a": np.ones(3), "b": np.ones(3)})
    before = names(tmp_path)
    with pytest.raises(OSError):
        write_arrays(tmp_path, {}, {"a": np.ones(3), "b": Blocks((3,), np.dtype(float), fail())})
    assert names(tmp_path) == before
    assert read_arrays(tmp_path, [], ["a", "b"])[1]["b"].tolist() == [1, 1, 1]


def test_a_second_write_replaces_the_first(tmp_path):
    for value in (1, 2):
        write_arrays(tmp_path, {}, {"a": np.full(3, value)})
    assert read_arrays(tmp_path, [], ["a"])[1]["a"].tolist() == [2, 2, 2]
    assert len(names(tmp_path)) == 2


def test_a_folder_with_other_files_is_left_alone(tmp_path, refused):
    (tmp_path / "mine.npy").write_bytes(b"mine")
    with refused(tmp_path):
        write_arrays(tmp_path, {}, {"a": np.zeros(3)})
    assert names(tmp_path) == ["mine.npy"]


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_arrays("~/index", {"n": 1}, {"planes": np.zeros(3)})
    assert read_arrays("~/index", ["n"], ["planes"])[1]["planes"].shape == (3,) and names(tmp_path) == ["index"]
    write_json("~/a.json", 1)
    show(plot_images([np.zeros((9, 9, 3), np.uint8)], ["x"]), "~/results", "a")
    assert names(tmp_path) == ["a.json", "index", "results"]


def test_a_first_save_that_was_killed_before_its_manifest_is_no_obstacle(tmp_path):
    (tmp_path / f".imgsim-{'0' * 16}.json").touch()
    write_arrays(tmp_path, {}, {"a": np.zeros(3)})
    assert read_arrays(tmp_path, [], ["a"])[1]["a"].tolist() == [0, 0, 0]
