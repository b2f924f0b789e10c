"""Image files of many odd and hostile kinds: how they are written, and what a viewer shows or why it shows nothing."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms

SIZE = (16, 8)
CORNER = (slice(0, 4), slice(0, 8))  # the marked corner of an odd image
MARK, GROUND = (1, 2, 3), (200, 100, 50)
PLAIN = (MARK, GROUND)
SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


def marked(mode="RGB", mark=MARK, ground=GROUND):
    """An image of 16 x 8 pixels whose upper left quarter has another colour."""
    image = PIL.Image.new(mode, SIZE, ground)
    image.paste(mark, (0, 0, 8, 4))
    return image


def looks_like(image, corner, ground, tolerance=1):
    """Whether an opened image is RGB, 16 x 8 and shows these colours; tolerance 1: blending rounds."""
    pixels = np.asarray(image).astype(int)
    expected = np.empty((8, 16, 3), int)
    expected[:], expected[CORNER] = ground, corner
    return image.mode == "RGB" and pixels.shape == (8, 16, 3) and np.abs(pixels - expected).max() <= tolerance


def contents(image, form="PNG", **options):
    """An image as a file's bytes."""
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, interlaced=False, size=None):
    """A PNG that pillow does not write: RGB of 8 or 16 bits, interlaced or not; size: what the header claims."""
    whole = [(0, 0, 1, 1)]
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [pixels[top::down, left::across] for top, left, down, across in (adam7 if interlaced else whole)]
    lines = [b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for part in passes for row in part if row.size]
    width, height = size or pixels.shape[1::-1]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2, 0, 0, interlaced)
    data = zlib.compress(b"".join(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def swapped_profile():
    """A colour profile in which red and green have changed places."""
    profile = SRGB
    for old, new in ((b"rXYZ", b"@XYZ"), (b"gXYZ", b"rXYZ"), (b"@XYZ", b"gXYZ")):
        profile = profile.replace(old, new, 1)
    return profile


def brighter_profile():
    """A colour profile whose middle tones are brighter than sRGB's: an exponent of 1.2 in the place of 2.4."""
    return SRGB.replace(b"\x00\x02\x66\x66", b"\x00\x01\x33\x33")


def see_through():
    image = marked("P", 1, 0)
    image.putpalette([250, 0, 0, 0, 100, 200])
    image.info["transparency"] = 0
    return image


def several(form, **options):
    return contents(marked(), form, save_all=True, append_images=[PIL.Image.new("RGB", SIZE, "blue")], **options)


def turned(form="PNG", orientation=6, **options):
    """An image as a camera stores it that was held otherwise: the EXIF data say how to turn it."""
    turn = PIL.Image.Transpose
    undo = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    undo = (
        undo[orientation - 1]
        if orientation < 6
        else (turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270)[orientation - 6]
    )
    exif = PIL.Image.Exif()
    exif[274] = orientation
    return contents(marked() if undo is None else marked().transpose(undo), form, exif=exif, **options)


def deep_png(values, depth, colour, *chunks):
    """A PNG of greys (colour 0) or RGB (2) of 2, 4 or 16 bits, with other chunks."""
    rows = values.reshape(values.shape[0], -1)
    if depth == 16:
        lines = rows.astype(">u2").view(np.uint8)
    else:
        bits = (rows[:, :, None] >> np.arange(depth)[::-1]) & 1
        lines = np.packbits(bits.astype(np.uint8).reshape(len(rows), -1), axis=1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_chunk(kind, data):
    """A plain PNG with another chunk after its header."""
    content = contents(marked())
    return content[:33] + chunk(kind, data) + content[33:]


def tiff(values, photometric, sample_format):
    """A TIFF that pillow does not write: greys of any type."""
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 134)]
    tags += [(277, 1), (278, height), (279, values.nbytes), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + values.tobytes()


def small_frame():
    """A GIF whose only frame fills the corner of its screen."""
    content = bytearray(contents(PIL.Image.new("RGB", (8, 4), (0, 0, 254)), "GIF"))
    content[6:10] = struct.pack("<HH", *SIZE)
    return bytes(content)


XMP = b'<x:xmpmeta><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
PIXELS = np.asarray(marked())
GREY = np.asarray(marked("L", 7, 99))
SIXTEEN = GREY.astype(np.uint16) * 257
GREYS = ((7,) * 3, (99,) * 3)
RED, BLACK, WHITE = (255, 0, 0), (0,) * 3, (255,) * 3
SWAPPED = ((2, 1, 3), (100, 200, 50))

ODD = {  # name: (content, what a viewer shows in the corner and elsewhere, how far JPEG may stray)
    "plain.PNG": (contents(marked()), PLAIN, 0),
    "jpeg.JPEG": (contents(marked(), "JPEG", quality=100, subsampling=0), PLAIN, 6),
    "progressive.jpg": (contents(marked(), "JPEG", quality=100, subsampling=0, progressive=True), PLAIN, 6),
    "webp.webp": (contents(marked(), "WEBP", lossless=True), PLAIN, 0),
    "gif.gif": (contents(marked(), "GIF"), PLAIN, 0),
    "bitmap.bmp": (contents(marked(), "BMP"), PLAIN, 0),
    "tiff.tiff": (contents(marked(), "TIFF", compression="tiff_lzw"), PLAIN, 0),
    "grey.png": (contents(marked("L", 7, 99)), GREYS, 0),
    "grey.jpg": (contents(marked("L", 7, 99), "JPEG", quality=100), GREYS, 4),
    "grey with transparency.png": (contents(marked("LA", (40, 255), (40, 0))), ((40,) * 3, WHITE), 0),
    "one bit.png": (contents(marked("1", 0, 1)), (BLACK, WHITE), 0),
    "16 bits.png": (contents(PIL.Image.fromarray(SIXTEEN)), GREYS, 0),
    "16 bits.tif": (contents(PIL.Image.fromarray(SIXTEEN), "TIFF"), GREYS, 0),
    "16 bits, big-endian.tif": (
        contents(PIL.Image.frombytes("I;16B", SIZE, SIXTEEN.byteswap().tobytes()), "TIFF"),
        GREYS,
        0,
    ),
    "16 bits of each colour.png": (png(PIXELS.astype(np.uint16) * 257), PLAIN, 0),
    "32 bits.tif": (
        contents(PIL.Image.fromarray(np.where(GREY == 7, -2000, 900000).astype(np.int32)), "TIFF"),
        (BLACK, WHITE),
        0,
    ),
    "floats.tif": (contents(PIL.Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), GREYS, 0),
    "heights.tif": (contents(PIL.Image.fromarray(GREY * np.float32(40) - 500), "TIFF"), (BLACK, WHITE), 0),
    "palette.png": (contents(marked().quantize(8)), PLAIN, 0),
    "palette with transparency.png": (contents(see_through()), ((0, 100, 200), WHITE), 0),
    "palette with transparency.gif": (contents(see_through(), "GIF", transparency=0), ((0, 100, 200), WHITE), 0),
    "transparency.png": (contents(marked("RGBA", (9, 8, 7, 255), (0, 0, 0, 0))), ((9, 8, 7), WHITE), 0),
    "half transparent.webp": (
        contents(marked("RGBA", (0, 0, 0, 255), (255, 0, 0, 51)), "WEBP", lossless=True),
        (BLACK, (255, 204, 204)),
        1,
    ),
    "inks.tif": (contents(marked("CMYK", (0, 0, 0, 255), (0, 255, 255, 0)), "TIFF"), (BLACK, RED), 0),
    "inks as Adobe writes them.jpg": (
        contents(marked("CMYK", (0, 0, 0, 255), (0, 255, 255, 0)), "JPEG", quality=100, subsampling=0),
        (BLACK, RED),
        6,
    ),
    "lightness, a and b.tif": (contents(marked("LAB", (0, 128, 128), (138, 209, 198)), "TIFF"), (BLACK, RED), 6),
    "turned.jpg": (turned("JPEG", quality=100, subsampling=0), PLAIN, 6),
    "turned.webp": (turned("WEBP", orientation=8, lossless=True), PLAIN, 0),
    "sRGB.png": (contents(marked(), icc_profile=SRGB), PLAIN, 0),
    "red and green swapped.png": (contents(marked(), icc_profile=swapped_profile()), SWAPPED, 2),
    "swapped and transparent.png": (
        contents(marked("RGBA", (*MARK, 255), (*GROUND, 0)), icc_profile=swapped_profile()),
        (SWAPPED[0], WHITE),
        2,
    ),
    "swapped palette.png": (contents(marked().quantize(8), icc_profile=swapped_profile()), SWAPPED, 2),
    "bright.png": (contents(marked("L", 7, 99), icc_profile=brighter_profile()), ((7,) * 3, (160,) * 3), 2),
    "a broken profile.png": (contents(marked(), icc_profile=b"no profile"), PLAIN, 0),
    "another's profile.tif": (
        contents(marked("CMYK", (0, 0, 0, 255), (0, 255, 255, 0)), "TIFF", icc_profile=SRGB),
        (BLACK, RED),
        0,
    ),
    "broken EXIF.jpg": (
        contents(marked(), "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        PLAIN,
        6,
    ),
    "animated.gif": (several("GIF"), PLAIN, 0),
    "animated.webp": (several("WEBP", lossless=True), PLAIN, 0),
    "pages.tif": (several("TIFF"), PLAIN, 0),
    "interlaced.png": (png(PIXELS, interlaced=True), PLAIN, 0),
    "2 bits with transparency.png": (deep_png(GREY // 33, 2, 0, chunk(b"tRNS", b"\0\0")), (WHITE, WHITE), 0),
    "4 bits with transparency.png": (deep_png(GREY // 7, 4, 0, chunk(b"tRNS", b"\0\1")), (WHITE, (238,) * 3), 0),
    "16 bits with transparency.png": (deep_png(SIXTEEN, 16, 0, chunk(b"tRNS", b"\7\7")), (WHITE, (99,) * 3), 0),
    "RGB of 16 bits with transparency.png": (
        deep_png(PIXELS * np.uint16(257), 16, 2, chunk(b"tRNS", bytes([1, 1, 2, 2, 3, 3]))),
        (WHITE, GROUND),
        0,
    ),
    "a long text.png": (with_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2_000_000))), PLAIN, 0),
    "turned by XMP only.png": (with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), PLAIN, 0),
    "turned by XMP only.webp": (contents(marked(), "WEBP", lossless=True, xmp=XMP), PLAIN, 0),
    "white is zero.tif": (tiff(65535 - SIXTEEN, 0, 1), GREYS, 0),
    "32 bits, unsigned.tif": (tiff(np.where(GREY == 7, 7, 3 << 30).astype(np.uint32), 1, 1), (BLACK, WHITE), 0),
    "a small frame.gif": (small_frame(), ((0, 0, 254), WHITE), 0),
    "a PNG called.jpg": (contents(marked()), PLAIN, 0),
    "a WebP called.gif": (contents(marked(), "WEBP", lossless=True), PLAIN, 0),
    "without a suffix": (contents(marked()), PLAIN, 0),
    "two.dots.and #%&?'\".png": (contents(marked()), PLAIN, 0),
    "日本語 ünïcode 🌿.png": (contents(marked()), PLAIN, 0),
    "in\nlines.png": (contents(marked()), PLAIN, 0),
    os.fsdecode(b"latin-1 \xe9.png"): (contents(marked()), PLAIN, 0),
    "train.png": (contents(marked()), PLAIN, 0),
    "test_1.png": (contents(marked()), PLAIN, 0),
}

NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))

BROKEN = {  # name: (content, a word of the reason)
    "empty.jpg": (b"", "empty"),
    "text.png": (b"only text\n", "not recognised"),
    "a web page.jpg": (b"<!DOCTYPE html><title>404 Not Found</title>", "not recognised"),
    "a pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not recognised"),
    "noise.webp": (bytes(range(256)) * 8, "not recognised"),
    "PostScript.jpg": (contents(NOISE, "EPS"), "not recognised"),
    "phone.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not recognised"),
    "cut.jpg": (contents(NOISE, "JPEG")[:-300], "truncated"),
    "cut progressive.jpg": (contents(NOISE, "JPEG", progressive=True)[:-300], "truncated"),
    "cut.png": (contents(NOISE)[:-300], "truncated"),
    "cut.gif": (contents(NOISE, "GIF")[:-300], "truncated"),
    "cut.bmp": (contents(NOISE, "BMP")[:-300], "truncated"),
    "cut.tif": (contents(NOISE, "TIFF")[:-300], "truncated"),
    "cut.webp": (contents(NOISE, "WEBP")[:-300], "decoder"),
    "cut without a suffix": (contents(NOISE)[:-300], "truncated"),
    "floats of 64 bits.tif": (tiff(GREY / 255, 1, 3), "TIFF of a rare kind"),
    "header only.png": (contents(NOISE)[:33], ""),
    "garbled.png": (contents(NOISE)[:400] + b"garbled" * 9 + contents(NOISE)[463:], ""),
    "bomb.png": (png(PIXELS, size=(60000, 60000)), "exceeds limit"),
    "large.png": (png(PIXELS, size=(12000, 12000)), "too many"),
    "scans.jpg": (contents(NOISE, "JPEG", progressive=True) + 100 * b"\xff\xda", "scans"),
    "thread.png": (contents(PIL.Image.new("L", (20000, 1))), "thin"),
}


def write_odd(folder):
    """Write all good files, half of them into each of two class folders, one deeper; and a linked folder and file."""
    for i, (name, (content, _, _)) in enumerate(ODD.items()):
        place = folder / ("one" if i % 2 else "two/deeper")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    elsewhere = folder.with_name(f"{folder.name} elsewhere")
    elsewhere.mkdir()
    for name in ("far.png", "wide.png"):
        (elsewhere / name).write_bytes(ODD["plain.PNG"][0])
    (folder / "three").symlink_to(elsewhere, target_is_directory=True)
    (folder / "one" / "linked.png").symlink_to(elsewhere / "far.png")
    return folder


def write_broken(folder):
    """Write all hostile files, folders and links beside what is there: their paths in the folder, and why each is."""
    place = folder / "one"
    place.mkdir(parents=True, exist_ok=True)
    for name, (content, _) in BROKEN.items():
        (place / name).write_bytes(content)
    (place / "folder.jpg").mkdir()
    (place / "dangling.jpg").symlink_to("nowhere.jpg")
    (place / "itself.png").symlink_to("itself.png")
    os.mkfifo(place / "pipe.png")
    (place / "round").symlink_to(folder, target_is_directory=True)
    for name in ("README", "notes.txt", "labels.csv", ".hidden.png"):
        (folder / name).write_text("no image, and none is meant")
    special = {
        "folder.jpg": "directory",
        "dangling.jpg": "No such file",
        "itself.png": "symbolic",
        "pipe.png": "regular",
    }
    return {f"one/{name}": why for name, why in ({name: why for name, (_, why) in BROKEN.items()} | special).items()}
