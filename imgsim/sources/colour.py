"""From the colours in which an image is stored, and its profile, to sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
import PIL.Image
import PIL.ImageCms


def to_srgb(image: PIL.Image.Image, mode: str, profile: bytes | None) -> PIL.Image.Image:
    """Convert an image to sRGB; mode: the one it was stored in, with this colour profile."""
    space = {"CMYK": "CMYK", "LAB": "LAB", "1": "L", "L": "L", "LA": "L"}.get(mode, "RGB")
    meant, transform = srgb_transform(profile or b"", space == "LAB")
    if transform is None or (meant != space and (meant, space) != ("RGB", "L")):
        return image.convert("RGB")
    return PIL.ImageCms.applyTransform(image.convert(meant), transform)


@lru_cache(32)
def srgb_transform(profile: bytes, lab: bool) -> tuple[str, PIL.ImageCms.ImageCmsTransform | None]:
    """Return the mode that a colour profile is for, and the transform from it to sRGB: None if colours stay."""
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
    if mode in ("RGB", "L"):  # most profiles are sRGB under one name or another: tried on all colours, then dropped
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        shown = PIL.Image.fromarray(colours if mode == "RGB" else steps[None])
        change = np.asarray(cms.applyTransform(shown, transform)).astype(int) - np.asarray(shown.convert("RGB"))
        if np.abs(change).max() <= 2:
            return mode, None
    return mode, transform
