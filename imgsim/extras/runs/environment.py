"""What a result depends on besides settings and inputs: versions, machine and code; and variables for processes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import imgsim

PACKAGE = Path(imgsim.__file__).resolve().parent
LIBRARIES = ("numpy", "numba", "pillow", "torch", "transformers", "datasets", "papermill")
NOTEBOOKS = ("01_embeddings", "02_hashing", "03_tables", "04_inference")
POINT = "sweep/point"  # executed for each point of a sweep


@contextmanager
def environ(**values: str) -> Iterator[None]:
    """Set environment variables for a while, for the processes started meanwhile too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def find_notebook(name: str) -> Path:
    """Find a notebook that is executed as a template: a wheel has it in the package, a checkout beside it."""
    folder = PACKAGE / "notebooks"
    return (folder if folder.is_dir() else PACKAGE.parent / "notebooks") / f"{name}.ipynb"


def code_digest() -> str:
    """Return a digest of all code that a result depends on: the package's, and that in the notebooks' cells."""
    digest = blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    for name in (*NOTEBOOKS, POINT):
        cells = json.loads(find_notebook(name).read_text(encoding="utf-8"))["cells"]
        digest.update("\0".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").encode())
    return digest.hexdigest()


def git(*arguments: str) -> str:
    """Return what git says about the checkout, or "" if there is none."""
    if not (PACKAGE.parent / ".git").exists():  # a repository around site-packages is another project's
        return ""
    try:
        return subprocess.run(["git", "-C", PACKAGE.parent, *arguments], capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        return ""


def environment() -> dict:
    """Return the part of run.json that tells versions, machine, and the code with its commit."""
    versions = {"python": platform.python_version(), "imgsim": imgsim.__version__}
    return {
        "versions": versions | {name: version(name) for name in LIBRARIES},
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "code": code_digest(),
        "commit": git("rev-parse", "HEAD") or None,
        "changed": bool(git("status", "--porcelain")),
    }
