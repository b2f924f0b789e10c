"""What becomes of near-duplicates: which of a group to keep, a table, a page to look through; nothing is deleted."""

from __future__ import annotations

import csv
import re
import time
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Image, concatenate_datasets

from imgsim.extras.duplicates.pairs import calibrate, find_duplicates, index_for_duplicates
from imgsim.hashing import normalise
from imgsim.images import load_images
from imgsim.sources.cache import atomic_write
from imgsim.sources.decode import FORMATS, open_image
from imgsim.sources.errors import require

GENERAL = "facebook/dinov2-small"  # for photographs of anything
POOR = 0.8  # recall or precision below this, and a checkpoint cannot tell copies from images that look alike
SHOWN, MEMBERS = 500, 12  # groups on the page, images of a group; the table has them all
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
section { display: inline-block; vertical-align: top; border-top: 1px solid #d5dae0; padding: 1rem 3rem 1rem 0 }
h2 { font-size: 1rem; margin: 0 0 .5rem }
div { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: 11rem; font-size: .8rem; overflow-wrap: anywhere }
img { width: 100%; height: 11rem; object-fit: contain; background: #f1f3f5 }
.keep img { outline: 3px solid #2a7d4f }
.keep b { color: #2a7d4f }
"""


@dataclass(frozen=True)
class Member:
    """An image of a group: where it lies, its size in pixels and bytes, and its cosine with the one to keep."""

    path: str
    size: tuple[int, int]
    bytes: int
    cosine: float
    picture: dict


def arrange(group: list[int], images: Dataset, points: np.ndarray) -> list[Member]:
    """A group of rows as members, the one to keep first: most pixels, then the largest file; then the closest to it."""
    sources, files = images.select(group), []
    for source in sources.cast_column("image", Image(decode=False))["image"]:
        content = Path(source["path"]).read_bytes() if source["bytes"] is None else source["bytes"]
        files.append((PIL.Image.open(BytesIO(content), formats=FORMATS).size, len(content), source))
    keep = max(range(len(group)), key=lambda i: (np.prod(files[i][0]), files[i][1]))  # the first of equals
    cosines = np.clip(points[group] @ points[group[keep]], -1, 1)
    cosines[keep] = 1
    order = sorted(range(len(group)), key=lambda i: (i != keep, -cosines[i]))
    paths = sources["path"]
    return [Member(paths[i], files[i][0], files[i][1], float(cosines[i]), files[i][2]) for i in order]


def write_table(groups: list[list[Member]], target: Path) -> None:
    """Write the columns group, path, keep (yes or no) and cosine, with the one to keep, as CSV."""
    with atomic_write(target) as beside, open(beside, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("group", "path", "keep", "cosine"))
        for number, group in enumerate(groups, 1):
            for place, member in enumerate(group):
                rows.writerow((number, member.path, "no" if place else "yes", f"{member.cosine:.4f}"))


def figure_of(member: Member, keep: bool, folder: str) -> str:
    """One image of a group as HTML, its thumbnail inside."""
    content, image = BytesIO(), open_image(member.picture)
    image.thumbnail((240, 240))
    image.save(content, "JPEG", quality=80)
    name = escape(member.path.removeprefix(folder).lstrip("/"))
    said = "<b>keep</b>" if keep else f"cosine {member.cosine:.3f}"
    size = f"{member.size[0]} × {member.size[1]}, {member.bytes / 1000:,.0f} KB"
    picture = f'<img src="data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}" alt="{name}">'
    return f"<figure{' class=keep' * keep}>{picture}<figcaption>{said}<br>{name}<br>{size}</figcaption></figure>"


def write_page(groups: list[list[Member]], lines: list[str], folder: str, target: Path) -> None:
    """Write the groups side by side as one page that needs nothing beside it."""
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if len(groups) > SHOWN:
        told += f"<p>The first {SHOWN} groups are shown here; duplicates.csv has all {len(groups):,}.</p>"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Near-duplicates</title>\
<style>{STYLE}</style>"
    with atomic_write(target) as beside, open(beside, "w", encoding="utf-8") as page:
        page.write(f"<!doctype html><html lang=en>{head}<h1>Near-duplicates in {escape(folder)}</h1>{told}")
        for number, group in enumerate(groups[:SHOWN], 1):
            figures = "".join(figure_of(member, not place, folder) for place, member in enumerate(group[:MEMBERS]))
            more = f"<p>and {len(group) - MEMBERS:,} more</p>" if len(group) > MEMBERS else ""
            page.write(f"<section><h2>Group {number}</h2><div>{figures}</div>{more}</section>")


def all_images(source: str) -> Dataset:
    """The images of all splits, with the columns image and path: a name where there is no file."""
    parts = []
    for split, part in load_images(source).items():
        names = part["image_file_path"][:] if "image_file_path" in part.column_names else None
        part = part.select_columns(["image"])
        parts.append(part.add_column("path", names or [f"{split} {row}" for row in range(len(part))]))
    images = concatenate_datasets(parts)
    if len(images) < 2:
        raise ValueError(f"There must be two images for one to be the other's duplicate; {source!r} holds one.")
    return images


def report_duplicates(source: str, checkpoint: str = "builtin", threshold: float | None = None, output=None) -> Path:
    """Find near-duplicates among all images of a data set; leaves report.html and duplicates.csv in a folder.

    threshold: the least cosine of a pair; calibrated on the images where it is left out. Raises ValueError where the
    built-in checkpoint turns out to be the wrong tool.
    """
    require(("networkx",), "duplicates")
    from imgsim.encoder import load_encoder  # loads torch

    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but a cosine lies between -1 and 1.")
    images, encoder = all_images(source), load_encoder(checkpoint)
    points = normalise(encoder.embed(images))
    index, lines = index_for_duplicates(encoder, points), []
    if threshold is None:
        calibration = calibrate(index, images)
        threshold = calibration.threshold
        recall, precision = calibration.recall(threshold), calibration.precision(threshold)
        if min(recall, precision) < POOR and checkpoint == "builtin":
            raise ValueError(
                "The built-in checkpoint knows nothing but drawn leaves and is the wrong tool for these images: of "
                f"altered copies it would find {recall:.0%}, and {precision:.0%} of its pairs would be copies. "
                f"Take another, such as --checkpoint {GENERAL}."
            )
        lines += [
            f"Threshold: a cosine of {threshold:.3f}, calibrated with altered copies of a sample of these images.",
            f"To be expected: {recall:.0%} of such copies are found, and {precision:.0%} of the pairs found are copies "
            "where one image in five has one.",
        ]
        if min(recall, precision) < POOR:
            lines.append(
                f"That is poor: this checkpoint hardly tells copies from images that look alike; try {GENERAL}."
            )
    else:
        lines.append(f"Threshold: a cosine of {threshold:.3f}, as asked for.")
    start = time.perf_counter()
    found = find_duplicates(index, threshold)
    seconds, everyone = time.perf_counter() - start, len(images) * (len(images) - 1) // 2
    groups = [arrange(group, images, index.vectors) for group in found.groups]
    groups.sort(key=lambda group: -min(member.cosine for member in group))  # the surest first
    spare = list(chain.from_iterable(group[1:] for group in groups))
    lines += [
        f"{len(images):,} images: {len(found.pairs):,} pairs in {len(groups):,} groups; {len(spare):,} images, "
        f"{sum(member.bytes for member in spare) / 1e6:,.1f} MB, are not the one to keep.",
        f"Compared: {found.compared:,} of {everyone:,} pairs ({found.compared / everyone:.1%}) in {seconds:.1f} s.",
    ]
    place = Path(source).expanduser()
    place = place.resolve() if place.is_dir() else Path(source)
    name = re.sub(r"[^\w.-]+", "-", place.name)
    folder = Path(output or f"outputs/duplicates-{name}").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_table(groups, folder / "duplicates.csv")
    write_page(groups, lines, str(place), folder / "report.html")
    print("\n".join(lines))
    return folder
