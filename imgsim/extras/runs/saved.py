"""What a kept run is good for: running it again to see whether it repeats, and asking its index."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from imgsim.extras.runs.environment import environ
from imgsim.extras.runs.run import run
from imgsim.images import candidates_and_queries, load_images
from imgsim.sources.cache import atomic_write
from imgsim.sources.decode import open_image

TIMES = ("embed_images_per_second", "build_seconds", "query_ms")


def read_run(folder) -> dict:
    """A run's run.json; a ValueError where the folder holds none."""
    try:
        content = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        _ = content["settings"]["checkpoint"], content["digests"]["index"], content["environment"]["versions"]
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} is no folder that a run has left (there is no run.json to read).") from error


def pinned(kept: dict) -> dict:
    """A run's settings, with Hub names at the commits that were used."""
    settings = dict(kept["settings"])
    for kind in ("dataset", "checkpoint"):
        if commit := kept["digests"].get(f"{kind}_commit"):
            settings[kind] = re.sub(r"^([^@?]+)(@[^?]*)?", rf"\1@{commit}", settings[kind])
    return settings


def decisive(kept: dict) -> dict:
    """All that decided a run, by name."""
    digests, made_by = kept["digests"], kept["environment"]
    projection = {name: digests["index"][name] for name in ("planes", "mean")}
    parts = {
        "checkpoint": digests["checkpoint"],
        "images of the candidates": digests["candidates"],
        "images of the queries": digests["queries"],
        "projection": projection,
        "index": {name: digest for name, digest in digests["index"].items() if name not in projection},
        "code": made_by["code"],
        "machine": made_by["machine"],
    }
    return parts | {f"version of {name}": number for name, number in made_by["versions"].items()}


def metrics_of(folder) -> dict:
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    return {name: value for name, value in metrics.items() if name not in (*TIMES, "dataset", "checkpoint")}


def repeat(folder) -> bool:
    """Run a kept run again, from an empty cache, and tell metric by metric whether it came out the same.

    Returns whether all of them did. Raises ValueError where the folder holds no run or its inputs are gone.
    """
    kept, first = read_run(folder), metrics_of(folder)
    with TemporaryDirectory() as scratch, environ(IMGSIM_CACHE=f"{scratch}/cache"):
        again = run(pinned(kept), f"{scratch}/run")
        now, second = read_run(again), metrics_of(again)
    changed = [name for name, value in decisive(kept).items() if decisive(now).get(name) != value]
    differs = [name for name in first | second if first.get(name) != second.get(name)]
    for name, value in first.items():
        print(f"{name:30}{value!s:24}{f'now {second.get(name)}: differs' if name in differs else 'identical'}")
    print(f"(not compared: {', '.join(TIMES)})")
    same = [name for name in decisive(kept) if name not in changed and not name.startswith("version")]
    same += [] if any(name.startswith("version") for name in changed) else ["all versions"]
    print(f"Unchanged: {', '.join(same)}.\nChanged: {', '.join(changed) or 'nothing'}.")
    print(f"Differs in {', '.join(differs)}." if differs else "Identical: every metric came out the same.")
    return not differs


def query(folder, photo, top_k: int = 8, output=None) -> Path:
    """Ask a kept run's index with one photo: prints the ranked matches, returns the picture of them.

    output: where the picture goes; by default among the run's figures. Raises ValueError where there is no run, no
    index or no photo that can be read, and where the checkpoint is not what it was.
    """
    folder, kept, image = Path(folder), read_run(folder), open_image(photo)
    if not (folder / "index").exists():
        raise ValueError(f"{str(folder)!r} holds no index; a point of a sweep keeps none, a run does.")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be 1 or more.")
    from imgsim.encoder import load_encoder  # torch, from here on
    from imgsim.figures import plot_images
    from imgsim.index import BuildLSHTable

    images = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    settings = pinned(kept)
    index = BuildLSHTable.load(folder / "index", load_encoder(settings["checkpoint"], dtype=settings["dtype"]))
    matches = index.query(image, top_k, verbose=False)
    names = [images["labels"][label] if images["labels"] and label >= 0 else "" for label in matches.labels]
    width = max(map(len, ["label", *names])) + 2
    print(f"rank  {'label':{width}}cosine  overlap  image")
    files = images["files"] and [images["files"][i] for i in matches.ids]
    for rank, i in enumerate(matches.ids):
        numbers = f"{matches.cosine[rank]:6.3f}  {matches.overlap[rank]:7.2f}"
        print(f"{rank + 1:4}  {names[rank]:{width}}{numbers}  {files[rank] if files else i}")
    if not files:
        candidates, _ = candidates_and_queries(load_images(pinned(kept)["dataset"]), kept["settings"]["seed"])
        files = candidates.select(matches.ids)["image"]
    captions = [f"{name}\ncosine {cosine:.2f}" for name, cosine in zip(names, matches.cosine, strict=True)]
    target = Path(output or folder / "figures" / f"query-{Path(photo).stem}.png").expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure = plot_images([image, *files], ["query\n", *captions], columns=9)
    with atomic_write(target) as beside:
        figure.savefig(beside)
    return target
