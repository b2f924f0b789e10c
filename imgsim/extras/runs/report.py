"""Executed notebooks as one HTML page that needs neither Jupyter nor a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from imgsim.sources.cache import atomic_write

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
BADGE = re.compile(r"^\[!\[.*\n?", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(\d\d_\w+\.ipynb\)")  # to another notebook: here it is the same page


def as_mathml(match: re.Match) -> str:
    """Return a formula between dollar signs as MathML, which browsers show by themselves."""
    from latex2mathml.converter import convert

    block, inline = match.groups()
    return convert(block or inline, display="block" if block else "inline")


def write_report(notebooks: Sequence[Path], target: Path) -> None:
    """Write executed notebooks, formulas and pictures included, as one HTML page.

    Args:
        notebooks: the files, in order.
        target: the page.
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
    exporter = HTMLExporter(exclude_anchor_links=True, mathjax_url="", require_js_url="")
    html, _ = exporter.from_notebook_node(page, resources={"metadata": {"name": f"imgsim: {target.parent.name}"}})
    with atomic_write(target) as beside:
        beside.write_text(html, encoding="utf-8")
