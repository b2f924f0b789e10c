"""The pictures of the tutorial: what they mark as found, what they write, and the style they are in."""

import matplotlib
import matplotlib.collections
import numpy as np
import pytest

matplotlib.use("agg")

from imgsim.figures import PROBE, RIGHT, WRONG, panels, plot_cells, plot_histograms, plot_images, plot_map, plot_shares
from imgsim.hashing import Projection
from imgsim.sources.fonts import readable

ORIGIN = np.zeros(2, np.float32)
CROSS = np.float32([[[1, 0], [0, 1]]])  # two planes: the axes; the cells are the quadrants
POINTS = np.float32([(3, 1), (1, 3), (-1, 2), (2, -1), (-2, -2)])


def found(axis):
    """The points that a picture of cells shows as found."""
    dots = [shape for shape in axis.collections if isinstance(shape, matplotlib.collections.PathCollection)]
    (green,) = [shape for shape in dots if matplotlib.colors.to_hex(shape.get_facecolor()[0]) == RIGHT]
    return sorted(map(tuple, green.get_offsets().tolist()))


def ring_of(axis):
    return next(line.get_markeredgecolor() for line in axis.lines if line.get_marker() == "o")


def test_a_query_finds_the_points_in_its_cell():
    axis = plot_cells(POINTS, Projection(CROSS, ORIGIN), POINTS[0], POINTS[2])
    assert found(axis) == [(1, 3), (3, 1)] and ring_of(axis) == WRONG
    assert {text.get_text() for text in axis.texts} == {"00", "01", "10", "11"}


def test_a_second_table_and_a_probe_find_more():
    turned = np.float32([[[1, 4], [0.9, 1]]])  # the planes face (1, 0.9) and (4, 1)
    both = plot_cells(POINTS, Projection(np.concatenate([CROSS, turned]), ORIGIN), POINTS[0], POINTS[3])
    assert found(both) == [(1, 3), (2, -1), (3, 1)] and ring_of(both) == RIGHT and not both.texts
    probed = plot_cells(POINTS, Projection(CROSS, ORIGIN), POINTS[0], POINTS[3], probe=True)
    assert found(probed) == [(1, 3), (2, -1), (3, 1)] and ring_of(probed) == RIGHT
    assert any(PROBE in map(matplotlib.colors.to_hex, shade.get_facecolor()) for shade in probed.collections)


def test_names_of_the_running_picture_do_not_overlap():
    steps = {f"step {i}": (0.1 * i, 0.99) for i in range(6)} | {"nothing": (0, 0), "also nothing": (0, 0)}
    heights = sorted(text.xyann[1] for text in plot_shares(steps).texts)
    assert len(heights) == 8 and heights[0] >= 0 and np.diff(heights).min() > 0.06


def test_a_map_shows_images_where_there_is_room(draw):
    points = np.float32([(0, 0), (0.001, 0), (1, 1)])
    rows = [{"image": draw(i)} for i in range(3)]
    axis = plot_map(points, rows, [0, 1, 1])
    assert [box.xy for box in axis.artists] == [pytest.approx((0, 0)), pytest.approx((1, 1))]


def test_titles_and_legends_are_in_the_style_too():
    figure, (axis,) = panels(1)
    axis.plot([0, 1], label="line")
    assert axis.set_title("title").get_fontweight() == "bold" and figure.dpi == 110
    assert not axis.legend().get_frame_on()


def test_text_is_readable_or_a_number():
    assert readable("Blätter $5$", "image 3") == "Blätter $5$"
    assert readable("\U0001f98a", "image 3") == "image 3"  # no font for text has a fox
    assert readable("a" * 30, "image 3") == "a" * 21 + "…"


@pytest.mark.parametrize("name", ["$5_$10", "$a^$", "A$ap $Rocky"])
def test_dollar_signs_are_no_mathematics(name, draw):
    figure = plot_images([draw(0)], [name])
    figure.canvas.draw()  # where "$a^$" would be refused
    assert figure.axes[0].get_title() == name and not figure.axes[0].title.get_parse_math()


def test_a_caption_no_font_can_show_becomes_the_images_number(draw):
    figure = plot_images([draw(0), draw(1)], ["leaf\ncosine 0.90", "\U0001f98a\ncosine 0.80"])
    assert [axis.get_title() for axis in figure.axes] == ["leaf\ncosine 0.90", "image 1\ncosine 0.80"]


def test_a_group_without_values_has_an_empty_histogram():
    axis = plot_histograms({"same label": np.empty(0), "other labels": np.ones(3)}, np.linspace(0, 2, 5))
    assert [patch.get_height() for patch in axis.patches if patch.get_height()] == [1]


def test_nothing_is_drawn_as_nothing():
    assert not plot_images([], []).axes[0].images
    assert not plot_cells(POINTS[:0], Projection(CROSS, ORIGIN)).collections[0].get_offsets().size
