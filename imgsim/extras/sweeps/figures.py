"""Plot what a sweep's report shows: fronts, and measures by bits and tables."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from imgsim.figures import INK


def plot_fronts(groups: dict, axis: Axes) -> None:
    """Plot groups of points {name: (x, y, best)}, arrays (n,), and join those in the mask `best` by a line."""
    for name, (x, y, best) in groups.items():
        (dots,) = axis.plot(x, y, "o", alpha=0.35, markersize=5)
        order = np.argsort(x[best])
        axis.plot(x[best][order], y[best][order], "o-", color=dots.get_color(), markersize=6, label=name)
    axis.legend(fontsize=8)


def plot_heat(grid: np.ndarray, rows, columns, axis: Axes, colours: str = "viridis") -> None:
    """Plot shares (rows, columns) as coloured fields with their numbers; what was not measured (NaN) stays empty."""
    axis.imshow(grid, vmin=0, vmax=1, cmap=colours, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if (value < 0.6) == (colours == "viridis") else INK
            axis.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(visible=False)
