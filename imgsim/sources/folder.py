"""A folder of image files as a dataset: splits and labels are read from the names of its folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from imgsim.sources.decode import find_unreadable, starts_like_image

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif"}
SUFFIXES |= {".heic", ".heif"}  # nothing here reads them: they are listed as unreadable rather than passed over
SPLIT_NAMES = {"train": "train", "training": "train"} | dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLIT = re.compile(rf"(?:^|[-_. \d])({'|'.join(SPLIT_NAMES)})(?:[-_. \d]|$)", re.IGNORECASE)  # the rule of datasets
DATE = re.compile(r"(19|20)\d\d([-_. ]?[01]\d([-_. ]?[0-3]\d)?)?")  # 2024, 2024-05, 20240501


@dataclass
class ImageFile:
    """An image, and the folders above it that may still name a split or a class."""

    path: Path
    folders: tuple[str, ...]
    split: str | None = "train"
    label: str | None = None


def load_folder(folder: Path, beside: list[dict[str, str]]) -> tuple[DatasetDict, list[dict[str, str]]]:
    """Load [around/][split/][class/][deeper/]name; folders around everything have no meaning.

    Args:
        folder: of the images.
        beside: what else is left out, as [{"path", "reason"}].

    Returns:
        The splits, and what was left out as [{"path", "reason"}].

    Raises:
        ValueError: no image can be read.
    """
    from datasets import DatasetDict

    def left_out(path: Path, reason: str) -> dict[str, str]:
        return {"path": printable_path(path.relative_to(folder)), "reason": reason}

    paths = list(find_images(folder))
    unreadable = find_unreadable(paths, [file_signature(path, folder) for path in paths], str(folder))
    skipped = [left_out(paths[i], why) for i, why in unreadable.items()]
    readable = [path for i, path in enumerate(paths) if i not in unreadable]
    files = [ImageFile(path, path.relative_to(folder).parts[:-1]) for path in readable]
    if not files:
        first = f"; {skipped[0]['path']!r}: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(f"dataset {str(folder)!r}: the folder holds no readable image{first}.")
    read_splits(files)
    skipped += [left_out(file.path, "outside the folders of the splits") for file in files if not file.split]
    files = [file for file in files if file.split]
    drop_common_folders(files)
    read_labels(files, folder)
    labels = sorted({file.label for file in files if file.label is not None})
    skipped += beside
    splits = {split: [file for file in files if file.split == split] for split in ("train", "validation", "test")}
    return DatasetDict({split: as_dataset(chosen, labels) for split, chosen in splits.items() if chosen}), skipped


def find_images(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Find the files below a folder that are named like images, or start like one, in order of their names.

    Links are followed, though not in circles (above: the real paths that led here); hidden files are passed over. A
    folder that cannot be read, or is empty and named like an image, is itself in the list.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    if not entries and folder.suffix.lower() in SUFFIXES:
        yield folder
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if os.path.isdir(path):  # False, too, for a link to itself
            yield from find_images(path, (*above, real))
        elif path.suffix.lower() in SUFFIXES or starts_like_image(path):
            yield path


def file_signature(path: Path, folder: Path) -> str | None:
    """Return a text that changes when a file does, or None if there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {printable_path(path.relative_to(folder))}"


def printable_path(path: Path) -> str:
    """Return a path as text that can be stored and printed, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace")


def printable(text: str) -> str:
    """Return a text as it is, or with escapes if it could not be shown on one line."""
    return text if text.isprintable() else ascii(text)


def drop_common_folders(files: list[ImageFile]) -> None:
    """Drop the first folder as long as all files share it."""
    while (first := files[0].folders[:1]) and all(file.folders[:1] == first for file in files):
        for file in files:
            file.folders = file.folders[1:]


def split_named(name: str) -> str | None:
    """Return the split that a folder's name says, such as train for Train_Set and validation for val2017, or None."""
    found = SPLIT.search(name)
    return found and SPLIT_NAMES[found[1].lower()]


def read_splits(files: list[ImageFile]) -> None:
    """Read splits from the folders of the uppermost place with train and another, or in one of which every file is.

    Files outside them have none.
    """
    places: dict[tuple[str, ...], set[str]] = {}
    for file in files:
        for depth, name in enumerate(file.folders):
            if split := split_named(name):
                places.setdefault(file.folders[:depth], set()).add(split)
    divided = [place for place, splits in places.items() if "train" in splits and len(splits) > 1]
    # Without two splits, a folder called test is a split if nothing lies beside it.
    upper = min(divided or places, key=len, default=())
    depth, inside = len(upper), lambda file: file.folders[:depth] == upper and len(file.folders) > depth
    splits = [split_named(file.folders[depth]) if inside(file) else None for file in files]
    several = sum(len(place) == depth for place in divided) > 1  # classes first, then splits: these are not read
    if several or (None in splits and not divided):
        return
    for file, split in zip(files, splits, strict=True):
        file.split, file.folders = split, file.folders[depth + 1 :]


def read_labels(files: list[ImageFile], folder: Path) -> None:
    """Read labels from the first folders if there are at least two; prints why these are no classes."""
    # Unicode spells an accent in two ways, and a copy from one system to another may change which.
    names = {file.folders[0]: normalize("NFC", file.folders[0]) for file in files if file.folders}
    classes = set(names.values())
    outside = [printable_path(file.path.relative_to(folder)) for file in files if not file.folders]
    if len(classes) < 2:
        return
    if outside:
        more = f" and {len(outside) - 1:,} more lie" if len(outside) > 1 else " lies"
        print(f"{outside[0]!r}{more} beside the class folders: there are no labels.")
    elif all(map(DATE.fullmatch, classes)):
        print("The folders are named by date, which is no class: there are no labels.")
    else:
        for file in files:
            file.label = names[file.folders[0]]


def as_dataset(files: list[ImageFile], labels: list[str]) -> Dataset:
    """Make a split of the columns image_file_path, image and, if there are any, labels."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    paths = [printable_path(file.path) for file in files]
    images = [  # a path that is no valid text cannot be stored
        path if path == str(file.path) else {"path": None, "bytes": file.path.read_bytes()}
        for path, file in zip(paths, files, strict=True)
    ]
    columns, features = (
        {"image_file_path": paths, "image": images},
        {"image_file_path": Value("string"), "image": Image()},
    )
    if labels:
        columns["labels"] = [file.label for file in files]
        features["labels"] = ClassLabel(names=labels)
    return Dataset.from_dict(columns, Features(features))
