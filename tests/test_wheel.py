"""A wheel works without the clone: it carries the notebooks to execute, and results go to the caller's folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="the extra notebooks is not installed")

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


def test_a_wheel_runs_in_an_empty_folder_and_leaves_its_own_as_it_was(site, image_folder, checkpoint, tmp_path):
    installed, environment = files(site), os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "imgsim", "run", "--dataset", image_folder, "--checkpoint", checkpoint]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    (run,) = (tmp_path / "outputs").iterdir()
    assert (run / "report.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"] and files(site) == installed


def test_a_wheel_carries_types_and_all_notebooks_to_execute(site):
    for name in (*NOTEBOOKS, POINT, REPORT):
        assert (site / "imgsim" / "notebooks" / f"{name}.ipynb").exists(), name
    assert (site / "imgsim" / "py.typed").exists() and (site / "imgsim" / "__init__.pyi").exists()
