"""The project's files hold one another: pins and ranges, addresses, settings, sizes."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("nbformat", reason="the extra notebooks is not installed")

import nbformat
import yaml
from baseline import BAND, SAME, compare
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from refresh import WIDGET, address, readdress, rewrite

from imgsim.extras.runs.settings import DEFAULTS, complete_settings
from imgsim.extras.sweeps.points import read_points

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(file):
    """The pins of a file, each a name in lower case with hyphens and a version."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_pins_satisfy_every_range_in_pyproject():
    extras = PROJECT["project"]["optional-dependencies"]
    run, test = pins("requirements.txt"), pins("requirements-test.txt")
    assert not run.keys() & test.keys()
    for pinned, wanted in (
        (run, PROJECT["project"]["dependencies"] + extras["notebooks"]),
        (run | test, [line for lines in extras.values() for line in lines]),
    ):
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_what_make_run_installs_holds_no_tool_of_the_tests():
    assert not pins("requirements.txt").keys() & {"faiss-cpu", "hypothesis", "mypy", "nbval", "pytest", "ruff"}


def test_every_package_is_in_the_wheel():
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "imgsim").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages | {"imgsim.notebooks"}


def test_conda_environment_points_at_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert environment[-1] == {"pip": ["-r requirements.txt", "-e ."]}
    assert environment[0].startswith("python=3.1") and environment[1] == "pip"


ADDRESSED = [*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "README.md", ROOT / "docs" / "command-line.md"]


def test_addresses_come_from_pyproject():
    for path in ADDRESSED:
        text = path.read_text(encoding="utf-8")
        elsewhere = readdress(text, "https://github.com/somebody/fork")
        assert "somebody/fork" in elsewhere and readdress(text, address()) == text, path.name
        assert "imgsim.github.io" not in elsewhere and "github/imgsim" not in elsewhere


def test_colab_installs_the_tag_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tag = f"git+{project['urls']['Repository']}@v{project['version']}"
    for path in ADDRESSED:
        assert path.read_text(encoding="utf-8").count("git+https") == path.read_text(encoding="utf-8").count(tag) == 1
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_becomes_a_script(path):
    exporters = pytest.importorskip("nbconvert.exporters", reason="the extra notebooks is not installed")
    code, kind = exporters.ScriptExporter().from_filename(str(path))
    assert kind["output_extension"] == ".py"
    compile(code, path.name, "exec")


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.name)
def test_parameter_files_hold_known_settings(path):
    assert all(complete_settings({name: point[name] for name in DEFAULTS}) for point in read_points(path))


def test_cleaning_keeps_outputs_and_drops_what_changes_by_itself(tmp_path):
    stored, path = ROOT / "notebooks" / "03_tables.ipynb", tmp_path / "03_tables.ipynb"
    notebook = nbformat.read(stored, as_version=4)
    notebook.metadata["widgets"] = {"state": {}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"random-{i}"
        cell.metadata["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00Z"}
        if cell.cell_type == "code":
            cell.outputs.append(nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "1"}}))
            cell.execution_count = cell.execution_count and cell.execution_count + 7
    nbformat.write(notebook, path)
    assert rewrite(path) and not rewrite(path)
    assert nbformat.read(path, as_version=4) == nbformat.read(stored, as_version=4)


def test_notebooks_are_kept_clean(tmp_path):
    for path in ROOT.glob("notebooks/**/*.ipynb"):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        assert not rewrite(copy), path.name


def test_baseline_tells_what_has_left_its_band(tmp_path):
    metrics = dict.fromkeys(SAME, 100) | dict.fromkeys(BAND, 0.5)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    command = [
        sys.executable,
        ROOT / "scripts" / "baseline.py",
        tmp_path / "metrics.json",
        tmp_path / "kept" / "b.json",
    ]
    assert [subprocess.run(command, capture_output=True).returncode for _ in range(2)] == [0, 0]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"recall_at_10": 0.4}))
    assert subprocess.run(command, capture_output=True).returncode == 1
    assert compare(metrics | {"recall_at_10": 0.52}, metrics) == []
    assert compare(metrics | {"queries": 99}, metrics) == ["queries was 100 and is 99"]


def test_the_documentation_tells_the_defaults():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name, value in DEFAULTS.items():
        assert re.search(rf"^\| `{name}` \|.*\| `?{value}`? \|$", page, re.MULTILINE), name


def test_import_is_light_and_tells_the_version():
    code = "import sys, imgsim; assert not {'torch', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; assert imgsim.__version__[0].isdigit()"], check=True)


def test_nothing_is_unpickled_and_no_remote_code_is_trusted():
    code = "\n".join(path.read_text() for path in (ROOT / "imgsim").rglob("*.py"))
    assert not re.search(r"import pickle|torch\.load\(|allow_pickle=True|trust_remote_code=True", code)


def test_the_characters_in_the_comparison_are_those_of_its_listings():
    page = (ROOT / "docs" / "other-tools.md").read_text(encoding="utf-8")
    stated = [int(row.split("|")[3]) for row in page.splitlines() if re.match(r"\| (imgsim|\[)", row)]
    listings = re.findall(r"^```\w*\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)
    counted = [len("\n".join(line for line in text.split("\n") if not line.startswith("#"))) for text in listings]
    assert stated == counted and len(stated) == 6
