"""The notebooks' anatomy, and their bootstrap in a simulated Colab. nbval executes them beside these tests."""

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="the extra notebooks is not installed")

import nbformat
import papermill
from jupyter_client.manager import start_new_kernel
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from imgsim.encoder import load_encoder
from imgsim.extras.runs.settings import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds after which a cell that takes some hangs, on slow machines too
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
TUTORIAL = [path for path in PATHS if path.stem[:2] != "00"]


def cells_tagged(path, tag):
    return [cell for cell in nbformat.read(path, as_version=4).cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_notebook_has_the_same_anatomy(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith("# ") and "colab-badge" in notebook.cells[0].source
    assert cells_tagged(path, "bootstrap") == [code[0]]
    assert len(cells_tagged(path, "parameters")) == 1
    assert any("assert " in cell.source for cell in code)
    assert notebook.metadata["kernelspec"]["name"] == "python3" and "widgets" not in notebook.metadata
    assert not any("execution" in cell.metadata for cell in code)
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_parameters_are_typed_commented_literals(path):
    lines = cells_tagged(path, "parameters")[0].source.splitlines()
    assert all(re.fullmatch(r"\w+: (str|int|float|bool) = \S.*  # .+", line) for line in lines)
    assert len(papermill.inspect_notebook(str(path))) == len(lines)


@pytest.mark.parametrize("path", TUTORIAL, ids=[path.stem for path in TUTORIAL])
def test_parameters_have_the_common_names_and_defaults(path):
    known = DEFAULTS | {
        "output": "",
        "rerank": 200,
        "recall": 0.9,
        "results": "",
        "captions": "",
        "audio_checkpoint": "",
        "copies": 75,
        "interactive": False,
    }
    for name, entry in papermill.inspect_notebook(str(path)).items():
        assert (
            entry["default"].strip("'\"") == str(known[name])
            and entry["inferred_type_name"] == type(known[name]).__name__
        )


@pytest.mark.parametrize("path", TUTORIAL, ids=[path.stem for path in TUTORIAL])
def test_outputs_and_figures_are_stored(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("text/plain" in output.get("data", {}) or "text" in output for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


def test_every_picture_is_told_in_words():
    for path in PATHS:
        for cell in nbformat.read(path, as_version=4).cells:
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                assert cell.metadata.get("alt"), (path.name, cell.source)


def test_cells_are_small():
    for path in TUTORIAL:
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        code = [source for source in code if not source.startswith(("import ", "from "))]  # one name per line
        lengths = sorted(len([line for line in source.splitlines() if line.strip()]) for source in code)
        assert lengths[len(lengths) // 2] <= 6 and lengths[-1] <= 20, path.name


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the checkout is no git clone to install from")
def test_bootstrap_installs_in_colab_and_does_nothing_elsewhere(tmp_path):
    stub, empty, colab = (tmp_path / name for name in ("stub", "empty", "colab"))
    (stub / "google" / "colab").mkdir(parents=True)
    (stub / "google" / "colab" / "__init__.py").touch()
    empty.mkdir()
    # As in Colab, torch and the rest are there and imgsim is not.
    venv.create(colab)  # without a pip of its own: it finds the one beside the rest
    site = next(colab.glob("lib/python*/site-packages"))
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))
    clone = ROOT.as_uri().replace("file:///", "file://localhost/")  # pip takes no address without a host
    install = re.sub(r"git\+[^\"]+", f"git+{clone}", cells_tagged(TUTORIAL[0], "bootstrap")[0].source)
    code = "import sys\nfrom IPython.core.interactiveshell import InteractiveShell\n"
    code += "shell = InteractiveShell.instance()\n"
    code += f"shell.run_cell(sys.argv[1]).raise_error()\nshell.run_cell({install!r}).raise_error()\n"
    for first, installed in (("", False), ("import google.colab", True)):
        command = [str(colab / "bin" / "python"), "-c", code, first]
        answer = subprocess.run(command, cwd=empty, env=os.environ | {"PYTHONPATH": str(stub)}, capture_output=True)
        assert answer.returncode == 0, answer.stderr
        assert (site / "imgsim" / "assets" / "leaf-vit" / "model.safetensors").exists() == installed
    assert not (site / "torch").exists() and not (site / "numpy").exists() and not (site / "PIL").exists()


def outputs_of(code, notebook):
    """Execute a notebook up to the cell that holds this code, and give what that cell puts out.

    Not by nbclient: it talks to widgets itself, and can then miss a cell's reply for ever.
    """
    manager, client = start_new_kernel(startup_timeout=PATIENCE, kernel_name="python3")
    try:
        for cell in notebook.cells:
            messages = []
            if cell.cell_type == "code":
                reply = client.execute_interactive(cell.source, output_hook=messages.append, timeout=PATIENCE)
                assert reply["content"]["status"] == "ok", reply["content"]
                if code in cell.source:
                    return [message["content"] for message in messages]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    ("stem", "code"),
    [("02_hashing", "explore_widget("), ("03_tables", "explore_widget("), ("04_inference", "interact(")],
)
def test_widgets_are_shown_only_when_asked(stem, code, image_folder, checkpoint):
    path = next(path for path in PATHS if path.stem == stem)
    settings = {"dataset": str(image_folder), "checkpoint": str(checkpoint), "interactive": True}
    settings |= {"probes": 40} if stem == "04_inference" else {}
    shown = outputs_of(code, parameterize_notebook(load_notebook_node(str(path)), settings))
    assert sum("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in shown) == 1
    (stored,) = [cell for cell in nbformat.read(path, as_version=4).cells if code in cell.source]
    assert stored.outputs == []


@pytest.mark.parametrize("start", ["", "a ViT to fine-tune"])
def test_checkpoint_notebook_trains_and_saves_at_toy_scale(start, tmp_path, image_folder, checkpoint, in_this_process):
    settings = {"dataset": str(image_folder), "checkpoint": str(checkpoint) if start else "", "output": str(tmp_path)}
    settings |= {"epochs": 1, "finishing": 1, "batch_size": 8}
    papermill.execute_notebook(str(PATHS[0]), str(tmp_path / "out.ipynb"), settings, progress_bar=False)
    encoder = load_encoder(tmp_path / "checkpoint", device="cpu")
    assert encoder.dim == (32 if start else 192)
    assert encoder.digest != load_encoder(checkpoint, device="cpu").digest
