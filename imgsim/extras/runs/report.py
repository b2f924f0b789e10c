"""Executed notebooks as one HTML page that needs neither Jupyter nor a network; a run's page starts with the result."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from imgsim.sources.cache import atomic_write

TEMPLATE = Path(__file__).parents[2] / "assets" / "report.html"
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
BADGE = re.compile(r"^\[!\[.*\n?", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(\d\d_\w+\.ipynb\)")  # to another notebook: here it is the same page
NUMBERS = (
    ("recall_at_10", "{:.1%}", "of the ten nearest found (recall at 10)"),
    ("candidate_fraction", "{:.1%}", "of the candidates seen"),
    ("label_precision_at_5", "{:.1%}", "of the matches have the query's label"),
    ("indexed", "{:,}", "images in the index"),
    ("query_ms", "{:.2f} ms", "per query"),
)


def as_mathml(match: re.Match) -> str:
    """Return a formula between dollar signs as MathML, which browsers show by themselves."""
    from latex2mathml.converter import convert

    block, inline = match.groups()
    return convert(block or inline, display="block" if block else "inline")


def read_result(folder: Path, settings: dict) -> dict:
    """Read what a run's page starts with: metrics.json, and the pictures of notebook 4 in base64, by name."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    files = sorted((folder / "figures").glob("04-*.png"))
    return {
        "title": " · ".join(Path(settings[name]).name for name in ("dataset", "checkpoint")),
        "settings": settings,
        "metrics": metrics,
        "numbers": [row for row in NUMBERS if metrics[row[0]] is not None],
        "pictures": {file.stem: b64encode(file.read_bytes()).decode() for file in files},
    }


def write_report(notebooks: Sequence[Path], target: Path, run: dict | None = None) -> None:
    """Write executed notebooks, formulas and pictures included, as one HTML page.

    Args:
        notebooks: the files, in order.
        target: the page.
        run: what the page starts with, see `read_result`.
    """
    import nbformat
    from nbconvert import HTMLExporter  # takes a second

    parts = [nbformat.read(path, as_version=4) for path in notebooks]
    page = parts[0]
    page.cells = [cell for part in parts for cell in part.cells if "bootstrap" not in cell.metadata.get("tags", [])]
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(as_mathml, LINK.sub(r"\1", BADGE.sub("", cell.source)))
        else:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress bars
    exporter = HTMLExporter(exclude_anchor_links=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.raw_template = TEMPLATE.read_text(encoding="utf-8")
    title = f"imgsim: {target.parent.name}"
    html, _ = exporter.from_notebook_node(page, resources={"title": title, "run": run})
    with atomic_write(target) as beside:
        beside.write_text(html, encoding="utf-8")
