"""Files written whole or not at all, arrays under a manifest, and the Hub when it does not answer."""

import json
import socket
import time
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from imgsim import load_encoder, load_images
from imgsim.search.storage import Blocks, read_arrays, write_arrays
from imgsim.sources import cache as store
from imgsim.sources.cache import atomic_write, cache_folder, write_json
from imgsim.sources.hub import locate


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


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.array([[0.1, np.nan]], np.float32)}
    arrays["turned"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    write_arrays(tmp_path / "deep" / "folder", {"size": 2}, arrays)
    manifest, read = read_arrays(tmp_path / "deep" / "folder", ["size"], arrays)
    assert manifest["size"] == 2 and manifest["format"] == store.FORMAT and set(manifest["versions"]) >= {"numpy"}
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


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "./here", "two words", "?"])
@pytest.mark.parametrize("kind", ["checkpoint", "dataset"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(kind, name, refused, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the Hub was asked"))
    with refused(f"{kind} {name!r}"):
        locate(name, kind)


@pytest.mark.parametrize("kind", ["checkpoint", "dataset"])
def test_a_folder_that_is_there_is_taken(kind, tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name", kind) == tmp_path / "owner" / "name"


def test_a_name_that_the_hub_does_not_know_is_refused(monkeypatch, refused):
    def answer(hub, repo, **options):
        response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", answer)
    with refused("nobody/nothing"):
        locate("nobody/nothing", "checkpoint")


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """A function that puts the Hub at another address, with nothing of it kept here."""

    def move(address):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return move


@pytest.mark.parametrize("load", [load_encoder, load_images])
def test_without_a_network_a_hub_id_is_refused_at_once(load, hub_at, refused):
    hub_at("http://127.0.0.1:9")  # nobody listens there
    start = time.perf_counter()
    with refused("'builtin'", ConnectionError):
        load("nobody/nothing@main")
    assert time.perf_counter() - start < 10


def test_a_hub_that_never_answers_is_given_up(hub_at, refused):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and says nothing
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with refused("'builtin'", ConnectionError):
            locate("nobody/nothing", "checkpoint")
        assert time.perf_counter() - start < 10


def test_what_is_in_the_local_cache_needs_no_network(hub_at, tmp_path):
    hub_at("http://127.0.0.1:9")
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    assert locate("some/model", "checkpoint") == Path(repository, "snapshots", "0" * 40)
