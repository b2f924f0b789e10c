"""Write the repository's address into notebooks and README, clean notebooks, or execute them to store new outputs."""

import re
import sys
import tomllib
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
PICTURE = "image/png"
WIDGET = "application/vnd.jupyter.widget-view+json"
STORED = [path for path in NOTEBOOKS if path.name >= "01"]  # training the checkpoint takes too long to repeat


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def address() -> str:
    return project()["urls"]["Repository"]


def readdress(text: str, url: str) -> str:
    """The text with this address in Colab badges and links and, with this version's tag, where imgsim is installed."""
    text = re.sub(r"git\+https:[^\"\\` ]+", f"git+{url}@v{project()['version']}", text)
    slug = url.removeprefix("https://github.com/")
    text = re.sub(r"https://[\w-]+\.github\.io/[\w.-]+/", "https://{}.github.io/{}/".format(*slug.split("/")), text)
    return re.sub(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(/blob)", rf"\1{slug}\2", text)


def clean(notebook, prefix: str) -> None:
    """Keep outputs, but no timestamps, widget state, machine's versions or ids and counts that change by themselves."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{prefix}-{i:02d}"
        for name in ("execution", "ExecuteTime", "papermill", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    ran = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count]
    for count, cell in enumerate(ran, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {
            "codemirror_mode": {"name": "ipython", "version": 3},
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "name": "python",
            "nbconvert_exporter": "python",
            "pygments_lexer": "ipython3",
        },
    }


def shrink_picture(picture: str) -> str:
    """Return a PNG, base64 as a notebook holds it, in 256 colours: no worse to look at, a third of the size."""
    from PIL import Image

    smaller = BytesIO()
    Image.open(BytesIO(b64decode(picture))).convert("RGB").quantize(256).save(smaller, "PNG", optimize=True)
    return b64encode(smaller.getvalue()).decode()


def execute(path: Path) -> None:
    """Run a notebook and keep it clean."""
    from nbclient import NotebookClient  # the hook before a commit, which only cleans, has nbformat alone

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress bars
            for output in cell.outputs:
                if PICTURE in output.get("data", {}):
                    output.data[PICTURE] = shrink_picture(output.data[PICTURE])
    clean(notebook, path.stem[:2])
    nbformat.write(notebook, path)


def rewrite(path: Path) -> bool:
    """Clean a notebook in place; returns whether there was something to clean."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    clean(notebook, path.stem if path.stem.isalpha() else path.stem[:2])
    text = nbformat.writes(notebook) + "\n"
    if text != before:
        path.write_text(text, encoding="utf-8")
    return text != before


if __name__ == "__main__":
    if "--clean" in sys.argv:  # as a hook before a commit: a notebook that had to be cleaned stops it
        sys.exit(sum(rewrite(Path(name)) for name in sys.argv[2:]) > 0)
    elif "--address" in sys.argv:
        for path in [*NOTEBOOKS, ROOT / "README.md", ROOT / "docs" / "command-line.md"]:
            path.write_text(readdress(path.read_text(encoding="utf-8"), address()), encoding="utf-8")
    elif len(sys.argv) > 1:
        sys.exit(f"{__doc__}\n--address writes the address, --clean FILE... cleans, and without options it executes.")
    else:
        for path in STORED:
            print(path.name, flush=True)
            execute(path)
