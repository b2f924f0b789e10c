"""A folder of good images among odd and hostile files: a run ends well, lists the bad and gets the good right."""

import json
from pathlib import Path

import pytest
from oddities import BROKEN, ODD, PLAIN, looks_like, write_broken, write_odd

from imgsim import load_images, open_image
from imgsim.extras.cli import main
from imgsim.sources.folder import printable_path

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder, and what has to be left out of it, with a word of the reason."""
    folder = write_odd(tmp_path_factory.mktemp("hostile") / "photos")
    return folder, write_broken(folder)


def reasons(skipped, expected):
    return {entry["path"]: expected.get(entry["path"], "?") in entry["reason"] for entry in skipped}


def test_the_good_are_right_and_the_bad_are_listed(hostile, capsys):
    folder, bad = hostile
    images = load_images(folder)
    assert reasons(images.skipped, bad) == dict.fromkeys(bad, True) and len(bad) > 20
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and f"Left out {len(bad)} of {len(bad) + len(ODD) + 3} images" in printed
    known = {printable_path(Path(name)): entry for name, entry in ODD.items()}
    for row in images["train"]:
        name = Path(row["image_file_path"]).name
        _, shown, tolerance = known.pop(name, (None, PLAIN, 0))
        assert looks_like(open_image(row["image"]), *shown, tolerance), name
    assert not known and images["train"].features["labels"].names == ["one", "three", "two"]


@pytest.mark.slow
def test_a_run_on_unlabelled_images_lists_what_it_left_out(hostile, checkpoint, tmp_path, capsys, monkeypatch):
    pytest.importorskip("papermill", reason="the extra notebooks is not installed")
    import nbformat

    from imgsim.extras.runs import run

    # Notebook 2 never looks at labels.
    monkeypatch.setattr(run, "NOTEBOOKS", [name for name in run.NOTEBOOKS if not name.startswith("02")])
    folder, bad = hostile
    output = tmp_path / "run"
    # As one's own photographs are: some here, some deeper, and all the others once more through a link.
    options = ["--dataset", str(folder / "one"), "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main(["run", *options]) == 0
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    bad = {name.removeprefix("one/"): why for name, why in bad.items()}
    assert reasons(record["skipped"], bad) == dict.fromkeys(bad, True)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["candidates"] + metrics["queries"] == len(ODD) + 3
    assert metrics["label_precision_at_5"] is metrics["exact_label_precision_at_5"] is None
    assert 0 <= metrics["recall_at_10"] <= 1 and metrics["queries"] == (len(ODD) + 3) // 10
    assert f"Left out {len(bad)} of" in capsys.readouterr().out
    gallery = nbformat.read(output / "04_inference.ipynb", as_version=4)
    assert any("image/png" in out.get("data", {}) for cell in gallery.cells for out in cell.get("outputs", []))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_no_query(name, hostile, encoder, refused):
    with refused("cannot be read as an image"):
        encoder.embed([hostile[0] / "one" / name])
