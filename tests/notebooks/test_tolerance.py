"""The comparison of notebooks' outputs: what it lets pass, and what it does not, in itself and through nbval."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbval", reason="nbval is not installed")

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output
from tolerance import COUNTS_VARY, are_alike

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("stored", "printed", "alike"),
    [
        ("recall 0.94 of 128", "recall 0.93 of 128", True),
        ("recall 0.94 of 128", "recall 0.92 of 128", False),
        ("recall 0.94 of 128", "recall 0.94 of 127", False),
        ("recall 0.94 of 128", "precision 0.94 of 128", False),
        ("recall 0.94 of 128", "recall 0.94", False),
        ("recall 0.94 of 128", "recall 0.94 of 128 128", False),
        ("seeing 7% of them", "seeing 8% of them", True),
        ("seeing 7% of them", "seeing 9% of them", False),
        ("seeing 7% of them", "seeing 7 of them", False),
        ("9.0% compared", "9.2% compared", False),
        ("[0.9, 0.1]", "[0.85, 0.1]", False),  # the longer of two numbers says how exact both are
        ("12345.678", "12350.0", True),
        ("12345.678", "12370.0", False),
        ("error 1.3e-07", "error 1.4e-07", True),
        ("error 1.3e-07", "error 1.3e-06", False),
        ("mean -0.00", "mean 0.00", True),
        ("mean -0.50", "mean 0.50", False),
        ("mean nan", "mean 0.50", False),
        ("id 75_0: 0.25", "id 76_0: 0.25", False),  # a number inside a word is a name
        ("float32", "float16", False),
        ("  9.99  a\n", " 10.00  a\n", True),  # columns are as wide as their numbers
        ("<td>0.94</td>", "<td>0.95</td>", True),
        ("<td>0.94</td>", "<td>0.96</td>", False),
    ],
)
def test_words_are_the_same_and_numbers_close(stored, printed, alike):
    assert are_alike(stored, printed) == alike
    assert are_alike(stored, stored) and are_alike(printed, printed)


@pytest.mark.parametrize(
    ("stored", "printed", "alike"),
    [
        ("Matches: 328", "Matches: 334", True),
        ("Matches: 328", "Matches: 336", False),
        ("in 5 buckets", "in 6 buckets", True),
        ("in 5 buckets", "in 7 buckets", False),
        ("recall 0.94", "recall 0.92", False),
    ],
)
def test_counts_that_vary_are_close(stored, printed, alike):
    assert are_alike(stored, printed, counts_vary=True) == alike
    assert not are_alike(stored, printed)


def cell(code, *outputs, **metadata):
    return new_code_cell(code, outputs=list(outputs), execution_count=1, metadata=metadata)


def result(**data):
    return new_output("execute_result", {name.replace("_", "/"): text for name, text in data.items()})


def html(text):
    return result(text_html=text, text_plain="<IPython.core.display.HTML object>")


def test_a_doctored_notebook_fails_where_a_number_has_left_its_tolerance(tmp_path):
    cells = {
        "close": cell("print('recall 0.94')", new_output("stream", text="recall 0.95\n")),
        "far": cell("print('recall 0.94')", new_output("stream", text="recall 0.96\n")),
        "count": cell("print('Matches:', 328)", new_output("stream", text="Matches: 330\n")),
        "tagged": cell("print('Matches:', 328)", new_output("stream", text="Matches: 330\n"), tags=[COUNTS_VARY]),
        "close result": cell("{'recall': 0.94}", result(text_plain="{'recall': 0.93}")),
        "other words": cell("{'recall': 0.94}", result(text_plain="{'precision': 0.94}")),
        "missing": cell("0.94", result(text_plain="0.94"), new_output("stream", text="0.94")),
        "far in HTML": cell("from IPython.display import HTML; HTML('<b>0.94</b>')", html("<b>0.97</b>")),
        "close in HTML": cell("HTML('<b>0.94</b>')", html("<b>0.93</b>")),
    }
    nbformat.write(new_notebook(cells=list(cells.values())), tmp_path / "doctored.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-rA", "doctored.ipynb"]
    path = os.pathsep.join([str(ROOT / "tests" / "notebooks"), os.environ.get("PYTHONPATH", "")])
    said = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    passed = [name for i, name in enumerate(cells) if f"PASSED doctored.ipynb::Cell {i}" in said.stdout]
    failed = [name for i, name in enumerate(cells) if f"FAILED doctored.ipynb::Cell {i}" in said.stdout]
    assert passed == ["close", "tagged", "close result", "close in HTML"], said.stdout + said.stderr
    assert failed == ["far", "count", "other words", "missing", "far in HTML"]
