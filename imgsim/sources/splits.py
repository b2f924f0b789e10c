"""A split as it is stored, whatever its format or transform: its images, their names, labels and digest."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imgsim.sources.decode import DECODER_VERSION, reason

if TYPE_CHECKING:
    from datasets import Dataset  # takes half a second, and a search has no use for it


def is_split(images) -> bool:
    """Tell whether images are a split or a stream of datasets, and not a sequence."""
    return hasattr(images, "column_names")


def stored_images(images: Dataset) -> Sequence[dict]:
    """Return the images of a split as they are stored, {"bytes", "path"}, whatever its format or transform.

    Raises:
        ValueError: it has no column image.
    """
    from datasets import Image

    if "image" not in images.column_names:
        raise ValueError(f"The dataset has no column 'image', only {', '.join(images.column_names)}: rename one.")
    return images.with_format(None).cast_column("image", Image(decode=False))["image"]


def stored_bytes(image: dict | None) -> bytes:
    """Return the content of an image as it is stored; ValueError if there is none or its file cannot be read."""
    if image is None:
        raise ValueError("A row of the dataset holds no image.")
    try:
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    except OSError as error:
        raise ValueError(f"{image['path']} cannot be read as an image: {reason(error)}") from error


def image_key(image: dict | None) -> str | None:
    """Return the path of a stored image {"bytes", "path"}, None if there is none."""
    return (image or {}).get("path")


def labels_of(images: Dataset) -> np.ndarray | None:
    """Return the labels (n,) of a split, -1 for a missing one, or None if it has none; no image is decoded."""
    name = next((name for name in ("labels", "label") if name in images.column_names), None)
    return encode_labels(images.with_format(None)[name][:]) if name else None


def encode_labels(labels: list) -> np.ndarray | None:
    """Turn labels into whole numbers (n,): names by alphabetical order, -1 for a missing one; None if all are."""
    known = [label for label in labels if label is not None]
    if any(isinstance(label, str) for label in known):
        numbers = {name: number for number, name in enumerate(sorted(set(known)))}
        labels = [numbers.get(label, -1) for label in labels]
    encoded = np.array([-1 if label is None else label for label in labels], np.int64)
    return np.maximum(encoded, -1) if (encoded >= 0).any() or not len(encoded) else None


def fingerprint(images: Dataset) -> str:
    """Return a digest of the images' bytes, in their order.

    Raises:
        ValueError: a row holds no image, or a file has become unreadable.
    """
    digest = blake2b(bytes([DECODER_VERSION]), digest_size=16)
    for content in map(stored_bytes, stored_images(images)):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
