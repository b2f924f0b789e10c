"""The demo page in a real browser: an answer, sliders, broken files, and what it must not hand out."""

import json
import os
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from imgsim import BuildLSHTable
from imgsim.extras.cli import main
from imgsim.extras.find.folder_index import FolderIndex
from imgsim.extras.runs.inputs import all_images
from imgsim.extras.runs.settings import DEFAULTS
from imgsim.images import load_images
from imgsim.sources.splits import fingerprint

gradio = pytest.importorskip("gradio", reason="the extra demo is not installed")
SHOTS = os.environ.get("IMGSIM_SHOTS")  # a folder for screenshots of the answers


def keep_run(folder, images, encoder, probes=0):
    """The folder of a run, as far as the page needs it."""
    everything = all_images(images, seed=0)
    BuildLSHTable(encoder, hash_size=6, num_tables=2, probes=probes).build(everything).save(folder / "index")
    files = everything["image_file_path"][:]
    settings = DEFAULTS | {"dataset": str(Path(files[0]).parents[2]), "checkpoint": str(encoder.name)}
    digests = {"index": {}, "images": fingerprint(everything)}
    (folder / "run.json").write_text(
        json.dumps({"settings": settings, "digests": digests, "environment": {"versions": {}}})
    )
    names = everything.features["labels"].names
    (folder / "images.json").write_text(json.dumps({"labels": names}))
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, images, encoder):
    return keep_run(tmp_path_factory.mktemp("runs") / "toy", images, encoder)


@pytest.fixture(scope="module")
def address(run_folder):
    from imgsim.extras.demo import serve

    blocks = serve(run_folder, port := free_port(), block=False)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


@pytest.fixture
def page(browser, address):
    """The page, freshly opened; nothing but this machine may be asked for anything."""
    page, strangers = browser(viewport={"width": 1280, "height": 900}), []
    page.on("request", lambda request: request.url.startswith((address, "data:", "blob:")) or strangers.append(request))
    page.goto(address)
    page.get_by_text("Give it an image").wait_for()
    yield page
    page.close()
    assert not [request.url for request in strangers]


def seen(page) -> int:
    said = page.get_by_text("candidates seen (")
    said.wait_for()
    return int(said.inner_text().partition(" ")[0])


def upload(page, path):
    page.locator("input[type=file]").first.set_input_files(str(path))


def test_an_upload_finds_itself_first_and_probes_show_more(page, image_folder):
    upload(page, image_folder / "train" / "green" / "green.0.png")
    few = seen(page)
    caption = page.locator(".matches .caption-label").first.inner_text()
    assert caption == "green · green.0.png · cosine 1.00"
    assert page.get_by_text("Extra buckets looked up").is_hidden()
    page.get_by_text("Settings").click()
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / "desktop.png", full_page=True)
    probes = page.get_by_label("number input for Probes")
    probes.fill("64")
    probes.press("Enter")
    page.get_by_text("39 of 39 candidates seen").wait_for()
    assert few < 39


def test_an_example_is_answered_and_top_k_counts_the_matches(page):
    page.locator("button:has(img), .gallery-item").first.click()
    seen(page)
    page.get_by_text("Settings").click()
    top_k = page.get_by_label("number input for Matches")
    top_k.fill("2")
    top_k.press("Enter")
    page.get_by_text("2 shown.").wait_for()
    assert page.locator(".matches .caption-label").count() == 2


def test_a_broken_file_gives_a_message_and_the_page_goes_on(page, image_folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing of the kind")
    upload(page, tmp_path / "broken.png")
    page.get_by_text("cannot be read").first.wait_for()


def test_phone_width_has_no_sideways_scrolling(browser, address, image_folder):
    page = browser(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.get_by_text("Give it an image").wait_for()
    upload(page, image_folder / "train" / "red" / "red.1.png")
    seen(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    places = [page.locator(name).first.bounding_box() for name in ("[data-testid=image]", "#said", ".matches img")]
    ends = [place["y"] + place["height"] for place in places]
    assert places[1]["y"] - ends[0] < 60 and places[2]["y"] - ends[1] < 60  # nothing in between
    assert page.get_by_text("Settings").bounding_box()["y"] > ends[2]
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / "phone.png", full_page=True)
    page.close()


def test_more_like_a_match_are_found_and_its_path_is_shown(page, image_folder):
    upload(page, image_folder / "train" / "green" / "green.0.png")
    seen(page)
    second = page.locator(".matches .caption-label").nth(1).inner_text()
    page.locator(".matches .thumbnail-item").nth(1).click()
    path = page.locator("#path textarea, #path input")
    path.wait_for()
    assert path.input_value().endswith("/" + second.split(" · ")[1]) and Path(path.input_value()).is_file()
    page.get_by_role("button", name="Find more like this one").click()
    page.wait_for_function(
        "first => document.querySelector('.matches .caption-label').innerText == first",
        arg=second.rpartition(" · ")[0] + " · cosine 1.00",
    )


def test_a_folder_is_searched_and_a_file_that_has_changed_is_not_shown(tmp_path, draw, checkpoint, monkeypatch):
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "cache"))
    from imgsim.extras.demo import Answers

    (tmp_path / "photos").mkdir()
    for i in range(4):
        draw(i).save(tmp_path / "photos" / f"{i}.png")
    answers = Answers(FolderIndex(tmp_path / "photos", str(checkpoint)))
    asked = str(tmp_path / "photos" / "0.png")
    shown, said, _ = answers.find("image", asked, 8, 255)
    assert next(caption for _, caption in shown) == "0.png · cosine 1.00" and "4 of 4" in said
    draw(9).save(tmp_path / "photos" / "1.png")
    (tmp_path / "photos" / "2.png").rename(tmp_path / "photos" / "1 and before.png")
    shown, said, _ = answers.find("image", asked, 8, 255)
    assert len(shown) == 2 and "2 found and not shown: their files have changed" in said


def test_images_that_are_not_those_of_the_index_are_refused(tmp_path, image_folder, encoder, draw, capsys):
    shutil.copytree(image_folder, tmp_path / "photos")
    run = tmp_path / "run"
    run.mkdir()
    keep_run(run, load_images(tmp_path / "photos"), encoder)
    draw(7).save(tmp_path / "photos" / "train" / "red" / "0.png")
    assert main(["demo", str(run)]) == 1
    assert "not those of the index any more" in capsys.readouterr().err


def test_another_hosts_name_is_refused(address):
    request = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400
    assert urllib.request.urlopen(address).status == 200


def test_words_find_images_where_the_encoder_is_dual(browser, tmp_path, images):
    modalities = pytest.importorskip("imgsim.extras.modalities.encoders")
    from imgsim.extras.demo import serve

    blocks = serve(
        keep_run(tmp_path / "run", images, modalities.load_dual_encoder()[0], probes=8),
        port := free_port(),
        block=False,
    )
    page = browser()
    page.goto(f"http://127.0.0.1:{port}")
    box = page.get_by_label("Words")
    box.fill("a healthy leaf")
    box.press("Enter")
    assert seen(page) > 0 and "cosine" in page.locator(".matches .caption-label").first.inner_text()
    page.close()
    blocks.close()


@pytest.mark.parametrize("path", ["/etc/passwd", "run.json", str(Path(__file__))])
def test_a_path_outside_is_refused(path, address, run_folder):
    path = run_folder / path if path == "run.json" else path
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file={path}")
    assert refused.value.code in (403, 404)


@pytest.mark.parametrize("port", ["99999", "taken"])
def test_a_port_that_cannot_be_had_is_refused_before_the_folder_is_looked_at(port, tmp_path, draw, monkeypatch, capsys):
    monkeypatch.setattr(FolderIndex, "_update", lambda self: pytest.fail("the folder was looked at"))
    draw(0).save(tmp_path / "0.png")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1]) if port == "taken" else port
        assert main(["demo", str(tmp_path), "--port", number]) == 1
    assert f"cannot listen on port {number}" in capsys.readouterr().err


def test_a_folder_without_images_or_a_run_is_refused(tmp_path, capsys):
    assert main(["demo", str(tmp_path)]) == 1
    assert "no image that can be read" in capsys.readouterr().err
