"""Plot what a sweep's report shows: fronts, and measures by bits and tables."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from imgsim.figures import INK


def plot_fronts(groups: dict, axis: Axes) -> None:
    """Plot named groups of points, and join the best of each group by a line.

    Args:
        groups: by name (x, y, best), arrays (n,); best is the mask of the points to join.
        axis: where to plot.
    """
    for name, (x, y, best) in groups.items():
        (dots,) = axis.plot(x, y, "o", alpha=0.35, markersize=5)
        order = np.argsort(x[best])
        axis.plot(x[best][order], y[best][order], "o-", color=dots.get_color(), markersize=6, label=name)
    axis.legend(fontsize=8)


def plot_heat(grid: np.ndarray, rows, columns, axis: Axes, colours: str = "viridis") -> None:
    """Plot shares as coloured fields with their numbers.

    Args:
        grid: shares (rows, columns); a field that was not measured (NaN) stays empty.
        rows, columns: what the ticks say.
        axis: where to plot.
        colours: a colour map of matplotlib.
    """
    axis.imshow(grid, vmin=0, vmax=1, cmap=colours, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if (value < 0.6) == (colours == "viridis") else INK
            axis.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(visible=False)
