"""From a sweep file to jobs: its points, and the embeddings that they need, made once."""

from __future__ import annotations

import errno
import json
import re
from hashlib import blake2b
from itertools import product
from pathlib import Path

from imgsim.extras.runs.inputs import digests_of
from imgsim.extras.runs.settings import complete_settings, read_params, run_name
from imgsim.images import candidates_and_queries, load_images

OF_SEARCH = ("hash_size", "num_tables", "probes", "seed", "top_k")  # all other settings decide the embeddings
FULL = (errno.ENOSPC, errno.EDQUOT)


def read_points(path) -> list[dict]:
    """The points of a sweep file, each a whole set of settings, with its name in "point" where it has one.

    Each setting may have a list of values; the points are their product. `points` names some more settings, a group a
    name, which take the place of those outside. Raises ValueError where a name or a value is wrong.
    """
    content = read_params(path)
    named = content.pop("points", {"": {}})
    if not isinstance(named, dict) or not all(isinstance(own, dict) for own in named.values()) or not named:
        raise ValueError(f"points in {str(path)!r} must hold lines of the form name: {{setting: value}}.")
    points = []
    for name, own in named.items():
        lists = {key: value if isinstance(value, list) else [value] for key, value in (content | own).items()}
        for key, values in lists.items():
            if not values:
                raise ValueError(f"{key} in {str(path)!r} is an empty list.")
        for values in product(*lists.values()):
            point = {"point": str(name)} | complete_settings(dict(zip(lists, values, strict=True)))
            if point not in points:
                points.append(point)
    return points


def short_digest(content) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()


def sentence(error: BaseException) -> str:
    """An error in one line; a notebook's own where it comes from one."""
    text = f"{error.ename}: {error.evalue}" if hasattr(error, "evalue") else f"{type(error).__name__}: {error}"
    return text.strip().partition("\n")[0]


def fail(job: dict, error: Exception) -> None:
    """Record why a point is not finished."""
    job["to"].mkdir(parents=True, exist_ok=True)
    (job["to"] / "run.json").unlink(missing_ok=True)
    (job["to"] / "error.txt").write_text(f"{sentence(error)}\n", encoding="utf-8")


def embed_all(points: list[dict], found: list[tuple[dict, dict]], folder: Path) -> list[dict]:
    """Embed each data set by each checkpoint, where the cache does not have it. found: what `find_inputs` says of each
    point.

    Returns a job a point: its settings, the digests of what goes in, and the folders it reads from and writes to. A
    checkpoint that cannot be loaded fails its own points: they have no digests.
    """
    images = {name: load_images(name) for name in dict.fromkeys(settings["dataset"] for settings, _ in found)}
    from imgsim.encoder import load_encoder  # torch, from here on
    from imgsim.extras.sweeps.inputs import write_inputs

    jobs, embedded, parts = [], {}, {}
    for point, (settings, commits) in zip(points, found, strict=True):
        dataset, seed = settings["dataset"], settings["seed"]
        shared = {name: value for name, value in settings.items() if name not in OF_SEARCH}
        inputs = folder / "inputs" / short_digest(shared)
        if inputs not in embedded:
            try:
                encoder = load_encoder(settings["checkpoint"], dtype=settings["dtype"])
                write_inputs(images[dataset], encoder, settings, inputs)
                embedded[inputs] = json.loads((inputs / "manifest.json").read_text(encoding="utf-8"))
            except Exception as error:
                if getattr(error, "errno", None) in FULL:
                    raise
                embedded[inputs] = error
        if (dataset, seed) not in parts:
            parts[dataset, seed] = digests_of(candidates_and_queries(images[dataset], seed))
        made, digests = embedded[inputs], commits | parts[dataset, seed]
        if isinstance(made, dict):
            digests |= {"checkpoint": made["checkpoint_digest"], "embeddings": made["arrays"]["embeddings"]}
        name = "-".join(filter(None, (re.sub(r"[^\w.-]+", "-", point["point"]), run_name(settings))))
        place = folder / "points" / f"{name}-{short_digest(settings)}"
        job = {"point": point["point"], "settings": settings, "digests": digests, "inputs": inputs, "to": place}
        jobs.append(job)
        if isinstance(made, Exception):
            job["digests"] = None
            fail(job, made)
    return jobs
