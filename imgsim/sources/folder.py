"""A folder of image files as a data set: finding the files, checking each once, reading labels from the folders."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path

import PIL
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from tqdm import tqdm

from imgsim.sources.cache import cache_folder, write_json
from imgsim.sources.decode import EMPTY, NO_IMAGE, why_unreadable

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif"}
SUFFIXES |= {".heic", ".heif"}  # nothing here reads them: listed as such rather than passed over
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
DATE = re.compile(r"(19|20)\d\d([-_. ]?[01]\d([-_. ]?[0-3]\d)?)?")  # 2024, 2024-05, 20240501


def find_images(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are called as images are, or have no suffix, in the order of their names.

    Links are followed, but not round in circles; what is hidden is passed over. A folder that cannot be read, or
    is called as an image is and empty, stands in the list itself.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        entries = None
    if entries is None or (not entries and folder.suffix.lower() in SUFFIXES):
        yield folder
    for entry in entries or ():
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if os.path.isdir(path):  # False, too, for a link to itself
            yield from find_images(path, (*above, real))
        elif path.suffix.lower() in SUFFIXES | {""}:
            yield path


def file_signature(path: Path) -> list[int] | None:
    """What changes when a file does; None where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def printable_path(path: Path) -> str:
    """A path as text that can be stored and printed, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace")


def check_files(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """Decode every file once: those that are why_unreadable, and why. Which were found whole is kept in the cache."""
    key = blake2b(os.fsencode(folder) + PIL.__version__.encode(), digest_size=16).hexdigest()
    file = cache_folder("checked") / f"{key}.json"
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    stamps = {path: file_signature(path) for path in paths}
    names = {path: printable_path(path.relative_to(folder)) for path in paths}
    new = [path for path in paths if stamps[path] is None or known.get(names[path]) != stamps[path]]
    with ThreadPoolExecutor() as pool, warnings.catch_warnings(action="ignore"):  # pillow's, of odd metadata
        reasons = list(tqdm(pool.map(why_unreadable, new), "checking images", total=len(new), unit="image", delay=2))
    defects = {path: why for path, why in zip(new, reasons, strict=True) if why}
    if len(new) > len(defects):
        write_json(file, {names[path]: stamps[path] for path in paths if path not in defects})
    return defects


def splits_and_labels(folder: Path, paths: list[Path]) -> tuple[list[tuple[str, str | None, Path]], list[Path]]:
    """Read splits and labels from the folders: (split, label, path) for every image, and those that belong nowhere.

    [around/][split/][class/][deeper/]name: a folder around everything says nothing, and the label is the first
    folder below. It takes two class folders, and no image beside them, to make labels; folders named by date are none.
    """
    parts = strip_common_folders([path.relative_to(folder).parts for path in paths])
    places = [SPLIT_NAMES.get(part[0].lower()) if len(part) > 1 else None for part in parts]
    if {"train"} < set(places) - {None} or None not in places:
        outside = [path for path, place in zip(paths, places, strict=True) if not place]
        kept = [(*row, part[1:]) for *row, part in zip(places, paths, parts, strict=True) if row[0]]
    else:
        outside, kept = [], [("train", path, part) for path, part in zip(paths, parts, strict=True)]
    inner = strip_common_folders([part for _, _, part in kept])
    classes = {part[0] for part in inner if len(part) > 1}
    beside = [path for (_, path, _), part in zip(kept, inner, strict=True) if len(part) == 1]
    dates = bool(classes) and all(map(DATE.fullmatch, classes))
    if beside and len(classes) > 1:
        more = f" and {len(beside) - 1:,} more lie" if len(beside) > 1 else " lies"
        print(f"{printable_path(beside[0].relative_to(folder))!r}{more} beside the class folders: there are no labels.")
    elif dates and len(classes) > 1:
        print("The folders are named by date, which is no class: there are no labels.")
    labelled = len(classes) > 1 and not beside and not dates
    rows = [(split, part[0] if labelled else None, path) for (split, path, _), part in zip(kept, inner, strict=True)]
    return rows, outside


def strip_common_folders(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Paths' parts without the folders that all have in common, up to the first that names a split."""
    first, last = (choose((part[:-1] for part in parts), default=()) for choose in (min, max))
    shared = takewhile(
        lambda pair: pair[0] == pair[1] and pair[0].lower() not in SPLIT_NAMES, zip(first, last, strict=False)
    )
    depth = len(list(shared))
    return [part[depth:] for part in parts]


def load_folder(folder: Path) -> tuple[DatasetDict, list[dict]]:
    """Read an image folder: the splits, and what was left out as [{"path", "reason"}]."""
    paths = list(find_images(folder))
    defects = check_files(folder, paths)
    listed = {path: why for path, why in defects.items() if path.suffix or why not in (NO_IMAGE, EMPTY)}
    good = [path for path in paths if path not in defects]
    if not good:
        first = "".join(
            f"; {printable_path(path.relative_to(folder))!r}: {why}" for path, why in list(listed.items())[:1]
        )
        raise ValueError(f"dataset {str(folder)!r}: the folder holds no readable image{first}.")
    rows, outside = splits_and_labels(folder, good)
    listed |= dict.fromkeys(outside, "outside the folders of the splits")
    features = {"image_file_path": Value("string"), "image": Image()}
    labels = sorted({label for _, label, _ in rows if label is not None})
    if labels:
        features["labels"] = ClassLabel(names=labels)
    splits = {}
    for split in sorted({split for split, _, _ in rows}, key=("train", "validation", "test").index):
        chosen = [(label, path) for place, label, path in rows if place == split]
        columns = {
            "image_file_path": [printable_path(path) for _, path in chosen],
            "image": [image_reference(path) for _, path in chosen],
        }
        if labels:
            columns["labels"] = [label for label, _ in chosen]
        splits[split] = Dataset.from_dict(columns, Features(features))
    skipped = [{"path": printable_path(path.relative_to(folder)), "reason": why} for path, why in listed.items()]
    return DatasetDict(splits), skipped


def image_reference(path: Path) -> str | dict:
    """What a data set stores of a file: its path, or its bytes where the path is no valid text."""
    return str(path) if printable_path(path) == str(path) else {"path": None, "bytes": path.read_bytes()}
