"""Datasets in Parquet files, as the Hub stores them: which columns to take, what is in them and can be read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetDict, Features, Image, Value, load_dataset

from imgsim.sources.decode import find_unreadable
from imgsim.sources.folder import find_images, printable_path
from imgsim.sources.splits import stored_images


def is_parquet_folder(folder: Path) -> bool:
    """Tell whether the data of a folder are its Parquet files: they hold as many images as there are image files."""
    files = parquet_files(folder)
    return bool(files) and sum(map(count_images, files)) >= sum(1 for _ in find_images(folder))


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder, hidden ones apart."""
    return [path for path in folder.rglob("*.parquet") if "/." not in f"/{path.relative_to(folder).as_posix()}"]


def tables_beside(folder: Path) -> list[dict[str, str]]:
    """List the Parquet files of images in a folder of more image files, as [{"path", "reason"}]: they are not read."""
    tables = [printable_path(path.relative_to(folder)) for path in parquet_files(folder) if count_images(path)]
    return [{"path": table, "reason": "Parquet beside image files"} for table in tables]


def count_images(file: Path) -> int:
    """Return how many rows a Parquet file has, if a column of it holds images, else 0; 1 if it is damaged."""
    try:
        kept = pq.read_metadata(file)
        features = Features.from_arrow_schema(kept.schema.to_arrow_schema())
        return kept.num_rows if image_column(features) else 0
    except (OSError, ValueError, pa.ArrowException):
        return 1


def load_parquet(folder: Path, source: str, options: dict[str, str]) -> tuple[DatasetDict, list[dict[str, str]]]:
    """Load a folder's Parquet files; options: config, image and label; errors name the source.

    Returns:
        Splits with the columns image and, if there are classes, labels; and what was left out as [{"path", "reason"}].

    Raises:
        ValueError: a file is damaged, there is no such column, or no image can be read.
    """
    beside = [printable_path(path.relative_to(folder)) for path in find_images(folder)]
    try:
        if beside and "config" not in options:  # of files of several kinds, datasets would take the most numerous
            images = load_dataset("parquet", data_dir=str(folder))
        else:
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
        # A row may name any file of the reader's: none is opened.
        sources = [(image or {}).get("bytes") for image in stored_images(split)]
        rows = list(map(str, range(len(split))))
        unreadable = find_unreadable(sources, rows, split._fingerprint, f"checking {name}")
        skipped += [{"path": f"{name}, row {row}", "reason": why} for row, why in unreadable.items()]
        if unreadable:
            images[name] = split.select([row for row in range(len(split)) if row not in unreadable])
    if not any(map(len, images.values())):
        first = f": {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(f"dataset {source!r} holds no readable image{first}.")
    return images, skipped + [{"path": path, "reason": "beside Parquet files of images"} for path in beside]


def name_columns(images: DatasetDict, options: dict[str, str]) -> DatasetDict:
    """Rename the image column to `image` and the one of the classes, if any, to `labels`: a ClassLabel or int64."""
    features = next(iter(images.values())).features
    for key in ("image", "label"):
        if key in options and options[key] not in features:
            raise ValueError(f"there is no column {options[key]!r}, only {', '.join(features)}.")
    image = options.get("image") or image_column(features)
    label = options.get("label") or label_column(images, features)
    if image is None:
        raise ValueError(f"no column holds images, only {', '.join(features)}.")
    names = {image: "image"} | ({label: "labels"} if label else {})
    images = images.remove_columns([new for new in names.values() if new in features and new not in names])
    images = images.rename_columns({old: new for old, new in names.items() if old != new})
    try:
        images = images.cast_column("image", Image())
    except Exception as error:
        raise ValueError(f"the column {image!r} holds no images but {features[image]}.") from error
    kind = getattr(features.get(label), "dtype", "")
    if not label or isinstance(features[label], ClassLabel):
        return images
    if "string" in kind:
        classes = {name for split in images.values() for name in split.unique("labels")} - {None}
        return images.cast_column("labels", ClassLabel(names=sorted(classes)))
    if "int" in kind or kind == "bool":
        return images.cast_column("labels", Value("int64"))
    raise ValueError(f"the column {label!r} holds no labels (names or whole numbers) but {features[label]}.")


def image_column(features: Features) -> str | None:
    """Find the column that holds images, by its type; if there are several, the one called image."""
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not columns:  # as other libraries than datasets write images
        columns = [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
        columns = columns or [name for name in ("image",) if "binary" in getattr(features.get(name), "dtype", "")]
    return "image" if "image" in columns else next(iter(columns), None)


def label_column(images: DatasetDict, features: Features) -> str | None:
    """Find the column called labels or label, of classes, numbers or texts that repeat, or else the only ClassLabel."""
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    split = next(iter(images.values()))
    for name in ("labels", "label"):
        kind = getattr(features.get(name), "dtype", "")
        if name in classes or "int" in kind:
            return name
        if "string" in kind and 2 * len(split.unique(name)) <= len(split):
            return name
    return classes[0] if len(classes) == 1 else None
