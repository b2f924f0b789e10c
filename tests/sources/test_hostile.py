"""A folder of good images among odd and hostile files: the bad are listed, the good are right. A wheel runs on it."""

from pathlib import Path

import pytest
from datasets import Image
from oddities import BROKEN, ODD, PLAIN, looks_like, write_broken, write_odd

from imgsim import load_images, open_image
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
    for row in images["train"].cast_column("image", Image(decode=False)):
        name = Path(row["image_file_path"]).name
        _, shown, tolerance = known.pop(name, (None, PLAIN, 0))
        assert looks_like(open_image(row["image"]), *shown, tolerance), name
    assert not known and images["train"].features["labels"].names == ["one", "three", "two"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_no_query(name, hostile, encoder, refused):
    with refused("cannot be read as an image"):
        encoder.embed([hostile[0] / "one" / name])
