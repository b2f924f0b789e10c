"""Where images come from: the built-in leaves, a Hub data set or a local folder; and opening one image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from tqdm import tqdm

from imgsim import leaves
from imgsim.store import cache_folder, locate

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"}
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)  # what pillow raises


def open_image(source) -> PIL.Image.Image:
    """One image as RGB, the way up and in the colours a viewer shows it.

    source: a path, bytes, a PIL image, an array (h, w), (h, w, 3) or (h, w, 4) of uint8, or a data set's
    {"bytes", "path"}. Raises ValueError with one sentence where it cannot be read.
    """
    name = "the image"
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (str, os.PathLike)):
        name, source = str(source), Path(source).expanduser()
    try:
        source = PIL.Image.fromarray(source) if isinstance(source, np.ndarray) else source
        image = source if isinstance(source, PIL.Image.Image) else None
        if image is None:
            image = PIL.Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        image = PIL.ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits: pillow's own conversion clips where it should scale
            image = PIL.Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def defect(path: Path) -> str | None:
    """Why this file cannot be decoded to its end, or None where it can."""
    try:
        with PIL.Image.open(path) as image:
            image.draft("RGB", (32, 32))  # JPEGs are decoded at an eighth of their size: all bytes, little work
            image.load()
    except UNREADABLE as error:
        return str(error)


def find_images(folder: Path) -> Iterator[Path]:
    """All image files below a folder, in the order of their paths; hidden ones are passed over."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(parent, name)
            for name in sorted(names)
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        )


def load_folder(folder: Path) -> DatasetDict:
    """Read an image folder: [split/][class/]name. Files that cannot be decoded are skipped and listed."""
    paths = list(find_images(folder))
    with ThreadPoolExecutor() as pool:
        checks = tqdm(pool.map(defect, paths), "checking images", total=len(paths), delay=2)
        defects = dict(zip(paths, checks, strict=True))
    skipped = {path: reason for path, reason in defects.items() if reason}
    if skipped:
        listed = "; ".join(f"{path.relative_to(folder)} ({reason})" for path, reason in list(skipped.items())[:5])
        print(f"Skipped {len(skipped)} of {len(paths)} images that cannot be read: {listed}")
    parts = {path: path.relative_to(folder).parts for path in paths if path not in skipped}
    if not parts:
        raise ValueError(
            f"dataset {str(folder)!r}: the folder holds no readable image ({', '.join(sorted(SUFFIXES))})."
        )

    places = {path: SPLIT_NAMES.get(part[0].lower()) if len(part) > 1 else None for path, part in parts.items()}
    if {"train"} < set(places.values()) - {None} or None not in places.values():
        rows = [(places[path], path, part[1:]) for path, part in parts.items() if places[path]]
        if len(rows) < len(parts):
            print(f"Left out {len(parts) - len(rows)} images that lie outside the folders of the splits.")
    else:
        rows = [("train", path, part) for path, part in parts.items()]
    labelled = all(len(part) > 1 for _, _, part in rows)
    features = {"image_file_path": Value("string"), "image": Image()}
    if labelled:
        features["labels"] = ClassLabel(names=sorted({part[0] for _, _, part in rows}))
    splits = {}
    for split in sorted({split for split, _, _ in rows}, key=("train", "validation", "test").index):
        files = [(str(path), part) for name, path, part in rows if name == split]
        columns = {"image_file_path": [path for path, _ in files], "image": [path for path, _ in files]}
        if labelled:
            columns["labels"] = [part[0] for _, part in files]
        splits[split] = Dataset.from_dict(columns, Features(features))
    return DatasetDict(splits)


def load_parquet(folder: Path, name: str) -> DatasetDict:
    """Load a data set as the Hub stores it, its columns named as Beans' are."""
    images = load_dataset(str(folder))
    features = next(iter(images.values())).features
    image = next((column for column, feature in features.items() if isinstance(feature, Image)), None)
    if image is None:
        raise ValueError(f"dataset {name!r}: no column holds images, only {', '.join(features)}.")
    label = next((c for c in ("labels", "label") if isinstance(features.get(c), ClassLabel)), None)
    return images.rename_columns({old: new for old, new in ((image, "image"), (label, "labels")) if old and old != new})


def load_images(source: str | os.PathLike = "builtin") -> DatasetDict:
    """Load an image set with the columns `image` and, where there are classes, `labels`.

    source: "builtin" (drawn bean leaves, see leaves.py), a local folder, or a data set on the Hub such as
    "AI-Lab-Makerere/beans". Raises ValueError for a source that holds no images, ConnectionError where the
    Hub cannot be reached.
    """
    if source == "builtin":
        drawing = Path(leaves.__file__).read_bytes()  # another drawing is another data set
        folder = cache_folder() / f"leaves-{blake2b(drawing, digest_size=4).hexdigest()}"
        return load_folder(folder if folder.exists() else leaves.draw_folder(folder))
    folder = locate(str(source), "dataset")
    return load_parquet(folder, str(source)) if any(folder.rglob("*.parquet")) else load_folder(folder)


def candidates_and_queries(images: DatasetDict, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The images to search in, and those to search with.

    Candidates are the train split; queries are the test split, else validation, else a seeded tenth that is
    held out of the only split.
    """
    candidates = images["train" if "train" in images else next(iter(images))]
    queries = next((images[split] for split in ("test", "validation") if split in images), candidates)
    if queries is not candidates:
        return candidates, queries
    if len(candidates) < 2:
        raise ValueError(f"A search needs at least two images, and the data set holds {len(candidates)}.")
    parts = candidates.train_test_split(max(1, len(candidates) // 10), seed=seed)
    return parts["train"], parts["test"]


def labels_of(images: Dataset) -> np.ndarray | None:
    """The labels (n,) of a split, or None where it has none; no image is decoded."""
    return np.asarray(images["labels"]) if "labels" in images.column_names else None


def fingerprint(images: Dataset) -> str:
    """A digest of the images' bytes, in their order."""
    digest = blake2b(digest_size=16)
    for source in images.cast_column("image", Image(decode=False))["image"]:
        content = Path(source["path"]).read_bytes() if source["bytes"] is None else source["bytes"]
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
