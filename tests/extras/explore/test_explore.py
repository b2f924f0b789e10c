"""The explorable page in a real browser: it computes what Python computes, and answers hand, keys and touch."""

import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from imgsim.extras.cli import main
from imgsim.extras.explore.page import ASSETS, explore_widget, page_data, read_data, reduce_points, write_page
from imgsim.hashing import Projection, normalise
from imgsim.search.coder import Coder, draw_rotation
from imgsim.search.snapshot import Snapshot

DOCS = Path(__file__).resolve().parents[3] / "docs" / "explore.html"
HOSTILE = ["</script><script>document.title='owned'</script>", "<img src=x onerror=document.title='owned'>", "a\u2028b"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SETTINGS = [  # bits, tables, probes, principal, centred, seed, dimensions
    (3, 1, 0, False, True, 1, 2),
    (3, 2, 1, True, True, 2, 2),
    (1, 1, 1, False, False, 3, 2),
    (16, 3, 16, False, True, 4, 2),
    (8, 10, 0, False, True, 5, 16),
    (8, 4, 8, True, True, 6, 16),
    (8, 4, 8, True, False, 7, 16),
    (12, 2, 5, True, True, 8, 16),
    (16, 12, 16, False, False, 9, 16),
    (5, 7, 3, True, True, 10, 16),
]
COMPUTE = """async ([source, bits, tables, probes, principal, centred, seed, dims]) => {
    const module = await import('data:text/javascript;charset=utf-8,' + encodeURIComponent(source));
    const data = JSON.parse(document.getElementById('data').textContent);
    const space = new module.Space(module.unpack(data), dims);
    const made = space.tables({bits, tables, principal, centred, seed});
    return {
        planes: made.planes.map((normals) => normals.map((normal) => [...normal])),
        codes: space.points.map((point) => made.codes(point, 0).map((codes) => codes[0])),
        seen: space.queries.map((row) => [...made.seen(space.points[row], probes, row)]),
        queries: space.queries, nearest: space.nearest, averages: space.averages(made, probes),
    };
}"""


@pytest.fixture(scope="module")
def data(draw):
    """What the page shows: 240 images in three groups off the origin, some with hostile names."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((3, 24))
    cloud = groups[np.arange(240) % 3] + 0.8 * rng.standard_normal((240, 24)) + 1
    images = [{"image": draw(row % 9)} for row in range(240)]
    return page_data(images, normalise(cloud), [HOSTILE[row % 3] for row in range(240)])


@pytest.fixture(scope="module")
def address(data, tmp_path_factory):
    return write_page(data, tmp_path_factory.mktemp("page") / "explore.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the page; nothing may be asked of a network, and the console stays silent."""
    pages, faults = [], []

    def open_one(**settings):
        page = browser(**settings)
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
        page.goto(address)
        page.get_by_text("This query:").wait_for()
        return page

    yield open_one
    for page in pages:
        page.close()
    assert faults == []


def said(page) -> str:
    return page.locator(".said").inner_text()


def averages(page) -> list[float]:
    """The shares found and seen, in per cent."""
    return [float(number) for number in re.findall(r"([\d.]+)%", said(page).partition("On average: ")[2])]


def slide(page, name, value):
    page.locator(f"input[name={name}]").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')) }", value
    )


def test_it_computes_what_python_computes(open_page, data):
    page, source = open_page(viewport=WIDE), (ASSETS / "explore.js").read_text(encoding="utf-8")
    points = np.frombuffer(b64decode(data["vectors"]), "<f4").reshape(len(data["names"]), -1)
    for bits, tables, probes, principal, centred, seed, dims in SETTINGS:
        theirs = page.evaluate(COMPUTE, [source, bits, tables, probes, principal, centred, seed, dims])
        vectors = np.ascontiguousarray(points[:, :dims])
        centre = np.zeros(dims, np.float32) if centred else np.array(data["origin"][:dims], np.float32)
        planes = np.array(theirs["planes"], np.float32).transpose(0, 2, 1)
        assert planes.shape == (tables, dims, bits)
        if principal:
            used = min(bits, dims)
            one = planes[0][:used, :used]
            np.testing.assert_allclose(one.T @ one, np.eye(used), atol=1e-5)
            assert not planes[:, used:].any()
        projection = Projection(planes, centre)
        assert (projection(vectors) == np.array(theirs["codes"])).mean() > 0.999  # all but points on a plane
        rows = np.arange(len(vectors))
        now = Snapshot.build(Coder(projection, draw_rotation(dims)), vectors, rows, rows)
        found = []
        for query, seen, nearest in zip(theirs["queries"], theirs["seen"], theirs["nearest"], strict=True):
            mine = np.zeros(len(vectors), int)
            ranked = now.search(vectors[query : query + 1], len(vectors), probes, None)[0][0]
            mine[ranked[ranked >= 0]] = 1
            mine[query] = 0
            assert (mine != seen).mean() < 0.02
            far = np.linalg.norm(vectors.astype(float) - vectors[query], axis=1)
            far[query] = np.inf
            assert far[nearest].tolist() == np.sort(far)[:10].tolist()
            found.append((mine[nearest].mean(), mine.sum() / (len(vectors) - 1)))
        averages = theirs["averages"]["found"], theirs["averages"]["seen"]
        np.testing.assert_allclose(averages, np.mean(found, axis=0), atol=0.005)


def test_points_keep_what_most_of_the_vectors_do(data):
    rng = np.random.default_rng(1)
    vectors = normalise(rng.standard_normal((50, 8)) * (9, 5, 1, 1, 1, 1, 1, 1) + 3)
    points, origin, kept = reduce_points(vectors)
    assert points.shape == (50, 8) and kept == pytest.approx(1, abs=1e-5)
    cosines = (points - origin) @ (points - origin).T  # all dimensions: nothing is lost, the origin included
    np.testing.assert_allclose(cosines, vectors @ vectors.T, atol=1e-5)
    assert (np.diff(points.var(axis=0)) < 1e-6).all()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_hand_and_keys_move_the_query_and_sliders_change_what_is_found(open_page, viewport):
    page = open_page(viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    before, box = said(page), page.locator(".map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 40, steps=5)
    page.mouse.up()
    dragged = said(page)
    assert dragged != before
    found, seen = averages(page)
    slide(page, "bits", 1)
    assert averages(page)[0] > found and averages(page)[1] > seen
    page.locator(".map").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    keyed = said(page)
    page.locator("select[name=dims]").select_option("1")
    page.keyboard.press("ArrowLeft")
    slide(page, "tables", 12)
    assert said(page) != keyed
    share = averages(page)[0]
    slide(page, "bits", 16)
    slide(page, "tables", 1)
    assert averages(page)[0] < share


def test_a_finger_moves_the_query_too(open_page):
    page = open_page(viewport=NARROW, has_touch=True)
    before, box = said(page), page.locator(".map").bounding_box()
    page.touchscreen.tap(box["x"] + 40, box["y"] + 60)
    assert said(page) != before


def test_tasks_check_their_answers(open_page):
    page = open_page(viewport=WIDE)
    page.get_by_role("button", name="Task 1").click()
    verdict = page.locator(".verdict")
    if page.locator(".row .found").count():
        page.locator(".row .found").first.click()
        assert verdict.inner_text().startswith("✗")
    for _ in range(30):  # other planes, until one comes between
        if page.locator(".row .missed").count():
            break
        page.get_by_role("button", name="Other planes").click()
    page.locator(".row .missed").first.click()
    assert verdict.inner_text().startswith("✓")
    page.get_by_role("button", name="Task 3").click()
    assert verdict.inner_text() == ""
    page.locator("select[name=principal]").select_option("1")
    for probes in range(17):
        slide(page, "probes", probes)
        if verdict.inner_text():
            break
    assert verdict.inner_text().startswith("✓")


def test_names_stay_text(open_page):
    page = open_page(viewport=WIDE)
    assert page.title() == "Explore locality-sensitive hashing"
    titles = page.locator(".row button").evaluate_all("(buttons) => buttons.map((button) => button.title)")
    assert len(titles) == 10 and set(titles) <= set(HOSTILE)


def test_a_widget_shows_the_same(browser, draw):
    pytest.importorskip("anywidget", reason="the extra interactive is not installed")
    rng = np.random.default_rng(2)
    widget = explore_widget([{"image": draw(row)} for row in range(30)], normalise(rng.standard_normal((30, 20))))
    page = browser(viewport=WIDE)
    page.set_content("<main id=cell></main>")
    page.evaluate(
        """async ([source, data]) => {
            const module = await import('data:text/javascript;charset=utf-8,' + encodeURIComponent(source));
            const model = {get: (name) => ({data})[name]};
            window.end = module.default.render({model, el: document.getElementById('cell')});
        }""",
        [str(widget._esm), widget.data],
    )
    assert "of its 10 nearest found" in said(page) and page.locator(".row button").count() == 10
    page.evaluate("window.end()")
    page.close()


def test_the_command_writes_a_page_of_a_folder(image_folder, checkpoint, tmp_path, capsys, refused):
    target = tmp_path / "page.html"
    assert main(["explore", str(image_folder), "--checkpoint", str(checkpoint), "--output", str(target)]) == 0
    page = target.read_text(encoding="utf-8")
    assert "green.0.png · green" in page and str(image_folder) not in page
    assert main(["explore", str(image_folder), "--checkpoint", str(checkpoint), "--output", str(target)]) == 0
    assert main(["explore", str(tmp_path / "nowhere")]) == 1
    capsys.readouterr()
    assert main(["explore", str(image_folder), "--output", str(target)]) == 0
    assert "knows only rendered leaves; for photos take --checkpoint" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("mine")
    for place in ("mine.txt", "", "no folder/page.html"):
        capsys.readouterr()
        assert main(["explore", str(image_folder), "--output", str(tmp_path / place)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with refused("three"):
        page_data([], np.zeros((2, 4), np.float32), [])


def test_the_page_in_docs_is_that_of_today():
    page = DOCS.read_text(encoding="utf-8")
    assert len(page) < 2_000_000 and "http" not in page.replace("http://www.w3.org", "")
    for name in ("explore.js", "explore.css"):
        assert (ASSETS / name).read_text(encoding="utf-8") in page, "write it again: imgsim explore builtin ..."


@pytest.mark.slow
def test_real_photos_make_a_page(real, tmp_path):
    data = read_data(str(real / "beans" / "test"), str(real / "mobilenet-v1-025"))
    assert len(data["names"]) == 128 and "bean_rust" in " ".join(data["names"])
    assert write_page(data, tmp_path / "beans.html").stat().st_size < 2_000_000
