"""Where images come from: the built-in leaves, a folder of files, a data set on the Hub or its Parquet files."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import numpy as np
from datasets import Dataset, DatasetDict, Image

from imgsim.sources import builtin as leaves
from imgsim.sources.cache import cache_folder, locate
from imgsim.sources.decode import VERSION, reason
from imgsim.sources.folder import SPLIT_NAMES, load_folder
from imgsim.sources.parquet import as_numbers, load_parquet

OPTIONS = ("config", "split", "image", "label")


def split_source(source: str) -> tuple[str, dict[str, str]]:
    """A data set's name and its options: owner/name?split=train&label=species."""
    source = str(source)
    name, mark, query = source.partition("?")
    if not mark or Path(source).expanduser().is_dir():
        return source, {}
    try:
        pairs = parse_qsl(query, strict_parsing=True)
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    if not pairs or len(options) < len(pairs) or not set(options) <= set(OPTIONS):
        raise ValueError(
            f"dataset {source!r}: after the question mark stand {', '.join(f'{key}=...' for key in OPTIONS)}, "
            "each at most once, with & between them."
        )
    if name == "builtin":
        raise ValueError(f"dataset {source!r}: the built-in images take no options.")
    return name, options


def join_source(name: str, options: dict[str, str]) -> str:
    """The inverse of `split_source`."""
    return f"{name}?{urlencode(options)}" if options else name


def add_options(source: str, revision: str | None = None, **options: str | None) -> str:
    """A data set with a revision and further options, none of which it may have already."""
    name, present = split_source(source)
    added = {key: value for key, value in options.items() if value is not None}
    twice = sorted(set(present) & set(added))
    if name == "builtin" and (added or revision):
        raise ValueError("The built-in images take neither a revision nor a split nor columns.")
    if revision and Path(name).expanduser().is_dir():
        raise ValueError(f"dataset {source!r} is a folder: it has no revisions.")
    if twice or (revision and "@" in name):
        raise ValueError(f"dataset {source!r} says already which {twice[0] if twice else 'revision'} to take.")
    return join_source(f"{name}@{revision}" if revision else name, present | added)


def load_images(source: str | os.PathLike = "builtin") -> DatasetDict:
    """Load an image set with the columns `image` and, where there are classes, `labels`.

    source: "builtin" (drawn bean leaves, see leaves.py); a folder of image files, or of Parquet files as the Hub
    stores them; or a data set on the Hub such as "AI-Lab-Makerere/beans". A split and columns may be chosen:
    "owner/name@revision?split=train&image=photo&label=species". What cannot be read is left out, and listed in
    `.skipped`. Raises ValueError for a source that holds no images, ConnectionError where the Hub cannot be reached.
    """
    name, options = split_source(str(source))
    if name == "builtin":
        drawing = Path(leaves.__file__).read_bytes()  # another drawing is another data set
        folder = cache_folder() / f"leaves-{blake2b(drawing, digest_size=4).hexdigest()}"
        folder = folder if folder.exists() else leaves.draw_folder(folder)
    else:
        folder = locate(name, "dataset")
    parquet = any(not hidden(path.relative_to(folder)) for path in folder.rglob("*.parquet"))
    split = options.get("split")
    if parquet:
        images, skipped = load_parquet(folder, str(source), options)
    elif set(options) - {"split"}:
        raise ValueError(f"dataset {str(source)!r}: a folder of image files has no columns, only splits.")
    else:
        images, skipped = load_folder(folder)
        split = split and SPLIT_NAMES.get(split.lower(), split)
    if split and split not in images:
        raise ValueError(f"dataset {str(source)!r}: there is no split {split!r}, only {', '.join(images)}.")
    images = DatasetDict({split: images[split]} if split else images)
    images.skipped = skipped
    if skipped:
        shown = "; ".join(f"{entry['path']!r} ({entry['reason']})" for entry in skipped[:5])
        more = f"; and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        whole = len(skipped) + sum(map(len, images.values()))
        print(f"Left out {len(skipped):,} of {whole:,} images: {shown}{more}")
    return images


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def candidates_and_queries(images: DatasetDict, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The images to search in, and those to search with.

    Candidates are the train split; queries are the test split, else validation, else a seeded tenth that is
    held out of the only split.
    """
    candidates = images["train" if "train" in images else next(iter(images))]
    queries = next((images[split] for split in ("test", "validation") if split in images), candidates)
    if queries is not candidates:
        if any("labels" in part.column_names and labels_of(part) is None for part in (candidates, queries)):
            candidates, queries = candidates.remove_columns("labels"), queries.remove_columns("labels")
        return candidates, queries
    if len(candidates) < 2:
        raise ValueError(f"A search needs at least two images, and the data set holds {len(candidates)}.")
    parts = candidates.train_test_split(max(1, len(candidates) // 10), seed=seed)
    return parts["train"], parts["test"]


def labels_of(images: Dataset) -> np.ndarray | None:
    """The labels (n,) of a split, -1 where one is missing, or None where it has none; no image is decoded."""
    return as_numbers(images["labels"][:]) if "labels" in images.column_names else None


def fingerprint(images: Dataset) -> str:
    """A digest of the images' bytes, in their order."""
    digest = blake2b(bytes([VERSION]), digest_size=16)
    for source in images.cast_column("image", Image(decode=False))["image"]:
        try:
            content = Path(source["path"]).read_bytes() if source["bytes"] is None else source["bytes"]
        except OSError as error:
            raise ValueError(f"{source['path']} cannot be read as an image: {reason(error)}") from error
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
