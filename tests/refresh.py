"""Write the repository's address into the notebooks and README, or execute the notebooks to store new outputs."""

import re
import sys
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
STORED = [path for path in NOTEBOOKS if path.name >= "01"]  # training the checkpoint takes too long to repeat


def address() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def readdress(text: str, url: str) -> str:
    """The text with this address in its Colab badges and in the bootstrap's install line."""
    text = re.sub(r"git\+[^\"\\ ]+", f"git+{url}", text)
    slug = url.removeprefix("https://github.com/")
    return re.sub(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(/blob)", rf"\1{slug}\2", text)


def execute(path: Path) -> None:
    """Run a notebook and keep it clean: outputs and figures, but no timestamps, widget state or machine's versions."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "nbval-ignore-output" in tags and "keep-output" not in tags:
            cell.outputs = []  # progress bars
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    if "--address" in sys.argv:
        for path in [*NOTEBOOKS, ROOT / "README.md"]:
            path.write_text(readdress(path.read_text(encoding="utf-8"), address()), encoding="utf-8")
    else:
        for path in STORED:
            print(path.name, flush=True)
            execute(path)
