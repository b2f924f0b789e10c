"""From a sweep file to jobs: its points, and the embeddings that they need, made once."""

from __future__ import annotations

import errno
import re
from functools import cache
from itertools import product
from pathlib import Path

from imgsim.extras.runs.inputs import digests_of
from imgsim.extras.runs.settings import complete_settings, read_params, run_name, short_digest
from imgsim.images import candidates_and_queries, load_images

# All other settings decide the embeddings.
SEARCH_SETTINGS = ("hash_size", "num_tables", "planes", "probes", "seed", "top_k")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def read_points(path) -> list[dict]:
    """Read a sweep file: all settings of each point, and as "point" the name of its group under `points`, or "".

    Raises:
        ValueError: a name or a value is wrong.
    """
    content = read_params(path)
    if not content:
        raise ValueError(f"{str(path)!r} holds no settings: write lines such as hash_size: [6, 8].")
    named = content.pop("points", {"": {}})
    if not isinstance(named, dict) or not all(isinstance(own, dict) for own in named.values()) or not named:
        raise ValueError(f"points in {str(path)!r} must hold lines of the form name: {{setting: value}}.")
    points = []
    for name, own in named.items():
        lists = {key: value if isinstance(value, list) else [value] for key, value in (content | own).items()}
        if empty := [key for key, values in lists.items() if not values]:
            raise ValueError(f"{empty[0]} in {str(path)!r} is an empty list.")
        for values in product(*lists.values()):
            point = {"point": str(name)} | complete_settings(dict(zip(lists, values, strict=True)))
            if point not in points:
                points.append(point)
    return points


def record_failure(job: dict, error: Exception) -> None:
    """Write to a point's folder, in one line, why it is not finished; raise it if the disk is full."""
    if getattr(error, "errno", None) in DISK_FULL:
        raise error
    kind, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)  # of a notebook's cell
    job["folder"].mkdir(parents=True, exist_ok=True)
    (job["folder"] / "run.json").unlink(missing_ok=True)
    (job["folder"] / "error.txt").write_text(f"{kind}: {said}".strip().partition("\n")[0] + "\n", encoding="utf-8")


def prepare_jobs(points: list[dict], found: list[tuple[dict, dict]], folder: Path) -> list[dict]:
    """Make a job of each point, and embed each dataset by each checkpoint, unless the cache has the embeddings.

    Args:
        points: from `read_points`; found: what `find_inputs` returns for each of them.
        folder: of the sweep.

    Returns:
        Each point's name, settings, digests of all that goes in, and folders: of its inputs and its own. A checkpoint
        that cannot be loaded fails its points: their digests are None.
    """
    images = {name: load_images(name) for name in dict.fromkeys(settings["dataset"] for settings, _ in found)}
    from imgsim.encoder import load_encoder  # torch, from here on
    from imgsim.extras.sweeps.inputs import write_inputs

    @cache
    def split_digests(dataset: str, seed: int) -> dict:
        return digests_of(candidates_and_queries(images[dataset], seed))

    jobs, by_inputs = [], {}
    for point, (settings, commits) in zip(points, found, strict=True):
        embedding = {name: value for name, value in settings.items() if name not in SEARCH_SETTINGS}
        name = "-".join(filter(None, (re.sub(r"[^\w.-]+", "-", point["point"]), run_name(settings))))
        job = {
            "point": point["point"],
            "settings": settings,
            "digests": commits | split_digests(settings["dataset"], settings["seed"]),
            "inputs": folder / "inputs" / short_digest(embedding),
            "folder": folder / "points" / f"{name}-{short_digest(settings)}",
        }
        jobs.append(job)
        by_inputs.setdefault(job["inputs"], []).append(job)
    for inputs, sharing in by_inputs.items():
        settings = sharing[0]["settings"]
        try:
            encoder = load_encoder(settings["checkpoint"], dtype=settings["dtype"])
            digests = write_inputs(images[settings["dataset"]], encoder, settings, inputs)
        except Exception as error:
            for job in sharing:
                job["digests"] = None
                record_failure(job, error)
        else:
            for job in sharing:
                job["digests"] |= digests
    return jobs
