"""The pictures of notebooks 01 to 04: arrays and images in, a figure out.

The plots draw on the axes given, or on a new figure's, and return them; `axis.set` adds titles and labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import PIL.ImageOps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgsim.sources.decode import open_image

INK, QUIET, RIGHT, WRONG = "#1f2933", "#8a94a0", "#2a7d4f", "#b5442e"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def panels(columns: int, rows: int = 1, width: float = 4.6, height: float = 3.3) -> tuple[Figure, np.ndarray]:
    """Make a figure in the tutorial's style; return it and its axes in one flat array (rows * columns,)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return figure, axes.ravel()


def one_axis() -> Axes:
    """Return the axes of a new figure that holds one plot."""
    return panels(1, width=6)[1][0]


def plot_images(images, labels, colours=None, columns: int = 6) -> Figure:
    """Show images (anything that `open_image` takes) with coloured captions above, in rows of `columns`."""
    columns = min(columns, len(images))
    figure, axes = panels(columns, -(-len(images) // columns), 1.55, 1.9)
    for axis in axes:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes, images, strict=False)):
        axis.imshow(PIL.ImageOps.pad(open_image(image), (128, 128), color="white"))
        axis.set_title(str(labels[i]), fontsize=7, color=colours[i] if colours else INK, fontweight="normal")
    return figure


def show(figure: Figure, output: str, name: str) -> None:
    """Show a figure in a notebook, and write it to output/figures/name.png if there is an output folder."""
    if output:
        folder = Path(output) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png")
    plt.show()


def label_name(dataset, label: int) -> str:
    """Return the name of a label if the dataset has names, else its number, or "" if there is no label."""
    if label is None or label < 0:
        return ""
    names = getattr(dataset.features.get("labels"), "names", None)
    return names[label] if names else str(label)


def visualize_lsh(lsh_builder, dataset, query: int = 0, top_k: int = 5) -> Figure:
    """Query an index with one image and show it with its `top_k` matches, see `plot_matches`."""
    matches = lsh_builder.query(dataset[1][query]["image"], top_k=top_k)
    pairs = zip(matches.overlap, matches.cosine, strict=True)
    scores = [f"overlap {overlap:.1f}, cosine {cosine:.2f}" for overlap, cosine in pairs]
    return plot_matches(dataset, query, matches.ids, scores)


def plot_matches(dataset, query: int, ids, scores) -> Figure:
    """Show a query with its matches; a match's caption is green if its label is the query's, else red.

    Args:
        dataset: (candidates, queries), as `candidates_and_queries` returns them.
        query: a row of the queries.
        ids: rows of the candidates (t,); places of -1, as a SearchResult has them, stay empty.
        scores: what stands below each match's label.
    """
    candidates, queries = dataset
    asked = queries[query]
    label = asked.get("labels")
    images, captions, colours = [asked["image"]], [f"query\n{label_name(queries, label)}"], [INK]
    for i, score in zip(ids, scores, strict=True):
        if i < 0:
            break
        match = candidates[int(i)]
        images.append(match["image"])
        captions.append(f"{label_name(candidates, match.get('labels'))}\n{score}")
        colours.append(INK if label in (None, -1) else RIGHT if match["labels"] == label else WRONG)
    return plot_images(images, captions, colours)


def plot_lines(x, lines: dict, points: dict | None = None, axis: Axes | None = None) -> Axes:
    """Plot named lines (len(x),) and, in the same colours, named measured points (x, y)."""
    axis = axis or one_axis()
    for name, y in lines.items():
        (line,) = axis.plot(x, y, label=name, linewidth=1.8)
        if points and name in points:
            axis.plot(*points[name], "o", color=line.get_color(), markersize=5)
    if len(lines) > 1:
        axis.legend(fontsize=8)
    return axis


def plot_histograms(groups: dict, bins, axis: Axes | None = None) -> Axes:
    """Plot histograms of named groups of numbers over one another, each as a share of its group."""
    axis = axis or one_axis()
    for name, values in groups.items():
        axis.hist(values, bins=bins, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=name)
    axis.set(ylabel="share")
    axis.legend(fontsize=8)
    return axis


def plot_bars(names, heights, axis: Axes | None = None) -> Axes:
    """Plot one bar per name with its height above it."""
    axis = axis or one_axis()
    bars = axis.bar(names, heights, color="#4c78a8", width=0.6)
    axis.bar_label(
        bars, fmt=lambda height: f"{height:.0f}" if height >= 100 else f"{height:.2g}", fontsize=9, padding=2
    )
    axis.grid(visible=False, axis="x")
    axis.margins(y=0.12)
    return axis
