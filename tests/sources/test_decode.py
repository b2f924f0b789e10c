"""Opening one image of any kind: its colours and the way up that a viewer shows, and what is refused."""

import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from oddities import (
    BROKEN,
    MARK,
    NOISE,
    ODD,
    PLAIN,
    SRGB,
    SWAPPED,
    contents,
    looks_like,
    marked,
    swapped_profile,
    turned,
)

from imgsim import open_image
from imgsim.sources import decode
from imgsim.sources.colour import srgb_transform
from imgsim.sources.decode import why_unreadable

MODES = {  # pillow images of modes that no file has
    "HSV": (marked("HSV", (0, 255, 255), (85, 255, 255)), ((255, 0, 0), (0, 255, 0))),
    "YCbCr": (marked("YCbCr", (76, 85, 255), (255, 128, 128)), ((254, 0, 0), (255, 255, 255))),
    "premultiplied": (marked("RGBA", (9, 8, 7, 255), (0, 0, 0, 0)).convert("RGBa"), ((9, 8, 7), (255, 255, 255))),
    "palette with an alpha channel": (marked("P", 0, 1).convert("PA"), ((0,) * 3, (1,) * 3)),
}
# What decides these is not in an image that pillow has loaded.
FORGOTTEN = {f"{kind} with transparency.png" for kind in ("2 bits", "4 bits", "RGB of 16 bits")} | {"a small frame.gif"}
PIXELS = np.asarray(marked())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_file_is_opened_as_a_viewer_shows_it(name):
    content, shown, tolerance = ODD[name]
    assert looks_like(open_image(content), *shown, tolerance)
    assert why_unreadable(content) is None
    kept = PIL.Image.open(io.BytesIO(content))
    kept.load()  # as a dataset gives it to a picture
    if name not in FORGOTTEN:
        assert looks_like(open_image(kept), *shown, tolerance)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_reason(name, tmp_path, refused):
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, str(path), {"bytes": None, "path": str(path)}):
        with refused(f"{path} cannot be read as an image: {why_unreadable(path)}"):
            open_image(source)
    with refused(f"the image cannot be read as an image: {why_unreadable(content)}"):
        open_image(content)
    assert reason in why_unreadable(path) and name not in why_unreadable(path)


@pytest.mark.parametrize("source", ["PIL", "path", "str", "bytes", "dict of bytes", "dict of a path", "array"])
def test_an_image_comes_in_many_forms(source, tmp_path, monkeypatch):
    path, content = tmp_path / "image", contents(marked())
    path.write_bytes(content)
    sources = {"PIL": marked(), "path": path, "str": str(path), "bytes": content, "array": PIXELS}
    sources["dict of bytes"] = {"bytes": content, "path": "elsewhere.png"}
    sources["dict of a path"] = {"bytes": None, "path": str(path)}
    assert looks_like(open_image(sources[source]), *PLAIN, 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert looks_like(open_image("~/image"), *PLAIN, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_has_any_mode(mode):
    image, shown = MODES[mode]
    before = image.copy()
    assert looks_like(open_image(image), *shown)
    assert image == before


@pytest.mark.parametrize(
    "array",
    [
        PIXELS,
        PIXELS[::-1][::-1],
        np.asfortranarray(PIXELS),
        PIXELS.astype(np.uint16) * 257,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        np.dstack([PIXELS, np.full((8, 16), 255, np.uint8)]),
    ],
    ids=["bytes", "strided", "Fortran", "16 bits", "floats", "single floats", "with alpha"],
)
def test_an_array_is_opened_as_its_image(array):
    assert looks_like(open_image(array), *PLAIN, 0)


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 1)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float64])
def test_a_grey_array_may_have_an_axis_for_its_one_colour(shape, dtype):
    full = {bool: 1, np.uint8: 255, np.uint16: 65535, np.float64: 1}[dtype]
    array = (np.asarray(marked("L", 0, 1)).astype(int) * full).astype(dtype).reshape(shape)
    assert looks_like(open_image(array), (0,) * 3, (255,) * 3, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation, form):
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    assert looks_like(open_image(turned(form, orientation, **lossless)), *PLAIN, 6 if form == "JPEG" else 0)


def test_a_colour_profile_is_read_once_and_srgb_costs_nothing():
    srgb_transform.cache_clear()
    for _ in range(3):
        assert looks_like(open_image(contents(marked(), icc_profile=swapped_profile())), *SWAPPED, 2)
    assert srgb_transform.cache_info().misses == 1
    assert srgb_transform(SRGB, False) == ("RGB", None)


def test_the_way_to_srgb_is_that_of_littlecms():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    profile = PIL.ImageCms.ImageCmsProfile(io.BytesIO(swapped_profile()))
    expected = PIL.ImageCms.profileToProfile(image, profile, PIL.ImageCms.createProfile("sRGB"))
    np.testing.assert_array_equal(open_image(contents(image, icc_profile=swapped_profile())), expected)


def test_floats_that_are_no_numbers_are_black():
    values = np.where(np.asarray(marked("1", 0, 1)), np.float32(1), np.float32("nan"))
    assert looks_like(open_image(contents(PIL.Image.fromarray(values), "TIFF")), (0,) * 3, (255,) * 3, 0)


def test_opening_leaves_what_was_given_as_it_was():
    image = marked("RGBA", (*MARK, 255), (0, 0, 0, 0))
    opened = open_image(image)
    assert image == marked("RGBA", (*MARK, 255), (0, 0, 0, 0))
    plain = marked()
    opened = open_image(plain)
    opened.putpixel((0, 0), (255, 255, 255))
    assert plain == marked()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/no/such/file.jpg", "No such file"),
        ("/", "directory"),
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image"),
        ([[1, 2], [3, 4]], "array"),
        (np.full((4, 4, 3), 2.0), "float64 from 2.0 to 2.0"),
        (np.full((4, 4), np.nan), "float64"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4), object), "object"),
        (np.zeros((4, 4, 5), np.uint8), "(4, 4, 5)"),
        (np.zeros((0, 4), np.uint8), "(0, 4)"),
        (np.zeros(4, np.uint8), "(4,)"),
        (PIL.Image.new("RGB", (0, 0)), "0 x 0"),
        (PIL.Image.new("RGB", (1, 600)), "1 x 600"),
        (b"", "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image_is_refused(source, reason, refused):
    with refused(reason):
        open_image(source)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str)
def test_a_jpeg_without_its_end_marker_is_complete(settings, refused):
    whole = contents(NOISE, "JPEG", **settings)
    for missing in (1, 2):
        assert why_unreadable(whole[:-missing]) is None
        assert np.array_equal(open_image(whole[:-missing]), open_image(whole))
    for missing in (30, 300, 900):
        assert "truncated" in why_unreadable(whole[:-missing])
        with refused("truncated"):
            open_image(whole[:-missing])


def test_postscript_is_never_handed_to_another_program(monkeypatch, refused):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *any: pytest.fail("PostScript was executed"))
    with refused("not recognised"):
        open_image(BROKEN["PostScript.jpg"][0])


def test_large_images_are_decoded_one_after_the_other(monkeypatch):
    at_once, most = [], []

    def decode_slowly(image):
        at_once.append(image)
        time.sleep(0.05)
        most.append(len(at_once))
        at_once.remove(image)
        return image

    monkeypatch.setattr(decode, "to_display_rgb", decode_slowly)
    for pixels, together in ((100, False), (10_000, True)):
        monkeypatch.setattr(decode, "LARGE_PIXELS", pixels)
        most.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(open_image, [np.full((20, 20), i, np.uint8) for i in range(4)]))
        assert (max(most) > 1) == together


@pytest.mark.slow
def test_a_large_photograph_is_opened(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        assert open_image(contents(PIL.Image.new("1", (10000, 10000)))).size == (10000, 10000)
