"""The pictures of notebooks 01 to 04: arrays and images in, a figure out.

The plots draw on the axes given, or on a new figure's, and return them; `axis.set` adds titles and labels.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.ImageOps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from imgsim.sources.decode import open_image
from imgsim.sources.fonts import FONTS, readable

INK, QUIET, RIGHT, WRONG, PROBE = "#1f2933", "#8a94a0", "#2a7d4f", "#b5442e", "#d98e04"
COLOURS = ("#2f6690", "#d98e04", "#7a5195", "#2a7d4f", "#b5442e", "#8a94a0")
STYLE = Path(__file__).parent / "assets" / "imgsim.mplstyle"


def panels(columns: int, rows: int = 1, width: float = 4.6, height: float = 3.3) -> tuple[Figure, np.ndarray]:
    """Make a figure in the tutorial's style; return it and its axes in one flat array (rows * columns,)."""
    plt.style.use(STYLE)  # for good: titles and legends come later, and take what holds then
    plt.rcParams["font.family"] = FONTS
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return figure, axes.ravel()


def one_axis() -> Axes:
    """Return the axes of a new figure that holds one plot."""
    return panels(1, width=6)[1][0]


def plot_images(images, labels, colours=None, columns: int = 6) -> Figure:
    """Show images (anything that `open_image` takes) with coloured captions above, in rows of `columns`.

    A line of a caption that no font can show is replaced by the image's number in this picture.
    """
    columns = max(1, min(columns, len(images)))
    figure, axes = panels(columns, max(1, -(-len(images) // columns)), 1.62, 2.0)
    for axis in axes:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes, images, strict=False)):
        axis.imshow(PIL.ImageOps.pad(open_image(image), (150, 150), color="white"))
        caption = "\n".join(readable(line, f"image {i}") for line in str(labels[i]).split("\n"))
        axis.set_title(caption, fontsize=9, color=colours[i] if colours else INK, fontweight="normal", parse_math=False)
    return figure


def show(figure: Figure, output: str, name: str) -> None:
    """Show a figure in a notebook, and write it to output/figures/name.png if there is an output folder."""
    if output:
        folder = Path(output).expanduser() / "figures"
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
    return plot_matches(dataset, query, matches.ids, [f"cosine {cosine:.2f}" for cosine in matches.cosine])


def plot_matches(dataset, query: int, ids, scores) -> Figure:
    """Show a query, in a frame, with its matches; a match with the query's label is green and has a ✓, else red, ✗.

    Args:
        dataset: (candidates, queries), as `candidates_and_queries` returns them.
        query: a row of the queries.
        ids: rows of the candidates (t,); places of -1, as a SearchResult has them, stay empty.
        scores: what stands below each match's label.
    """
    candidates, queries = dataset
    asked = queries[query]
    label = asked.get("labels")
    images, captions, colours = [asked["image"]], [f"query {query}\n{label_name(queries, label)}"], [INK]
    for i, score in [match for match in zip(ids, scores, strict=True) if match[0] >= 0]:
        match = candidates[int(i)]
        right = None if label in (None, -1) else match["labels"] == label
        mark, colour = {None: ("", INK), True: ("✓ ", RIGHT), False: ("✗ ", WRONG)}[right]
        images.append(match["image"])
        captions.append(f"{mark}{label_name(candidates, match.get('labels'))}\n{score}")
        colours.append(colour)
    figure = plot_images(images, captions, colours)
    figure.axes[0].add_artist(plt.Rectangle((0, 0), 1, 1, transform=figure.axes[0].transAxes, fill=False, lw=5, ec=INK))
    return figure


def plot_map(points: np.ndarray, images, groups=None, room: float = 0.07) -> Axes:
    """Plot points (n, 2) as dots, coloured by group (n,) if there are any, and their images where there is room.

    `room` is the least distance between two images, as a share of the map's width.
    """
    axis = panels(1, width=9.3, height=6.2)[1][0]
    colours = np.array(COLOURS)[np.zeros(len(points), int) if groups is None else np.asarray(groups) % len(COLOURS)]
    axis.scatter(points[:, 0], points[:, 1], s=12, c=colours, linewidths=0)
    room, shown = room * max(float(np.ptp(points[:, 0])), 1e-6), np.empty((0, 2))
    for i, point in enumerate(points):
        if (np.abs(shown - point).max(axis=1) > room).all():
            shown = np.vstack([shown, point])
            small = OffsetImage(np.asarray(PIL.ImageOps.fit(open_image(images[i]["image"]), (96, 96))), zoom=0.3)
            axis.add_artist(AnnotationBbox(small, point, pad=0.06, bboxprops={"edgecolor": colours[i], "linewidth": 2}))
    axis.set(xticks=[], yticks=[], aspect="equal", xlabel="first direction", ylabel="second direction")
    return axis


def plot_cells(points, projection, query=None, neighbour=None, probe: bool = False, axis: Axes | None = None) -> Axes:
    """Plot the planes of a projection on a map of points (n, 2), and what a query finds there.

    Args:
        points: (n, 2).
        projection: a Projection in two dimensions, which decides every cell, code and colour.
        query: (2,), a star; its cells are shaded, and the points in them are green.
        neighbour: (2,), a ring; green if it is found, else red.
        probe: look across the plane nearest to the query in each table, too.
    """
    axis, mean = axis or one_axis(), projection.mean
    reach = 1.1 * float(np.abs(points - mean).max(initial=0)) or 1.0
    sides = np.linspace(-reach, reach, 200)
    axis.set(xlim=mean[0] + sides[[0, -1]], ylim=mean[1] + sides[[0, -1]], aspect="equal", xticks=[], yticks=[])
    for normal in projection.planes.transpose(0, 2, 1).reshape(-1, 2):
        axis.axline(mean, mean + normal[::-1] * (1, -1), color=INK, linewidth=1)
    axis.scatter(points[:, 0], points[:, 1], s=12, c=COLOURS[0] if query is None else QUIET, linewidths=0)
    if query is None:
        return axis
    codes, margins = projection(query)[0], projection.margins(query)[0]
    across = codes ^ (1 << np.abs(margins).argmin(axis=1)).astype(codes.dtype)
    found = np.zeros(len(points) + 1, bool)
    rows = np.vstack([points, query if neighbour is None else neighbour])
    grid = mean + np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    cells = projection(grid)
    for colour, wanted in ((RIGHT, codes), (PROBE, across))[: 1 + probe]:
        found |= (projection(rows) == wanted).any(axis=1)
        for inside in (cells == wanted).T.reshape(-1, 200, 200):
            axis.contourf(mean[0] + sides, mean[1] + sides, inside, [0.5, 1.5], colors=[colour], alpha=0.2)
    if len(codes) == 1:
        for code in np.unique(cells):
            towards = grid[cells[:, 0] == code].mean(axis=0) - mean
            place = mean + 0.9 * reach * towards / max(np.abs(towards).max(), 1e-9)
            axis.text(place[0], place[1], f"{code:0{len(margins[0])}b}", ha="center", va="center", family="monospace")
    axis.scatter(points[found[:-1], 0], points[found[:-1], 1], s=14, c=RIGHT, linewidths=0)
    axis.plot(*query, "*", color=INK, markersize=18, markeredgecolor="white")
    if neighbour is not None:
        axis.plot(*neighbour, "o", color="white", mec=RIGHT if found[-1] else WRONG, markersize=10, mew=3)
    return axis


def plot_shares(steps: dict[str, tuple[float, float]]) -> Axes:
    """Plot the tutorial's running picture: per named step, the share of candidates seen and of neighbours found."""
    axis, lowest = panels(1, width=6.4, height=4.2)[1][0], 1.1
    axis.plot(*zip(*steps.values(), strict=True), color=QUIET, linewidth=1, alpha=0.5)
    axis.set(xlabel="share of candidates seen", xlim=(-0.03, 1.1))
    axis.set(ylabel="share of neighbours found", ylim=(-0.04, 1.1))
    ordered = sorted(steps.items(), key=lambda step: (-step[1][1], -step[1][0]))
    for below, (name, (seen, found)) in zip(range(len(steps))[::-1], ordered, strict=True):
        lowest = max(min(found, lowest - 0.065), 0.065 * below)  # names stand one below the other
        near = [x for x, y in steps.values() if abs(x - seen) < 0.2 and abs(y - found) < 0.2]
        place = min(max(near), 0.78) + 0.04
        line = {"arrowstyle": "-", "color": QUIET, "relpos": (float(place < seen), 0.5)}
        axis.annotate(name, (seen, found), (place, lowest), va="center", arrowprops=line)
        axis.plot(seen, found, "o", color=COLOURS[0], markersize=7)
    return axis


def plot_lines(x, lines: dict, points: dict | None = None, axis: Axes | None = None) -> Axes:
    """Plot named lines (len(x),) and, in the same colours, named measured points (x, y)."""
    axis = axis or one_axis()
    for name, y in lines.items():
        (line,) = axis.plot(x, y, label=name, linewidth=1.8)
        if points and name in points:
            axis.plot(*points[name], "o", color=line.get_color(), markersize=5)
    if len(lines) > 1:
        axis.legend()
    return axis


def plot_histograms(groups: dict, bins, axis: Axes | None = None) -> Axes:
    """Plot histograms of named groups of numbers over one another, each as a share of its group."""
    axis = axis or one_axis()
    for name, values in groups.items():
        axis.hist(values, bins=bins, weights=np.full(len(values), 1 / max(len(values), 1)), alpha=0.6, label=name)
    axis.set(ylabel="share")
    if len(groups) > 1:
        axis.legend()
    return axis
