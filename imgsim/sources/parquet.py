"""Data sets as the Hub stores them, in Parquet files or streamed: choosing columns, passing over what is broken."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import PIL
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from tqdm import tqdm

from imgsim.sources.cache import cache_folder, write_json
from imgsim.sources.decode import why_unreadable

CHUNK = 256  # rows whose bytes are held at a time


def has_parquet(folder: Path) -> bool:
    """Tell whether a folder holds Parquet files, hidden ones apart."""
    names = (path.relative_to(folder).parts for path in folder.rglob("*.parquet"))
    return any(not any(part.startswith(".") for part in parts) for parts in names)


def load_parquet(folder: Path, source: str, options: dict[str, str]) -> tuple[DatasetDict, list[dict]]:
    """Load a folder's Parquet files: splits whose columns are named as Beans' are, and what was left out."""
    try:
        images = load_dataset(str(folder), options.get("config"))
    except Exception as error:  # a damaged file, or several configurations to choose from
        words = " ".join(str(error).split("\n")[:2])
        raise ValueError(f"dataset {source!r} cannot be loaded: {words}") from error
    try:
        images = name_columns(images, options)
    except ValueError as error:
        raise ValueError(f"dataset {source!r}: {error}") from error
    skipped = []
    for name, split in images.items():
        broken = broken_rows(split, name)
        skipped += [{"path": f"{name}, row {row}", "reason": why} for row, why in broken.items()]
        if broken:
            images[name] = split.select([row for row in range(len(split)) if row not in broken])
    if not any(map(len, images.values())):
        first = f": {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(f"dataset {source!r} holds no readable image{first}.")
    return images, skipped


def name_columns(images: DatasetDict, options: dict[str, str]) -> DatasetDict:
    """Call the image column `image` and that of the labels, where there is one, `labels`: a ClassLabel or numbers."""
    features = next(iter(images.values())).features
    for key in ("image", "label"):
        if options.get(key, next(iter(features))) not in features:
            raise ValueError(f"there is no column {options[key]!r}, only {', '.join(features)}.")
    image, label = (
        options.get("image") or image_column(features),
        options.get("label") or label_column(images, features),
    )
    if image is None:
        raise ValueError(f"no column holds images, only {', '.join(features)}.")
    chosen = {old: new for old, new in ((image, "image"), (label, "labels")) if old}
    images = images.remove_columns([name for name in chosen.values() if name in features and name not in chosen])
    images = images.rename_columns({old: new for old, new in chosen.items() if old != new})
    try:
        images = images.cast_column("image", Image())
    except Exception as error:
        raise ValueError(f"the column {image!r} holds no images but {features[image]}.") from error
    kind = getattr(features.get(label), "dtype", "")
    if not label or isinstance(features[label], ClassLabel):
        return images
    if "string" in kind:
        names = sorted({name for split in images.values() for name in split.unique("labels")} - {None})
        return images.cast_column("labels", ClassLabel(names=names))
    if "int" in kind or kind == "bool":
        return images.cast_column("labels", Value("int64"))
    raise ValueError(f"the column {label!r} holds no labels (names or whole numbers) but {features[label]}.")


def image_column(features: dict) -> str | None:
    """The column that holds images, by its type; the one called image where there are several."""
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not columns:  # as other libraries than datasets write images
        columns = [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    return "image" if "image" in columns else columns[0] if columns else None


def label_column(images: DatasetDict, features: dict) -> str | None:
    """The column of the classes: one called so, of numbers or of names that repeat, or else the only ClassLabel."""
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    for name in ("labels", "label"):
        kind = getattr(features.get(name), "dtype", "")
        if name in classes or "int" in kind:
            return name
        split = next(iter(images.values()))
        if "string" in kind and 2 * len(split.unique(name)) <= len(split):
            return name
    return classes[0] if len(classes) == 1 else None


def broken_rows(split: Dataset, name: str) -> dict[int, str]:
    """Decode every image once: the rows that are why_unreadable, and why. The answer is kept in the cache."""
    key = blake2b(f"{split._fingerprint} {PIL.__version__}".encode(), digest_size=16).hexdigest()
    file = cache_folder("checked") / f"{key}.json"
    try:
        return {int(row): why for row, why in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        broken = {}
    sources = split.cast_column("image", Image(decode=False))["image"]
    progress = {"total": len(split), "desc": f"checking {name}", "unit": "image", "delay": 2}
    with ThreadPoolExecutor() as pool, tqdm(**progress) as bar, warnings.catch_warnings(action="ignore"):
        for start in range(0, len(split), CHUNK):
            reasons = pool.map(why_unreadable, sources[start : start + CHUNK])
            broken |= {row: why for row, why in enumerate(reasons, start) if why}
            bar.update(min(CHUNK, len(split) - start))
    write_json(file, broken)
    return broken
