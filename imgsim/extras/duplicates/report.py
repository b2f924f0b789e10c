"""A report of near-duplicates: which image of a group to keep, as a table and as a page; nothing is deleted."""

from __future__ import annotations

import csv
import os
import re
import time
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Image, concatenate_datasets

from imgsim.encoder import load_encoder
from imgsim.extras.duplicates.pairs import calibrate, check_threshold, find_duplicates, index_for_duplicates
from imgsim.images import load_images
from imgsim.index import BuildLSHTable
from imgsim.sources.cache import atomic_write
from imgsim.sources.decode import FORMATS, open_image
from imgsim.sources.errors import require

TEMPLATE = Path(__file__).parents[2] / "assets" / "duplicates.html"
GENERAL = "facebook/dinov2-small"  # for photographs of anything
GOOD = 0.8  # with recall or precision below it, a checkpoint cannot tell copies from images that look alike


@dataclass
class Member:
    """An image of a group: its size in pixels and bytes, and its cosine with the one to keep."""

    row: int
    path: str
    size: tuple[int, int]
    file_size: int
    source: dict
    cosine: float = 1.0

    def thumbnail(self) -> str:
        """Return a small JPEG in base64."""
        content, image = BytesIO(), open_image(self.source)
        image.thumbnail((240, 240))
        image.save(content, "JPEG", quality=80)
        return b64encode(content.getvalue()).decode()


def report_duplicates(
    source: str, checkpoint: str = "builtin", threshold: float | None = None, output: str | os.PathLike | None = None
) -> Path:
    """Find near-duplicates among all images of a dataset; returns a folder with report.html and duplicates.csv.

    Args:
        source, checkpoint: as for `load_images` and `load_encoder`.
        threshold: the least cosine of a pair; by default calibrated on the images.
        output: the folder; by default outputs/duplicates-<name>.

    Raises:
        ValueError: an argument is wrong, or the built-in checkpoint turns out to be the wrong tool.
    """
    require(("jinja2", "networkx"), "duplicates")
    if threshold is not None:
        check_threshold(threshold)
    images, encoder = load_all_images(source), load_encoder(checkpoint)
    index = index_for_duplicates(encoder, encoder.embed(images))
    if threshold is None:
        threshold, lines = calibrate_threshold(index, images, checkpoint)
    else:
        lines = [f"Threshold: a cosine of {threshold:.3f}, as asked for."]
    start = time.perf_counter()
    found = find_duplicates(index, threshold)
    seconds, every_pair = time.perf_counter() - start, len(images) * (len(images) - 1) // 2
    groups = [rank_members(group, images, index.vectors) for group in found.groups]
    groups.sort(key=lambda group: -min(member.cosine for member in group))  # the surest first
    spare = [member.file_size for group in groups for member in group[1:]]
    lines += [
        f"{len(images):,} images: {len(found.pairs):,} pairs in {len(groups):,} groups; {len(spare):,} images, "
        f"{sum(spare) / 1e6:,.1f} MB, are not the one to keep.",
        f"Compared: {found.compared:,} of {every_pair:,} pairs ({found.compared / every_pair:.1%}) in {seconds:.1f} s.",
    ]
    path = Path(source).expanduser()
    title = str(path.resolve()) if path.is_dir() else source
    name = re.sub(r"[^\w.-]+", "-", Path(title).name)
    folder = Path(output or f"outputs/duplicates-{name}").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_table(groups, folder / "duplicates.csv")
    write_page(groups, lines, title, folder / "report.html")
    print("\n".join(lines))
    return folder


def load_all_images(source: str) -> Dataset:
    """Load the images of all splits, with the columns image and path: split and row if there is no file."""
    splits = []
    for name, split in load_images(source).items():
        rows = [f"{name} {row}" for row in range(len(split))]
        paths = split["image_file_path"][:] if "image_file_path" in split.column_names else rows
        splits.append(split.select_columns(["image"]).add_column("path", paths))
    images = concatenate_datasets(splits)
    if len(images) < 2:
        raise ValueError(f"There must be two images for one to be the other's duplicate; {source!r} holds one.")
    return images


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


def rank_members(group: list[int], images: Dataset, vectors: np.ndarray) -> list[Member]:
    """Rank the rows of a group: first the one to keep, then the others by their cosine with it.

    The one to keep has the most pixels or, of several, the largest file.
    """
    members = []
    for row, image in zip(group, images.select(group).cast_column("image", Image(decode=False)), strict=True):
        content = image["image"]["bytes"] or Path(image["image"]["path"]).read_bytes()
        size = PIL.Image.open(BytesIO(content), formats=FORMATS).size
        members.append(Member(row, image["path"], size, len(content), image["image"]))
    keep = max(members, key=lambda member: (member.size[0] * member.size[1], member.file_size))  # the first of equals
    for member in members:
        member.cosine = 1.0 if member is keep else float(np.clip(vectors[member.row] @ vectors[keep.row], -1, 1))
    return sorted(members, key=lambda member: (member is not keep, -member.cosine))


def write_table(groups: list[list[Member]], target: Path) -> None:
    """Write the columns group, path, keep (yes or no) and cosine, with the one to keep, as CSV."""
    with atomic_write(target) as beside, open(beside, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("group", "path", "keep", "cosine"))
        for number, group in enumerate(groups, 1):
            for member in group:
                keep = "yes" if member is group[0] else "no"
                table.writerow((number, member.path, keep, f"{member.cosine:.4f}"))


def write_page(groups: list[list[Member]], lines: list[str], folder: str, target: Path) -> None:
    """Write the groups side by side as one page that needs no other file."""
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text("utf-8"))
    with atomic_write(target) as beside:
        page.stream(groups=groups, lines=lines, folder=folder).dump(str(beside), "utf-8")
