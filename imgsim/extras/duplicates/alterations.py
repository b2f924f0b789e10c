"""Altered copies of an image, as they come about in real life: saved again, scaled, cropped, corrected, marked."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from PIL import Image, ImageDraw, ImageEnhance, ImageOps


def resave(image: Image.Image, quality: int) -> Image.Image:
    """Save an image as JPEG, and open it again."""
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content, formats=["JPEG"])


def scale(image: Image.Image, factor: float) -> Image.Image:
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.LANCZOS)


def crop(image: Image.Image, share: float) -> Image.Image:
    """Crop an image to `share` of each side, with more cut off at the top left than at the bottom right."""
    width, height = image.size
    left, top = round(width * (1 - share) * 0.7), round(height * (1 - share) * 0.7)
    return image.crop((left, top, left + max(1, round(width * share)), top + max(1, round(height * share))))


def add_watermark(image: Image.Image) -> Image.Image:
    """Put a pale bar with dark writing over a twentieth of an image."""
    image, (width, height) = image.copy(), image.size
    pen = ImageDraw.Draw(image)
    pen.rectangle((width * 0.55, height * 0.87, width * 0.97, height * 0.97), fill="#e8e8e8")
    pen.text((width * 0.58, height * 0.88), "example.org", fill="#303030", font_size=max(6, height * 0.06))
    return image


def warm(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (red.point(lambda v: v * 1.12), green, blue.point(lambda v: v * 0.88)))


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {  # RGB in, RGB out
    "JPEG 75": lambda image: resave(image, 75),
    "JPEG 30": lambda image: resave(image, 30),
    "JPEG 10": lambda image: resave(image, 10),
    "half size": lambda image: scale(image, 0.5),
    "quarter size": lambda image: scale(image, 0.25),
    "90% crop": lambda image: crop(image, 0.9),
    "70% crop": lambda image: crop(image, 0.7),
    "mirrored": ImageOps.mirror,
    "turned by 5°": lambda image: crop(image.rotate(5, Image.BICUBIC), 0.9),
    "turned by 90°": lambda image: image.transpose(Image.ROTATE_90),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.75),
    "warmer": warm,
    "less colour": lambda image: ImageEnhance.Color(image).enhance(0.4),
    "watermark": add_watermark,
}
EVERYDAY = ("JPEG 30", "half size", "90% crop", "mirrored", "brighter")  # what a threshold is calibrated with


def alter(image: Image.Image, kind: str) -> Image.Image:
    """Alter an RGB image in one of the ways in ALTERATIONS, and save it again as copies are: as a good JPEG."""
    altered = ALTERATIONS[kind](image)
    return altered if kind.startswith("JPEG") else resave(altered, 90)
