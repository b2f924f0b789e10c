"""Folders and repositories by their names, and the Hub when it does not answer."""

import socket
import time
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from imgsim import load_encoder, load_images
from imgsim.sources.hub import locate


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


@pytest.mark.parametrize("kind", ["dataset", "checkpoint"])
def test_a_file_is_neither(kind, tmp_path, refused):
    (tmp_path / "photos.zip").touch()
    with refused(f"{kind} '{tmp_path / 'photos.zip'}' is a file"):
        locate(str(tmp_path / "photos.zip"), kind)


def test_a_name_that_the_hub_does_not_know_is_refused(monkeypatch, refused):
    def answer(hub, repo, **options):
        raise RepositoryNotFoundError("404", response=Mock(headers={}))

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
    assert time.perf_counter() - start < 45


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(hub_at, refused, monkeypatch):
    monkeypatch.setattr("imgsim.sources.hub.HUB_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and says nothing
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with refused("'builtin'", ConnectionError):
            locate("nobody/nothing", "checkpoint")
        assert time.perf_counter() - start < 45


def test_what_is_in_the_local_cache_needs_no_network(hub_at, tmp_path):
    hub_at("http://127.0.0.1:9")
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    assert locate("some/model", "checkpoint") == Path(repository, "snapshots", "0" * 40)
