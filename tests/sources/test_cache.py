"""The cache folder, and files that are written whole or not at all."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest

from imgsim import load_images
from imgsim.sources.cache import atomic_write, cache_folder, temporary_cache, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for name in ("IMGSIM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "imgsim"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "imgsim"
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "own"))
    assert cache_folder("embeddings") == tmp_path / "own" / "embeddings" and cache_folder("embeddings").is_dir()


@pytest.mark.parametrize("place", ["file/cache", "/proc/cache", "~nobody at all/cache"])
def test_work_goes_on_without_a_cache(place, monkeypatch, tmp_path, image_folder):
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMGSIM_CACHE", place if place[0] in "/~" else str(tmp_path / place))
    monkeypatch.setattr("imgsim.sources.cache.temporary_cache", cache(temporary_cache.__wrapped__))
    with pytest.warns(UserWarning, match="no place for a cache") as said:
        assert len(load_images(image_folder)["train"]) == 24
    assert len(said) == 1


def test_a_full_cache_is_said_and_done_without(monkeypatch, encoder, image_folder, tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("imgsim.sources.cache.token_hex", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert encoder.embed(load_images(image_folder)["train"]).shape[0] == 24


def test_two_threads_may_write_one_file(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_json(tmp_path / "a.json", [number] * 10_000), range(40)))
    assert len(json.loads((tmp_path / "a.json").read_text())) == 10_000 and names(tmp_path) == ["a.json"]


def test_a_file_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2]}
    write_json(tmp_path / "a.json", {"b": None})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": None}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there(error, tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(error), atomic_write(tmp_path / "a.json") as beside:
        beside.write_text("half")
        raise error
    assert (tmp_path / "a.json").read_text() == "1\n" and names(tmp_path) == ["a.json"]


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == "1\n" and names(tmp_path) == ["a.json"]


def test_remains_of_a_kill_go_after_a_day_and_what_others_wrote_never(tmp_path):
    old, new, other = (f".imgsim-{'0' * 15}{i}.json" for i in "123")
    names = [old, new, other.removesuffix(".json"), ".imgsim-notes.json", ".0123456789abcdef.json"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / new)
    write_json(tmp_path / "a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *names} - {old}


def test_a_folder_is_no_file_to_write(tmp_path, refused):
    with refused(tmp_path), atomic_write(tmp_path):
        pass
    assert names(tmp_path) == []
