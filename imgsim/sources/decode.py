"""One image: opened the way up and in the colours a viewer shows it, or the reason why it cannot be."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
from datasets import Image

from imgsim.sources.errors import first_line

PIL.Image.init()
# Nothing else is tried: pillow would hand PostScript, whatever its suffix, to a program that executes it.
FORMATS = [kind for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF") if kind in PIL.Image.OPEN]
NO_IMAGE = f"not recognised as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
EMPTY = "an empty file"
THINNEST = 500  # times as long as wide: an image processor that scales the short side to 256 needs 400 MB for it
DECODER_VERSION = 2  # raise it when open_image shows other pixels than before: images are then embedded anew


def open_image(source) -> PIL.Image.Image:
    """One image as RGB, the way up and in the colours a viewer shows it: turned as its EXIF data say, its colour
    profile converted to sRGB, transparency on white, the first frame of several.

    source: a path, bytes, a PIL image, a data set's {"bytes", "path"}, or an array (h, w), (h, w, 1), (h, w, 3)
    or (h, w, 4) of uint8, uint16, bool or floats from 0 to 1. Raises ValueError with one sentence where it
    cannot be read.
    """
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    name = str(source) if isinstance(source, (str, os.PathLike)) else "the image"
    try:
        return to_display_rgb(read(source))
    except Exception as error:  # pillow's decoders raise all kinds
        raise ValueError(f"{name} cannot be read as an image: {reason(error)}") from error


def why_unreadable(source) -> str | None:
    """Why `open_image` would refuse a path, bytes or a data set's {"bytes", "path"}, or None where it would not."""
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    try:
        to_display_rgb(read(source, quick=True))
    except Exception as error:
        return reason(error)


def reason(error: Exception) -> str:
    """An error as a few words on one line, without the file's name."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return NO_IMAGE
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.strip().partition("\n")[0]


def read(source, quick: bool = False) -> PIL.Image.Image:
    """A pillow image of any mode. quick: JPEGs at an eighth of their size, which still reads all their bytes."""
    if isinstance(source, PIL.Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, (str, os.PathLike)):
        source = Path(source).expanduser()
        if source.exists() and not source.is_file() and not source.is_dir():
            raise ValueError("not a regular file")  # a pipe would be waited for
        source = source.read_bytes()
    if not isinstance(source, bytes):
        raise ValueError(f"a path, bytes, a PIL image or an array is needed, not {source!r:.40}")
    if not source:
        raise ValueError(EMPTY)
    image = PIL.Image.open(BytesIO(source), formats=FORMATS)
    if quick:
        image.draft("RGB", (32, 32))
    return image


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """An array, see open_image, as a pillow image."""
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an array has the shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), not {array.shape}")
    if array.dtype == bool or (array.dtype.kind == "f" and ((array >= 0) & (array <= 1)).all()):
        array = to_bytes(array.astype(np.float32))
    elif array.dtype == np.uint16:
        array = to_bytes(array)
    elif array.dtype != np.uint8:
        span = f" from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else ""
        raise ValueError(f"an array holds uint8, uint16, bool, or floats from 0 to 1, not {array.dtype}{span}")
    return PIL.Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else np.ascontiguousarray(array))


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of any depth as uint8: 16 bits and floats from 0 to 1 are scaled; where the range is no usual one,
    the least value becomes black and the largest white."""
    full = 1 if values.dtype.kind == "f" else 65535
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low >= 0 and high <= full:
        low, high = 0.0, full
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / max(high - low, 1e-30))
    return np.round(scaled.clip(0, 255)).astype(np.uint8)


def to_display_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """A pillow image of any mode as RGB, the way a viewer shows it; the image given stays as it is."""
    if max(image.size) > THINNEST * min(image.size) or not min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are too thin a strip")
    image.load()
    with suppress(Exception):  # broken EXIF data turn nothing
        image = PIL.ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode[0] in "IF":  # pillow's own conversion clips where it should scale
        image = PIL.Image.fromarray(to_bytes(np.asarray(image)))
    if not image.has_transparency_data:
        return to_srgb(image, image.mode, profile)
    coloured = image.convert("RGBA")
    white = PIL.Image.new("RGB", image.size, "white")
    return PIL.Image.composite(to_srgb(coloured, image.mode, profile), white, coloured.getchannel("A"))


def to_srgb(image: PIL.Image.Image, mode: str, profile: bytes | None) -> PIL.Image.Image:
    """An image, stored in this mode with this colour profile, as RGB in sRGB."""
    space = {"CMYK": "CMYK", "LAB": "LAB", "1": "L", "L": "L", "LA": "L"}.get(mode, "RGB")
    meant, transform = srgb_transform(profile or b"", space == "LAB")
    if transform is None or (meant != space and (meant, space) != ("RGB", "L")):
        return image.convert("RGB")
    return PIL.ImageCms.applyTransform(image.convert(meant), transform)


@lru_cache(32)
def srgb_transform(profile: bytes, lab: bool):
    """The mode that a colour profile is for and the transform from it to sRGB: None where colours stay as they are."""
    cms = PIL.ImageCms
    if not (profile or lab):
        return "RGB", None
    try:
        source = cms.createProfile("LAB") if lab else cms.ImageCmsProfile(BytesIO(profile))
        space = "LAB" if lab else source.profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}[space]
        transform = cms.buildTransform(source, cms.createProfile("sRGB"), mode, "RGB")
    except (cms.PyCMSError, OSError, KeyError):  # broken, or for a space that images are not stored in
        return "RGB", None
    if mode in ("RGB", "L"):  # most profiles are sRGB itself under one name or another: nothing to do
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        shown = PIL.Image.fromarray(colours if mode == "RGB" else steps[None])
        change = np.asarray(cms.applyTransform(shown, transform)).astype(int) - np.asarray(shown.convert("RGB"))
        if np.abs(change).max() <= 2:
            return mode, None
    return mode, transform


def open_or_error(source) -> PIL.Image.Image | str:
    """Open an image, or return the sentence that says why it cannot be opened; an exception is such a reason."""
    if isinstance(source, Exception):
        return first_line(source)
    try:
        if isinstance(source, dict) and source["bytes"] is None and "://" in (source["path"] or ""):
            source = Image().decode_example(source)  # on the Hub
        return open_image(source)
    except (ValueError, OSError) as error:
        return str(error)
