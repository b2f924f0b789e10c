"""The house: which files the core has, how long they are, and who imports whom."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "imgsim"
CORE = {"__init__", "__main__", "images", "encoder", "hashing", "tables", "index", "evaluation", "figures"}
LAYERS = [  # from the ground up; rooms of one layer do not import one another
    {"hashing", "sources"},
    {"images", "tables", "evaluation", "figures", "models"},
    {"encoder", "search"},
    {"index"},
    {"extras"},
]
SHARED_EXTRAS = {"runs", "modalities"}  # rooms of extras that the others may use
MODULES = sorted(PACKAGE.rglob("*.py"))


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def layer(room):
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


def imported(source):
    """The parts of the names of all modules of imgsim that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1:] for name in names if name.split(".")[0] == "imgsim")


def allowed(own, other):
    """Whether a module of these parts may import one of those."""
    if own[0].startswith("__"):  # the package's face
        return True
    if not other or own[0] != other[0]:  # imgsim itself is asked for its version only
        return own[0] == "extras" or (bool(other) and layer(other[0]) < layer(own[0]))
    return own[0] != "extras" or own[1] == "cli" or other[1] in {own[1], *SHARED_EXTRAS}


def faults(path, source):
    """The imports of a module that go upwards or sideways."""
    own = path.relative_to(PACKAGE).with_suffix("").parts
    return [".".join(other) for other in imported(source) if not allowed(own, other)]


def test_the_core_is_these_files_and_stays_thin():
    assert {path.stem for path in PACKAGE.glob("*.py*")} == CORE
    assert sum(map(lines, PACKAGE.glob("*.py*"))) <= 1300


def test_no_module_is_long():
    assert [path.name for path in MODULES if lines(path) > 300] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_downwards(path):
    assert faults(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("tables", "from imgsim.index import BuildLSHTable", True),
        ("tables", "def f():\n    import imgsim.search.kernels", True),
        ("tables", "from imgsim.images import labels_of", True),
        ("search/storage", "from imgsim.tables import LSH", False),
        ("sources/folder", "from imgsim import extras", True),
        ("extras/demo", "from imgsim.extras.sweeps import points", True),
        ("extras/demo", "from imgsim.extras.runs import saved", False),
        ("extras/scale/build", "from imgsim.extras.scale.shards import Shards", False),
    ],
)
def test_an_import_upwards_is_noticed(module, source, fault):
    assert bool(faults(PACKAGE / f"{module}.py", source)) == fault


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("0[1-4]_*.ipynb")), ids=lambda path: path.stem)
def test_the_tutorial_imports_from_imgsim_itself(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    sources = [source for source in code if not source.lstrip().startswith(("import sys\n\nif", "%"))]
    names = [name for source in sources if not source.startswith("if interactive") for name in imported(source)]
    assert names and all(len(name) == 1 for name in names)
