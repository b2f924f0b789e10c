"""From the bytes of an image to the pixels that a viewer shows, or to the reason why there are none."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from tqdm import tqdm

from imgsim.sources.cache import best_effort, cache_folder, write_json
from imgsim.sources.colour import to_srgb
from imgsim.sources.errors import first_line

PIL.Image.init()
PIL.PngImagePlugin.MAX_TEXT_CHUNK = 32 << 20  # bytes of a text or a colour profile; images may be made with long ones
# Nothing else is tried: pillow would hand PostScript, whatever its suffix, to a program that executes it.
FORMATS: list[str] = [name for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF") if name in PIL.Image.OPEN]
# Tell by a file's start whether it is of these formats, or of others whose files are listed.
KNOWN = [accepts for name in (*FORMATS, "JPEG2000", "PPM") if (accepts := PIL.Image.OPEN[name][1])]
NOT_RECOGNISED = f"not recognised as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
MAX_ASPECT = 500  # length over width: scaled to 256 on the short side, such a strip takes 400 MB
MAX_PIXELS = 1 << 27  # decoded, such an image takes up to 2 GB for a moment
LARGE_PIXELS = 1 << 24
MAX_SCANS = 100  # of a progressive JPEG: each costs time, and takes but a few bytes
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"  # markers, which occur nowhere in a scan
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 274, 262, 339  # tags of TIFF, and of EXIF data
WHITE_IS_ZERO, UNSIGNED = 0, 1  # values of the last two
DECODER_VERSION = 3  # raise it when open_image shows other pixels than before: images are then embedded anew
ON_THE_HUB = re.compile(r"(zip://((?!::).)*::)?hf://((?!::).)*")
CHUNK = 256  # images read at a time
ROWS = 256  # of an image, scaled at a time

LARGE = Lock()  # several large images at once would fill the memory
if hasattr(os, "register_at_fork"):  # a child would inherit a lock that nobody releases; Windows has no forks
    os.register_at_fork(before=LARGE.acquire, after_in_child=LARGE.release, after_in_parent=LARGE.release)

ImageSource = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray | dict[str, Any]


def open_image(source: ImageSource) -> PIL.Image.Image:
    """Open one image as RGB, the way a viewer shows it: upright, in sRGB, on white if transparent, its first frame.

    Args:
        source: a path, bytes, a PIL image, a dataset's {"bytes", "path"}, or an array (h, w) or (h, w, 1 or 3 or 4)
            of uint8, uint16, bool or floats from 0 to 1.

    Raises:
        ValueError: it cannot be read; the sentence says why.
    """
    source = bytes_or_path(source)
    name = str(source) if isinstance(source, (str, os.PathLike)) else "the image"
    try:
        return decode(source)
    except Exception as error:  # pillow's decoders raise all kinds
        raise ValueError(f"{name} cannot be read as an image: {reason(error)}") from error


def open_or_error(source: ImageSource | Exception) -> PIL.Image.Image | str:
    """Open an image, or return the sentence that says why it cannot be opened; an exception is such a reason.

    Of files that a dataset's row names, only those on the Hub are opened: it may name any, and is not the reader's own.
    """
    if isinstance(source, Exception):
        return first_line(source)
    try:
        source = bytes_or_path(source)
        if isinstance(source, str):
            if not ON_THE_HUB.fullmatch(source):
                raise ValueError(f"the row holds no image, only the path {source!r}")
            source = fsspec.open(source).open().read()
        return open_image(source)
    except (ValueError, OSError) as error:
        return str(error)


def why_unreadable(source: ImageSource) -> str | None:
    """Return why `open_image` would refuse a path, bytes or a dataset's {"bytes", "path"}, or None."""
    try:
        decode(bytes_or_path(source), quick=True)
    except Exception as error:  # see open_image
        return reason(error)
    return None


def find_unreadable(
    sources: Sequence[ImageSource], signatures: Sequence[str | None], dataset: str, title: str = "checking images"
) -> dict[int, str]:
    """Decode every image once, and return position -> reason for those that cannot be read; the others are cached.

    Args:
        sources: n images, as `why_unreadable` takes them.
        signatures: n texts that change when the image does; with None it is decoded in any case.
        dataset: what the images belong to; the cache keeps one list of signatures for each.
        title: of the progress bar.
    """
    key = blake2b(os.fsencode(f"{dataset} {PIL.__version__}"), digest_size=16).hexdigest()
    file = cache_folder("readable") / f"{key}.json"
    try:
        readable = set(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):  # not there yet, or damaged
        readable = set()
    new = [i for i, signature in enumerate(signatures) if signature is None or signature not in readable]
    unreadable: dict[int, str] = {}
    progress = tqdm(desc=title, total=len(new), unit="image", delay=2)
    with ThreadPoolExecutor() as pool, progress, warnings.catch_warnings(action="ignore"):  # of odd metadata
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            reasons = pool.map(why_unreadable, [sources[i] for i in chunk])
            unreadable |= {i: why for i, why in zip(chunk, reasons, strict=True) if why}
            progress.update(len(chunk))
    if len(new) > len(unreadable):
        with best_effort():
            write_json(file, [signature for i, signature in enumerate(signatures) if i not in unreadable])
    return unreadable


def starts_like_image(path: Path) -> bool:
    """Tell whether a file starts as an image does, whatever its name; one that must not be read may be an image."""
    if not path.is_file():
        return False  # a pipe would be waited for
    try:
        with path.open("rb") as stream:
            start = stream.read(32)
    except OSError:
        return True
    return len(start) == 32 and any(accepts(start) for accepts in KNOWN)


def bytes_or_path(source: ImageSource) -> ImageSource:
    """Return the bytes, or else the path, in a dataset's {"bytes", "path"}; other sources as they are."""
    if isinstance(source, dict):
        return source.get("path") if source.get("bytes") is None else source["bytes"]
    return source


def reason(error: Exception) -> str:
    """Return an error as a few words on one line, without the file's name."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.strip().partition("\n")[0]


def decode(source: ImageSource, quick: bool = False) -> PIL.Image.Image:
    """Read an image, see `read_image`, and turn it into RGB as a viewer shows it; large ones one after the other."""
    image = read_image(source, quick)
    with LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
        return to_display_rgb(image)


def read_image(source: ImageSource, quick: bool = False) -> PIL.Image.Image:
    """Read a pillow image of any mode; quick: JPEGs at an eighth of their size, which still reads all bytes."""
    if isinstance(source, PIL.Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError("not a regular file")  # a pipe would be waited for
        source = path.read_bytes()
    if source is None:
        raise ValueError("there is no image")
    if not isinstance(source, bytes):
        raise ValueError(f"a path, bytes, a PIL image or an array is needed, not {source!r:.40}")
    if not source:
        raise ValueError("an empty file")
    if source.startswith(b"\xff\xd8") and (scans := source.count(JPEG_SCAN)) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans")
    try:
        image = PIL.Image.open(BytesIO(source), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        kind = next((name for name in FORMATS if PIL.Image.OPEN[name][1](source[:32])), None)
        raise ValueError(f"damaged, or {kind} of a rare kind" if kind else NOT_RECOGNISED) from error
    if image.format == "JPEG" and source.rfind(JPEG_END) < source.rfind(JPEG_SCAN):
        image = PIL.Image.open(BytesIO(with_end(source)), formats=FORMATS)
    clear = image.info.get("transparency")
    if image.format == "PNG" and clear is not None:  # pillow compares it with what it has scaled to 8 bits
        stored = image.tile[0].args
        if stored == "RGB;16B":
            clear = tuple(value >> 8 for value in clear)
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(stored, 1)
    if image.format == "GIF" and (frame := image.tile[0].extents) != (0, 0, *image.size):  # beside it is nothing
        screen = PIL.Image.new("RGBA", image.size)
        screen.paste(image.convert("RGBA").crop(frame), frame)
        return screen
    if quick:
        image.draft("RGB", (32, 32))
    return image


def with_end(jpeg: bytes) -> bytes:
    """Add the end marker that a JPEG lacks, if its pixels are complete: then more data before it changes nothing."""
    scan = jpeg.rstrip(b"\xff")  # half a marker
    more = b"".join(b"\x55" * 64 + bytes([0xFF, marker]) for marker in range(0xD0, 0xD8))  # all that restart a scan
    with LARGE:
        shown = [PIL.Image.open(BytesIO(scan + data + JPEG_END)).tobytes() for data in (b"", more + more)]
    return scan + JPEG_END if shown[0] == shown[1] else jpeg


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """Turn an array, see `open_image`, into a pillow image."""
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an array has the shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), not {array.shape}")
    if array.dtype == bool or (array.dtype.kind == "f" and ((array >= 0) & (array <= 1)).all()):
        array = to_uint8(array.astype(np.float32))
    elif array.dtype == np.uint16:
        array = to_uint8(array)
    elif array.dtype != np.uint8:
        span = f" from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else ""
        raise ValueError(f"an array holds uint8, uint16, bool, or floats from 0 to 1, not {array.dtype}{span}")
    return PIL.Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else np.ascontiguousarray(array))


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale 16 bits, or floats from 0 to 1, to uint8; with others, the least becomes black and the largest white."""
    full = 1 if values.dtype.kind == "f" else 65535
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low >= 0 and high <= full:
        low, high = 0.0, full
    result = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), ROWS):
        block = np.nan_to_num(values[first : first + ROWS].astype(np.float64), nan=low)
        result[first : first + ROWS] = np.round(((block - low) * (255 / max(high - low, 1e-30))).clip(0, 255))
    return result


def to_display_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn a pillow image of any mode into RGB as a viewer shows it; the image given stays as it is."""
    if max(image.size) > MAX_ASPECT * min(image.size) or not min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are too thin a strip")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    image.load()
    tags, info = getattr(image, "tag_v2", {}), image.info
    image.info = {key: value for key, value in info.items() if "xmp" not in key}  # only EXIF turns an image
    upright = image
    with suppress(Exception):  # broken EXIF data turn nothing
        if image.getexif().get(ORIENTATION, 1) != 1:  # else it would be copied
            upright = PIL.ImageOps.exif_transpose(image)
    image.info, image = info, upright
    profile, clear = info.get("icc_profile"), info.get("transparency")
    if image.mode[0] in "IF":  # pillow's own conversion clips where it should scale
        values = np.asarray(image)
        if image.mode == "I" and tags.get(SAMPLE_FORMAT, (0,))[0] == UNSIGNED:
            values = values.view(np.uint32)
        grey = to_uint8(values)
        image = PIL.Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey)
        if clear is not None:
            image.putalpha(PIL.Image.fromarray((values != clear).astype(np.uint8) * np.uint8(255)))
    if not image.has_transparency_data:
        return to_srgb(image, image.mode, profile)
    stored, image = image.mode, image if image.mode == "RGBA" else image.convert("RGBA")
    shown = PIL.Image.new("RGB", image.size, "white")
    shown.paste(to_srgb(image, stored, profile), mask=image.getchannel("A"))
    return shown
