"""A wheel works without the clone: it carries the notebooks to execute, and results go to the caller's folder.

Its run is the one on somebody's own photographs, without labels and among broken files.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="the extra notebooks is not installed")

import nbformat
from oddities import ODD, write_broken, write_odd

from imgsim.extras.runs.environment import NOTEBOOKS, POINT
from imgsim.extras.sweeps.sweep import REPORT

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.extra]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but the installed wheel, which is built from a copy: a build leaves files behind."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("imgsim", "notebooks"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, source], check=True)
    return site


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of odd images and what has to be left out of it, with a word of the reason."""
    folder = write_odd(tmp_path_factory.mktemp("hostile") / "photos")
    bad = write_broken(folder)
    # As your own photographs are: some here, some deeper, and all the others once more through a link.
    return folder / "one", {name.removeprefix("one/"): why for name, why in bad.items()}


@pytest.fixture(scope="module")
def finished(site, bad, checkpoint, tmp_path_factory):
    """What a run in an empty folder printed, and the folder."""
    empty, installed, environment = (
        tmp_path_factory.mktemp("empty"),
        files(site),
        os.environ | {"PYTHONPATH": str(site)},
    )
    command = [sys.executable, "-m", "imgsim", "run", "--dataset", bad[0], "--checkpoint", checkpoint]
    process = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert files(site) == installed
    return process.stdout, empty


def test_a_wheel_runs_in_an_empty_folder_and_leaves_its_own_as_it_was(finished):
    (run,) = (finished[1] / "outputs").glob("[!.]*")
    assert (run / "report.html").exists()
    assert [path.name for path in finished[1].iterdir()] == ["outputs"]


def test_a_run_on_unlabelled_images_lists_what_it_left_out(finished, bad):
    printed, (run,) = finished[0], (finished[1] / "outputs").glob("[!.]*")
    skipped = json.loads((run / "run.json").read_text(encoding="utf-8"))["skipped"]
    assert {entry["path"]: bad[1][entry["path"]] in entry["reason"] for entry in skipped} == dict.fromkeys(bad[1], True)
    assert f"Left out {len(bad[1])} of" in printed
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["candidates"] + metrics["queries"] == len(ODD) + 3
    assert metrics["label_precision_at_5"] is metrics["exact_label_precision_at_5"] is None
    assert 0 <= metrics["recall_at_10"] <= 1 and metrics["queries"] == (len(ODD) + 3) // 10
    gallery = nbformat.read(run / "04_inference.ipynb", as_version=4)
    assert any("image/png" in out.get("data", {}) for cell in gallery.cells for out in cell.get("outputs", []))


def test_a_wheel_carries_types_and_all_notebooks_to_execute(site):
    for name in (*NOTEBOOKS, POINT, REPORT):
        assert (site / "imgsim" / "notebooks" / f"{name}.ipynb").exists(), name
    assert (site / "imgsim" / "py.typed").exists() and (site / "imgsim" / "__init__.pyi").exists()
