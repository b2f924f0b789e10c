"""Sweeps: many settings, one papermill execution each on embeddings made once, and the answer on one page."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from imgsim.extras.runs.environment import POINT, environ, environment
from imgsim.extras.runs.inputs import find_inputs
from imgsim.extras.runs.report import write_report
from imgsim.extras.runs.run import NOTEBOOK_TOOLS, execute
from imgsim.extras.runs.settings import DEFAULTS
from imgsim.extras.sweeps.points import FULL, embed_all, fail, read_points, sentence
from imgsim.sources.cache import atomic_write, write_json
from imgsim.sources.errors import require

REPORT = "06_sweep_report"
PLACE_FOR_A_POINT = 500e6  # bytes: a kernel with its libraries
# For a point's kernel: there are as many of them as cores.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, for this process only."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "sweep.json").exists():
        raise ValueError(f"{str(folder)!r} holds other files: a sweep wants a folder of its own (--output).")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "sweep.json", {"schema": 1})
        with FileLock(folder / ".lock", timeout=0):  # let go of by the system, however the process ends
            yield
    except Timeout as error:
        raise ValueError(f"Another sweep is at work in {str(folder)!r}.") from error


def finished(job: dict, made_by: dict) -> bool:
    """Whether a point lies there, made whole from the same settings, inputs, code and versions."""
    try:
        kept = json.loads((job["to"] / "run.json").read_text(encoding="utf-8"))
        same = [kept["environment"][name] == made_by[name] for name in ("code", "versions")]
        return all(same) and kept["settings"] == job["settings"] and job["digests"].items() <= kept["digests"].items()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def execute_point(job: dict, made_by: dict) -> None:
    """One point: its notebook, its report, and last, by a rename, the run.json that says it is finished."""

    folder, start = job["to"], time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        executed = execute(
            POINT, job["settings"] | {"inputs": str(job["inputs"]), "output": str(folder)}, folder, progress=False
        )
        write_report([executed], folder / "report.html")
        index = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except Exception as error:
        if getattr(error, "errno", None) not in FULL:
            fail(job, error)
        raise
    seconds = round(time.perf_counter() - start, 2)
    content = {"settings": job["settings"], "digests": job["digests"] | {"index": index}, "environment": made_by}
    write_json(folder / "run.json", content | {"seconds": seconds})


def row_of(job: dict) -> dict:
    """A point as a row: settings, metrics, seconds, versions, or the error that ended it."""
    row = {"point": job["point"], "folder": f"points/{job['to'].name}", "error": None} | job["settings"]
    try:
        kept = json.loads((job["to"] / "run.json").read_text(encoding="utf-8"))
    except OSError:
        return row | {"error": (job["to"] / "error.txt").read_text(encoding="utf-8").strip()}
    metrics = json.loads((job["to"] / "metrics.json").read_text(encoding="utf-8"))
    row |= {name: value for name, value in metrics.items() if name not in DEFAULTS}
    versions = kept["environment"]["versions"] | {name: kept["environment"][name] for name in ("code", "commit")}
    return row | {"seconds": kept["seconds"]} | {f"version_{name}": value for name, value in versions.items()}


def how_many_at_once(inputs: set[Path]) -> int:
    """As many points as there are cores, and as memory has room for."""
    import psutil

    largest = max((sum(file.stat().st_size for file in folder.iterdir()) for folder in inputs), default=0)
    room = psutil.virtual_memory().available // (PLACE_FOR_A_POINT + 4 * largest)
    return int(max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), room)))


def execute_all(todo: list[dict], jobs: int, made_by: dict, bar: tqdm) -> None:
    """Execute points side by side. One that fails is told and does not stop the others; a full disk does."""
    with environ(**ONE_THREAD), ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(execute_point, job, made_by): job for job in todo}
        try:
            for done in as_completed(waiting):
                bar.update()
                job, error = waiting[done], done.exception()
                if getattr(error, "errno", None) in FULL:
                    raise error
                bar.write(f"{job['to'].name}: {f'FAILED, {sentence(error)}' if error else told(row_of(job))}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            bar.write("Stopping: the points at work are brought to an end first.")
            raise


def told(row: dict) -> str:
    return f"recall {row['recall_at_10']:.2f}, seeing {row['candidate_fraction']:.0%}, {row['seconds']:.1f} s"


def sweep(path, output=None, jobs: int | None = None) -> tuple[Path, pd.DataFrame]:
    """Run what is missing of a sweep file's points; returns the folder and the table, a row a point.

    Raises ValueError or ConnectionError, before any image is embedded, where something is wrong with a point.
    """
    require((*NOTEBOOK_TOOLS, "psutil"), "notebooks")

    points = read_points(path)
    found = [find_inputs({name: point[name] for name in DEFAULTS}) for point in points]
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}, but at least one point at a time is needed.")
    folder = Path(output or f"outputs/{Path(path).stem}").expanduser().resolve()
    try:
        with alone(folder):
            work, made_by = embed_all(points, found, folder), environment()
            ready = [job for job in work if job["digests"]]
            todo = [job for job in ready if not finished(job, made_by)]
            at_once = jobs or how_many_at_once({job["inputs"] for job in ready})
            with tqdm(total=len(work), initial=len(work) - len(todo), desc="sweep", unit="point") as bar:
                bar.write(f"{len(work)} points, {len(ready) - len(todo)} of them finished before; {at_once} at a time.")
                for job in work:
                    if not job["digests"]:
                        bar.write(f"{job['to'].name}: FAILED, {row_of(job)['error']}")
                execute_all(todo, at_once, made_by, bar)
            table = pd.DataFrame([row_of(job) for job in work])
            for name, write in (("results.parquet", table.to_parquet), ("results.csv", table.to_csv)):
                with atomic_write(folder / name) as beside:
                    write(beside, index=False)
            (folder / "report.html").unlink(missing_ok=True)
            if table["error"].isna().any():
                executed = execute(REPORT, {"results": str(folder), "output": str(folder)}, folder, progress=False)
                write_report([executed], folder / "report.html")
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ValueError(
            f"The disk of {str(folder)!r} is full. Finished points are kept: make room and start the sweep again."
        ) from error
    return folder, table
