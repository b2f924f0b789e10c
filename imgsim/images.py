"""Images in, candidates and queries out: the built-in leaves, a folder, or a dataset on the Hub."""

from __future__ import annotations

import os

from datasets import Dataset, DatasetDict

from imgsim.sources.builtin import builtin_folder
from imgsim.sources.errors import print_skipped
from imgsim.sources.folder import load_folder, split_named
from imgsim.sources.hub import locate
from imgsim.sources.names import split_source
from imgsim.sources.parquet import is_parquet_folder, load_parquet, tables_beside
from imgsim.sources.splits import labels_of


def load_images(source: str | os.PathLike = "builtin") -> DatasetDict:
    """Load an image set with the columns `image` and, if there are classes, `labels`.

    Args:
        source: "builtin" (bean leaves rendered by sources/leaves.py); a folder of image files, or of Parquet files
            as the Hub stores them; or a dataset on the Hub such as "AI-Lab-Makerere/beans". Options choose a split
            and columns: "owner/name@revision?split=train&image=photo&label=species".

    Returns:
        The splits. Images that cannot be read are left out and listed in `.skipped` as [{"path", "reason"}].

    Raises:
        ValueError: the source holds no images, or has no such split or column.
        ConnectionError: the Hub cannot be reached.
    """
    name, options = split_source(str(source))
    folder = builtin_folder() if name == "builtin" else locate(name, "dataset")
    split = options.get("split")
    if is_parquet_folder(folder):
        images, skipped = load_parquet(folder, str(source), options)
    elif set(options) - {"split"}:
        raise ValueError(f"dataset {str(source)!r}: a folder of image files has no columns, only splits.")
    else:
        images, skipped = load_folder(folder, tables_beside(folder))
        split = split and (split_named(split) or split)
    if split and split not in images:
        raise ValueError(f"dataset {str(source)!r}: there is no split {split!r}, only {', '.join(images)}.")
    images = DatasetDict({split: images[split]} if split else images)
    images.skipped = skipped
    print_skipped(skipped, len(skipped) + sum(map(len, images.values())))
    return images


def candidates_and_queries(images: DatasetDict, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Choose the images to search in and the images to search with.

    Candidates are the train split; queries are the test split, else validation, else a seeded tenth held out of the
    only split.

    Raises:
        ValueError: there are fewer than two images.
    """
    candidates = images["train" if "train" in images else next(iter(images))]
    queries = next((images[split] for split in ("test", "validation") if split in images), candidates)
    if queries is not candidates:
        if any("labels" in part.column_names and labels_of(part) is None for part in (candidates, queries)):
            candidates, queries = candidates.remove_columns("labels"), queries.remove_columns("labels")
        return candidates, queries
    if len(candidates) < 2:
        raise ValueError(f"A search needs at least two images, and the dataset holds {len(candidates)}.")
    parts = candidates.train_test_split(max(1, len(candidates) // 10), seed=seed)
    return parts["train"], parts["test"]
