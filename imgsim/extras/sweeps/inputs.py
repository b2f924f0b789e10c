"""What all points of a sweep share: the embeddings of one dataset by one checkpoint, with thumbnails, in a folder.

Only writing them takes torch; a point reads arrays.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from imgsim.images import candidates_and_queries, labels_of
from imgsim.search.storage import digest_of, read_arrays, write_arrays
from imgsim.sources.decode import open_image
from imgsim.sources.splits import stored_images

ARRAYS = ("embeddings", "labels", "thumbnails", "ends")
MANIFEST_KEYS = ("dataset", "checkpoint", "dtype", "images_per_second", "splits", "names")


def thumbnail(source) -> bytes:
    """Shrink an image to a square JPEG, about as large as its embedding."""
    content = BytesIO()
    open_image(source).resize((128, 128)).save(content, "JPEG", quality=85)
    return content.getvalue()


def write_inputs(images: DatasetDict, encoder, settings: dict, folder: Path) -> dict:
    """Embed the splits that searches use, and write to a folder all that a point needs to know of them.

    Args:
        images, encoder: as `load_images` and `load_encoder` return them.
        settings: dataset, checkpoint and batch_size, as in a run.

    Returns:
        The digests of checkpoint and embeddings.
    """
    parts = candidates_and_queries(images)
    used = {name: split for name, split in images.items() if any(split is part for part in parts)} or dict(images)
    embeddings, speeds, labels, sources = [], [], [], []
    for split in used.values():
        embeddings.append(encoder.embed(split, settings["batch_size"]))
        speeds.append(encoder.images_per_second)
        known = labels_of(split)
        labels.append(np.full(len(split), -1) if known is None else known)
        sources += stored_images(split)
    with ThreadPoolExecutor() as pool:
        thumbnails = list(pool.map(thumbnail, sources))
    arrays = {"embeddings": np.concatenate(embeddings), "labels": np.concatenate(labels)}
    arrays["thumbnails"] = np.frombuffer(b"".join(thumbnails), np.uint8)
    arrays["ends"] = np.cumsum([len(content) for content in thumbnails])
    manifest = {name: settings[name] for name in ("dataset", "checkpoint")}
    manifest |= {"dtype": encoder.precision, "images_per_second": speeds[0]}
    manifest["splits"] = {name: len(split) for name, split in used.items()}
    manifest["names"] = getattr(parts[0].features.get("labels"), "names", None)
    write_arrays(folder, manifest, arrays)
    return {"checkpoint": encoder.digest, "embeddings": digest_of(arrays["embeddings"])}


@dataclass(frozen=True)
class Inputs:
    """What a point reads.

    Attributes:
        manifest: what `write_inputs` wrote about dataset and checkpoint.
        images: (candidates, queries) with thumbnails; candidates, queries: their embeddings (n, d) and (m, d).
        labels, query_labels: (n,) and (m,), or None if there are no labels.
    """

    manifest: dict
    images: tuple[Dataset, Dataset]
    candidates: np.ndarray
    queries: np.ndarray
    labels: np.ndarray | None
    query_labels: np.ndarray | None


def read_inputs(folder, seed: int = 0) -> Inputs:
    """Read what `write_inputs` wrote; the seed holds queries out if there is only one split, as in a run.

    Raises:
        ValueError: the folder holds no inputs, or they are damaged.
    """
    manifest, arrays = read_arrays(folder, MANIFEST_KEYS, ARRAYS)
    names, bounds = manifest["names"], pairwise([0, *arrays["ends"]])
    columns = {
        "image": [{"bytes": arrays["thumbnails"][start:end].tobytes(), "path": None} for start, end in bounds],
        "labels": [None if label < 0 else label for label in arrays["labels"].tolist()],
        "row": range(len(arrays["labels"])),
    }
    features = {"image": Image(), "labels": ClassLabel(names=names) if names else Value("int64"), "row": Value("int64")}
    everything, splits, start = Dataset.from_dict(columns, Features(features)), DatasetDict(), 0
    for name, count in manifest["splits"].items():
        splits[name] = everything.select(range(start, start + count))
        start += count
    images = candidates_and_queries(splits, seed)
    candidates, queries = (arrays["embeddings"][np.asarray(part["row"])] for part in images)
    return Inputs(manifest, images, candidates, queries, *map(labels_of, images))
