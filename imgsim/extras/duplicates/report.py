"""A report of near-duplicates: which image of a group to keep, as a table and as a page; nothing is deleted."""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, concatenate_datasets

from imgsim.encoder import Encoder, load_encoder
from imgsim.extras.duplicates.pairs import calibrate, check_threshold, find_duplicates, index_for_duplicates
from imgsim.extras.runs.checkpoint import GENERAL
from imgsim.extras.runs.gallery import Picture, write_gallery
from imgsim.images import load_images
from imgsim.index import BuildLSHTable
from imgsim.sources.cache import BESIDE, atomic_write, write_json
from imgsim.sources.decode import FORMATS
from imgsim.sources.errors import require
from imgsim.sources.splits import stored_images

GOOD = 0.8  # with recall or precision below it, a checkpoint cannot tell copies from images that look alike
FILES = {"report.html", "duplicates.csv", "duplicates.json"}
SHOWN = 500  # groups on the page


@dataclass
class Member:
    """An image of a group.

    Attributes:
        row: in the index; source: the image as `open_image` takes it.
        path, width, height, file_size, digest: of its file.
        cosine: with the image to keep.
        identical: whether its file is the same, byte by byte, as that of the image to keep.
    """

    row: int
    source: dict
    path: str
    width: int
    height: int
    file_size: int
    digest: str
    cosine: float = 1.0
    identical: bool = False

    def facts(self, keep: bool) -> dict[str, Any]:
        """Return what duplicates.json tells of the image."""
        shown = ("path", "width", "height", "cosine", "identical")
        return {name: getattr(self, name) for name in shown} | {"bytes": self.file_size, "keep": keep}

    def picture(self, keep: bool, folder: str) -> Picture:
        """Return the image for the page."""
        alike = "identical" if self.identical else f"cosine {self.cosine:.3f}"
        size = f"{self.width} × {self.height}, {self.file_size / 1000:,.0f} KB"
        name = self.path.removeprefix(folder).lstrip("/")
        return Picture(self.source, name, ["keep" if keep else alike, size], self.path, marked=keep)


def report_duplicates(title: str, load: Callable, threshold: float | None = None, output=None) -> Path:
    """Find near-duplicates; returns a folder with report.html, duplicates.csv and duplicates.json.

    Args:
        title: the folder or dataset that the images are from.
        load: returns the images in a column `image`, their n paths or names, the encoder, and embeddings (n, d).
        threshold: the least cosine of a pair; by default calibrated on the images.
        output: the folder; by default outputs/duplicates-<name>.

    Raises:
        ValueError: an argument is wrong, or the built-in checkpoint turns out to be the wrong tool.
    """
    name = re.sub(r"[^\w.-]+", "-", Path(title).name)
    folder = Path(output or f"outputs/duplicates-{name}").expanduser()
    require(("jinja2", "networkx"), "duplicates")
    check_output(folder)
    if threshold is not None:
        check_threshold(threshold)
    images, paths, encoder, embeddings = load()
    if len(images) < 2:
        raise ValueError(f"There must be two images for one to be the other's duplicate; {title!r} holds one.")
    index = index_for_duplicates(encoder, embeddings)
    if threshold is None:
        threshold, lines = calibrate_threshold(index, images, encoder.name)
    else:
        lines = [f"Threshold: a cosine of {threshold:.3f}, as asked for."]
    start = time.perf_counter()
    found = find_duplicates(index, threshold)
    seconds, every_pair = time.perf_counter() - start, len(images) * (len(images) - 1) // 2
    groups = [rank_members(group, images, paths, index.vectors) for group in found.groups]
    groups.sort(key=lambda group: -min(member.cosine for member in group))  # the surest first
    spare = [member for group in groups for member in group[1:]]
    lines += [
        f"{len(images):,} images: {len(found.pairs):,} pairs in {len(groups):,} groups; {len(spare):,} images, "
        f"{sum(member.file_size for member in spare) / 1e6:,.1f} MB, are not the one to keep. "
        f"Identical to it, byte by byte: {sum(member.identical for member in spare):,}.",
        f"Compared: {found.compared:,} of {every_pair:,} pairs ({found.compared / every_pair:.1%}) in {seconds:.1f} s.",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_table(groups, folder / "duplicates.csv")
    facts = [[member.facts(member is group[0]) for member in group] for group in groups]
    write_json(folder / "duplicates.json", {"source": title, "threshold": round(threshold, 6), "groups": facts})
    more = [f"The first {SHOWN} groups are shown; duplicates.csv has all {len(groups):,}."] * (len(groups) > SHOWN)
    shown = [
        (f"Group {number}", [member.picture(member is group[0], title) for member in group])
        for number, group in enumerate(groups[:SHOWN], 1)
    ]
    write_gallery(folder / "report.html", f"Near-duplicates in {title}", lines + more, shown)
    print("\n".join(lines))
    return folder


def check_output(folder: Path) -> None:
    """Raise a ValueError if a folder holds anything but an earlier report, or cannot be written to."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{str(folder)!r} cannot be written to: {str(above)!r} is a file, or may not be changed.")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    there = {name for name in names if not BESIDE.fullmatch(name)}
    if there - FILES or (there and "duplicates.csv" not in there):
        raise ValueError(f"{str(folder)!r} holds other files: a report wants a folder of its own (--output).")


def embed_dataset(source: str, checkpoint: str) -> tuple[Dataset, list[str], Encoder, np.ndarray]:
    """Load and embed the images of all splits, for `report_duplicates`; without files they are called split and row."""
    splits, paths = [], []
    for name, split in load_images(source).items():
        rows = [f"{name} {row}" for row in range(len(split))]
        paths += split["image_file_path"][:] if "image_file_path" in split.column_names else rows
        splits.append(split.select_columns(["image"]))
    images, encoder = concatenate_datasets(splits), load_encoder(checkpoint)
    return images, paths, encoder, encoder.embed(images)


def calibrate_threshold(index: BuildLSHTable, images: Dataset, checkpoint: str) -> tuple[float, list[str]]:
    """Calibrate the threshold, and say in lines what to expect of it."""
    calibration = calibrate(index, images)
    threshold = calibration.threshold
    recall, precision = calibration.recall(threshold), calibration.precision(threshold)
    lines = [
        f"Threshold: a cosine of {threshold:.3f}, calibrated with altered copies of a sample of these images.",
        f"To be expected: {recall:.0%} of such copies are found, and {precision:.0%} of the pairs found are copies "
        "if one image in five has one.",
    ]
    if min(recall, precision) < GOOD and checkpoint == "builtin":
        raise ValueError(
            "The built-in checkpoint knows nothing but rendered leaves and is the wrong tool for these images: of "
            f"altered copies it would find {recall:.0%}, and {precision:.0%} of its pairs would be copies. "
            f"Take another, such as --checkpoint {GENERAL}."
        )
    if min(recall, precision) < GOOD:
        lines.append(f"That is poor: this checkpoint hardly tells copies from images that look alike; try {GENERAL}.")
    return threshold, lines


def rank_members(group: list[int], images: Dataset, paths: list[str], vectors: np.ndarray) -> list[Member]:
    """Rank the rows of a group: first the one to keep, then the others by their cosine with it.

    The one to keep has the most pixels or, of several, the largest file.
    """
    members = []
    for row, source in zip(group, stored_images(images.select(group)), strict=True):
        content = Path(source["path"]).read_bytes() if source["bytes"] is None else source["bytes"]
        size = PIL.Image.open(BytesIO(content), formats=FORMATS).size
        members.append(Member(row, source, paths[row], *size, len(content), blake2b(content).hexdigest()))
    keep = max(members, key=lambda member: (member.width * member.height, member.file_size))  # the first of equals
    for member in members:
        member.identical = member is not keep and member.digest == keep.digest
        if member is not keep:
            member.cosine = round(float(np.clip(vectors[member.row] @ vectors[keep.row], -1, 1)), 6)
    return sorted(members, key=lambda member: (member is not keep, not member.identical, -member.cosine))


def write_table(groups: list[list[Member]], target: Path) -> None:
    """Write the columns group, path, keep, cosine with the one to keep, and whether the files are identical, as CSV."""
    yes_or_no = {True: "yes", False: "no"}
    with (
        atomic_write(target) as beside,
        open(beside, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(("group", "path", "keep", "cosine", "identical"))
        for number, group in enumerate(groups, 1):
            for member in group:
                marks = yes_or_no[member is group[0]], f"{member.cosine:.4f}", yes_or_no[member.identical]
                table.writerow((number, member.path, *marks))
