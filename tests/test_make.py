"""The Makefile: what is given arrives as it was typed, and clean removes what imgsim made and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@pytest.fixture
def make(tmp_path):
    """A function that runs make on a copy, whose programs print their arguments one per line; returns the lines."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".installed").touch()
    for name in ("python", "jupyter"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        program.chmod(0o755)

    def run(*arguments, **variables):
        command = ["make", "-s", "-C", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables)
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize(
    "value", ["a b", "my $5 bills", 'the "best"', "a`echo b`", "it's", "$HOME", "x; exit 3", "(#)"]
)
def test_values_arrive_as_they_were_typed(value, make):
    assert make("run", f"DATASET={value}", f"OUTPUT={value}") == [
        *("-m", "imgsim", "run", "--dataset", value, "--output", value)
    ]
    assert make("sweep", f"FILE={value}") == ["-m", "imgsim", "sweep", value]


def test_without_values_the_defaults_are_taken(make):
    assert make("run") == ["-m", "imgsim", "run"]
    assert make("sweep") == ["-m", "imgsim", "sweep", "params/sweep.yaml"]


def test_lab_passes_options_on_and_starts_as_root(make):
    root = ["--allow-root"] if os.getuid() == 0 else []
    assert make("lab", "ARGS=--port 9999") == ["lab", *root, "--port", "9999", "notebooks"]


def test_clean_removes_what_imgsim_made_and_nothing_else(make, tmp_path, image_folder, checkpoint, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("IMGSIM_CACHE", str(cache))
    from imgsim import load_encoder, load_images
    from imgsim.extras.find.folder_index import FolderIndex

    FolderIndex(image_folder, str(checkpoint))
    load_encoder(checkpoint).embed(load_images(image_folder)["test"])
    assert {path.name for path in cache.iterdir()} == {"folders", "embeddings", "readable"}
    (cache / "thesis.txt").write_text("years")
    (cache / "folders" / "mine").mkdir()
    make("clean", IMGSIM_CACHE=str(cache))
    left = {str(path.relative_to(cache)) for path in cache.rglob("*")}
    assert left == {"thesis.txt", "folders", "folders/mine"}
    assert not (tmp_path / ".venv").exists()
    shutil.rmtree(cache / "folders")
    (cache / "thesis.txt").unlink()
    FolderIndex(image_folder, str(checkpoint))
    make("clean", IMGSIM_CACHE=str(cache))
    assert not cache.exists()


def test_tab_completes_commands(tmp_path):
    pytest.importorskip("argcomplete", reason="the extra completion is not installed")
    line, told = "imgsim fi", tmp_path / "told"
    variables = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    variables |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(told)}
    subprocess.run([sys.executable, "-m", "imgsim"], env=os.environ | variables, check=True)
    assert told.read_text().strip() == "find"
