"""What can be done with a finished run: repeat it and compare the numbers, and search its index."""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsim.extras.runs.environment import environ
from imgsim.extras.runs.inputs import all_images
from imgsim.hashing import check_integer
from imgsim.sources.cache import atomic_write
from imgsim.sources.decode import open_image
from imgsim.sources.folder import printable
from imgsim.sources.splits import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

TIMES = ("embed_images_per_second", "build_seconds", "query_ms")
INPUTS = ("checkpoint", "images of the candidates", "images of the queries")
RESULTS = ("projection", "index")  # arrays whose last bits depend on the processor
ROUNDED = 0.005  # metrics of the same inputs that differ by less, as a share of 1 or of themselves, were only rounded


def read_run(folder) -> dict:
    """Read a run's run.json.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        content = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        _ = content["settings"]["checkpoint"], content["digests"]["index"], content["environment"]["versions"]
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} is no folder that a run has left (there is no run.json to read).") from error


def pin_revisions(kept: dict) -> dict:
    """Return a run's settings, with Hub names at the commits that were used."""
    settings = dict(kept["settings"])
    for kind in ("dataset", "checkpoint"):
        if commit := kept["digests"].get(f"{kind}_commit"):
            settings[kind] = re.sub(r"^([^@?]+)(@[^?]*)?", rf"\1@{commit}", settings[kind])
    return settings


def provenance(kept: dict) -> dict:
    """Return all that decided a run, by name."""
    digests, made_by = kept["digests"], kept["environment"]
    projection = {name: digests["index"][name] for name in ("planes", "mean")}
    arrays = digests["index"].items() - projection.items()
    parts = {
        "checkpoint": digests["checkpoint"],
        "images of the candidates": digests["candidates"],
        "images of the queries": digests["queries"],
        "projection": projection,
        "index": {name: digest for name, digest in arrays if name != "keys"},  # these say where files lie
        "code": made_by["code"],
        "machine": made_by["machine"],
    }
    return parts | {f"version of {name}": number for name, number in made_by["versions"].items()}


def read_metrics(folder) -> dict:
    """Read a run's metrics, all but times and names."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    return {name: value for name, value in metrics.items() if name not in (*TIMES, "dataset", "checkpoint")}


def compare_metric(before, now, rounded: float = ROUNDED) -> str:
    """Say of two values of a metric whether they are identical, the same within rounding, or not the same."""
    if now == before:
        return "identical"
    numbers = isinstance(before, float) and isinstance(now, float)
    close = numbers and abs(now - before) <= rounded * max(1, abs(before))
    return f"now {now}: {'the same within rounding' if close else 'differs'}"


def repeat(folder) -> bool:
    """Run a kept run again, from an empty cache, and print metric by metric whether it came out the same.

    Returns:
        Whether all of them did, digit for digit or within rounding.

    Raises:
        ValueError: the folder holds no run, or its inputs are gone.
    """
    from imgsim.extras.runs.run import run

    kept, first = read_run(folder), read_metrics(folder)
    with TemporaryDirectory() as scratch, environ(IMGSIM_CACHE=f"{scratch}/cache"):
        again = run(pin_revisions(kept), f"{scratch}/run")
        now, second = read_run(again), read_metrics(again)
    changed = [name for name, value in provenance(kept).items() if provenance(now).get(name) != value]
    rounded = 0 if set(INPUTS) & set(changed) else ROUNDED  # what other inputs change is no rounding
    verdicts = {name: compare_metric(first.get(name), second.get(name), rounded) for name in first | second}
    for name, verdict in verdicts.items():
        print(f"{name:30}{first.get(name)!s:24}{verdict}")
    print(f"(not compared: {', '.join(TIMES)})")
    differs = [name for name, verdict in verdicts.items() if verdict.endswith("differs")]
    same = [name for name in provenance(kept) if name not in changed and not name.startswith("version")]
    same += [] if any(name.startswith("version") for name in changed) else ["all versions"]
    if rounded and not differs:
        changed = [name for name in changed if name not in RESULTS]
    print(f"Unchanged: {', '.join(same)}.\nChanged: {', '.join(changed) or 'nothing'}.")
    if differs:
        print(f"Differs in {', '.join(differs)}.")
    elif set(verdicts.values()) == {"identical"}:
        print("Identical: every metric came out the same.")
    else:
        print(f"The same within rounding: no metric differs by more than {ROUNDED:.1%}.")
    return not differs


class SavedRun:
    """A run's index, open to be searched, and what its images are called.

    Attributes:
        index: with its encoder; settings: of the run, with Hub names at the commits that were used.
        names: of the labels, or None.

    Raises:
        ValueError: there is no run or no index, or the checkpoint is not what it was.
    """

    def __init__(self, folder):
        folder, kept = Path(folder), read_run(folder)
        if not (folder / "index").exists():
            raise ValueError(f"{str(folder)!r} holds no index; a point of a sweep keeps none, a run does.")
        from imgsim.encoder import load_encoder  # torch, from here on
        from imgsim.index import BuildLSHTable

        images = json.loads((folder / "images.json").read_text(encoding="utf-8"))
        self.settings, self.names = pin_revisions(kept), images["labels"]
        self.digest = kept["digests"].get("images")
        encoder = load_encoder(self.settings["checkpoint"], dtype=self.settings["dtype"])
        self.index = BuildLSHTable.load(folder / "index", encoder)

    @property
    def encoder(self):
        """The checkpoint that embedded the images."""
        return self.index.encoder

    @property
    def title(self) -> str:
        """Dataset and checkpoint in a few words."""
        return " · ".join(Path(self.settings[name]).name for name in ("dataset", "checkpoint"))

    def picture(self, number: int) -> tuple[Any, str, str]:
        """Return the image with this id, as `open_image` takes it, a caption, and its key."""
        (row,) = np.flatnonzero(self.index.ids == number)
        label, key = self.label_name(self.index.labels[row]), self.index.keys[row]
        names = [printable(name) for name in (label, Path(key).name) if name]
        return self.images[number]["image"], " · ".join(names) or f"image {number}", key

    def label_name(self, label: int) -> str:
        """Return the name of a label, or "" if there is none."""
        return self.names[label] if self.names and label >= 0 else ""

    @cached_property
    def images(self) -> Dataset:
        """The run's images in the order of their ids.

        Raises:
            ValueError: they are not what they were.
        """
        from imgsim.images import load_images  # datasets

        images = all_images(load_images(self.settings["dataset"]), self.settings["seed"])
        if fingerprint(images) != self.digest:
            source = self.settings["dataset"]
            raise ValueError(f"The images of {source!r} are not those of the index any more: run it again.")
        return images


def query(folder, photo, top_k: int = 8, output=None) -> Path:
    """Search a run's index with one photo: print the ranked matches, and return the path of a picture of them.

    Args:
        folder: of the run.
        photo: an image file.
        top_k: matches to show.
        output: where the picture goes; by default among the run's figures.

    Raises:
        ValueError: there is no run or index, the photo cannot be read, or the checkpoint is not what it was.
    """
    image = open_image(photo)
    check_integer(top_k, "top_k", 1)
    saved = SavedRun(folder)
    matches = saved.index.query(image, top_k, verbose=False)
    names = [saved.label_name(label) for label in matches.labels]
    width = max(map(len, ["label", *names])) + 2
    print(f"rank  {'label':{width}}cosine  overlap  image")
    for rank, i in enumerate(matches.ids):
        numbers = f"{matches.cosine[rank]:6.3f}  {matches.overlap[rank]:7.2f}"
        print(f"{rank + 1:4}  {names[rank]:{width}}{numbers}  {printable(matches.key[rank]) or i}", flush=True)
    from imgsim.figures import plot_images  # matplotlib, once the answer is there

    files = all(map(os.path.isabs, matches.key))  # the names of images in Parquet files are not
    pictures = matches.key if files else saved.images.select(matches.ids)["image"]
    captions = [f"{name}\ncosine {cosine:.2f}" for name, cosine in zip(names, matches.cosine, strict=True)]
    target = Path(output or Path(folder) / "figures" / f"query-{Path(photo).stem[:50]}.png").expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure = plot_images([image, *pictures], ["query\n", *captions], columns=9)
    with atomic_write(target) as beside:
        figure.savefig(beside, format=target.suffix[1:] or "png")
    return target
