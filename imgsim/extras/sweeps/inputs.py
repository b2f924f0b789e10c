"""What all points of a sweep share: one data set's embeddings by one checkpoint, with thumbnails, in a folder.

Only writing them takes torch; a point reads arrays.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Image
from matplotlib.figure import Figure

from imgsim.figures import INK, RIGHT, WRONG, plot_images
from imgsim.images import candidates_and_queries, labels_of
from imgsim.search.storage import read_arrays, write_arrays
from imgsim.sources.decode import open_image

ARRAYS = ("embeddings", "labels", "thumbnails", "ends")
KEPT = ("dataset", "checkpoint", "checkpoint_digest", "dtype", "splits", "labelled", "names", "images_per_second")


def thumbnail(source) -> bytes:
    """An image as a small square JPEG, about as large as its embedding."""
    content = BytesIO()
    open_image(source).resize((128, 128)).save(content, "JPEG", quality=85)
    return content.getvalue()


def write_inputs(images: DatasetDict, encoder, settings: dict, folder: Path) -> None:
    """Embed the splits that searches use, and keep all that a point needs to know of them."""
    parts = candidates_and_queries(images)
    used = {name: split for name, split in images.items() if any(split is part for part in parts)} or dict(images)
    embeddings, speeds = [], []
    for split in used.values():
        embeddings.append(encoder.embed(split, settings["batch_size"]))
        speeds.append(encoder.images_per_second)
    labels = [labels_of(split) for split in used.values()]
    sources = [row for split in used.values() for row in split.cast_column("image", Image(decode=False))["image"]]
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(thumbnail, sources))
    arrays = {
        "embeddings": np.concatenate(embeddings),
        "labels": np.concatenate(labels) if labels[0] is not None else np.full(len(sources), -1),
        "thumbnails": np.frombuffer(b"".join(pictures), np.uint8),
        "ends": np.cumsum([len(picture) for picture in pictures]),
    }
    manifest = {
        "dataset": settings["dataset"],
        "checkpoint": settings["checkpoint"],
        "checkpoint_digest": encoder.digest,
        "dtype": encoder.precision,
        "splits": {name: len(split) for name, split in used.items()},
        "labelled": labels[0] is not None,
        "names": getattr(parts[0].features.get("labels"), "names", None),
        "images_per_second": speeds[0],
    }
    write_arrays(folder, manifest, arrays)


@dataclass(frozen=True)
class Inputs:
    """Candidates (n, d) and queries (m, d) as embeddings, their labels (n,) and (m,) or None, and their thumbnails."""

    manifest: dict
    candidates: np.ndarray
    queries: np.ndarray
    labels: np.ndarray | None
    query_labels: np.ndarray | None
    pictures: tuple[list[bytes], list[bytes]]

    def name(self, label: int) -> str:
        """A label's name; "" where there is none."""
        return "" if label < 0 else self.manifest["names"][label] if self.manifest["names"] else str(label)

    def gallery(self, query: int, ids: np.ndarray, cosines: np.ndarray) -> Figure:
        """A query beside its matches (t,), an id of -1 being none; green captions where the labels agree."""
        label = -1 if self.labels is None else self.query_labels[query]
        pictures, captions, colours = [self.pictures[1][query]], [f"query\n{self.name(label)}"], [INK]
        for i, cosine in zip(ids[ids >= 0].tolist(), cosines, strict=False):
            own = -1 if self.labels is None else self.labels[i]
            pictures.append(self.pictures[0][i])
            captions.append(f"{self.name(own)}\ncosine {cosine:.2f}")
            colours.append(INK if label < 0 else RIGHT if own == label else WRONG)
        return plot_images(pictures, captions, colours)


def read_inputs(folder, seed: int = 0) -> Inputs:
    """Read what `write_inputs` wrote; the seed holds queries out where there is only one split."""
    manifest, arrays = read_arrays(folder, KEPT, ARRAYS)
    splits, start = DatasetDict(), 0
    for name, count in manifest["splits"].items():  # rows instead of images, divided by the same function
        splits[name] = Dataset.from_dict({"row": range(start, start + count)})
        start += count
    rows = [np.asarray(part["row"]) for part in candidates_and_queries(splits, seed)]
    ends, content = arrays["ends"], arrays["thumbnails"]
    pictures = [content[start:end].tobytes() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    labelled = manifest["labelled"]
    return Inputs(
        manifest,
        *(arrays["embeddings"][part] for part in rows),
        *(arrays["labels"][part] if labelled else None for part in rows),
        tuple([pictures[row] for row in part] for part in rows),
    )
