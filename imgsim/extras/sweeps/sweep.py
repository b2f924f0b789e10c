"""Run many settings, one papermill execution each on embeddings made once, and put the answer on one page."""

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
from imgsim.extras.runs.inputs import check_apart, find_inputs
from imgsim.extras.runs.report import write_report
from imgsim.extras.runs.run import NOTEBOOK_TOOLS, execute
from imgsim.extras.runs.settings import DEFAULTS
from imgsim.extras.sweeps.points import DISK_FULL, prepare_jobs, read_points, record_failure
from imgsim.sources.cache import BESIDE, atomic_write, write_json
from imgsim.sources.errors import require

REPORT = "06_sweep_report"
POINT_BYTES = 500e6  # of memory: a kernel with its libraries
# For a point's kernel: there are as many of them as cores.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Make the folder if it is missing, and keep other sweeps out of it."""
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if "sweep.json" not in there and not all(map(BESIDE.fullmatch, there)):
        raise ValueError(f"{str(folder)!r} holds other files: a sweep wants a folder of its own (--output).")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "sweep.json", {"schema": 1})
        with FileLock(folder / ".lock", timeout=0):  # released by the system, however the process ends
            yield
    except Timeout as error:
        raise ValueError(f"Another sweep is at work in {str(folder)!r}.") from error


def is_finished(job: dict, made_by: dict) -> bool:
    """Tell whether a point is there, made whole from the same settings, inputs, code and versions."""
    try:
        record = json.loads((job["folder"] / "run.json").read_text(encoding="utf-8"))
        same = [record["environment"][name] == made_by[name] for name in ("code", "versions")]
        same += [record["settings"] == job["settings"], job["digests"].items() <= record["digests"].items()]
        return all(same)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def execute_point(job: dict, made_by: dict) -> None:
    """Execute a point's notebook and write its report; last, by a rename, the run.json that says it is finished."""
    folder, start = job["folder"], time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        settings = job["settings"] | {"inputs": str(job["inputs"]), "output": str(folder)}
        write_report([execute(POINT, settings, folder, progress=False)], folder / "report.html")
        index = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except Exception as error:
        record_failure(job, error)
        raise
    seconds = round(time.perf_counter() - start, 2)
    content = {"settings": job["settings"], "digests": job["digests"] | {"index": index}, "environment": made_by}
    write_json(folder / "run.json", content | {"seconds": seconds})


def row_of(job: dict) -> dict:
    """Return a point as a row: settings, metrics, seconds, versions, or the error that ended it."""
    row = {"point": job["point"], "folder": f"points/{job['folder'].name}", "error": None} | job["settings"]
    try:
        record = json.loads((job["folder"] / "run.json").read_text(encoding="utf-8"))
    except OSError:
        return row | {"error": (job["folder"] / "error.txt").read_text(encoding="utf-8").strip()}
    metrics = json.loads((job["folder"] / "metrics.json").read_text(encoding="utf-8"))
    row |= {name: value for name, value in metrics.items() if name not in DEFAULTS}
    environment = record["environment"]
    versions = environment["versions"] | {name: environment[name] for name in ("code", "commit")}
    return row | {"seconds": record["seconds"]} | {f"version_{name}": value for name, value in versions.items()}


def progress_line(job: dict) -> str:
    """Say in one line what came out of a point."""
    row = row_of(job)
    if row["error"]:
        return f"{job['folder'].name}: FAILED, {row['error']}"
    measures = f"recall {row['recall_at_10']:.2f}, seeing {row['candidate_fraction']:.0%}, {row['seconds']:.1f} s"
    return f"{job['folder'].name}: {measures}"


def default_jobs(inputs: set[Path]) -> int:
    """Return how many points to execute at a time: as many as there are cores, and as memory has room for."""
    import psutil

    largest = max((sum(file.stat().st_size for file in folder.iterdir()) for folder in inputs), default=0)
    room = psutil.virtual_memory().available // (POINT_BYTES + 4 * largest)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(max(1, min(cores, room)))


def execute_all(todo: list[dict], jobs: int, made_by: dict, bar: tqdm) -> None:
    """Execute points side by side. A point that fails is reported and does not stop the others; a full disk does."""
    with environ(**ONE_THREAD), ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(execute_point, job, made_by): job for job in todo}
        try:
            for done in as_completed(waiting):
                bar.update()
                error = done.exception()
                if getattr(error, "errno", None) in DISK_FULL:
                    raise error
                bar.write(progress_line(waiting[done]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            bar.write("Stopping: the points at work are brought to an end first.")
            raise


def sweep(path, output=None, jobs: int | None = None) -> tuple[Path, pd.DataFrame]:
    """Run those points of a sweep file that are not finished yet.

    Args:
        path: of the sweep file, see `read_points`.
        output: the sweep's folder; by default outputs/ and the file's name.
        jobs: points at a time; by default as many as cores and memory allow.

    Returns:
        The folder, and the table with a row per point.

    Raises:
        ValueError, ConnectionError: something is wrong with a point; no image has been embedded yet.
    """
    require((*NOTEBOOK_TOOLS, "psutil"), "notebooks")
    points = read_points(path)
    found = [find_inputs({name: point[name] for name in DEFAULTS}) for point in points]
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}, but at least one point at a time is needed.")
    folder = Path(output or f"outputs/{Path(path).stem}").expanduser().resolve()
    for settings, _ in found:
        check_apart(settings["dataset"], folder)
    try:
        with folder_lock(folder):
            prepared, made_by = prepare_jobs(points, found, folder), environment()
            ready = [job for job in prepared if job["digests"]]
            todo = [job for job in ready if not is_finished(job, made_by)]
            jobs = jobs or default_jobs({job["inputs"] for job in ready})
            with tqdm(total=len(points), initial=len(points) - len(todo), desc="sweep", unit="point") as bar:
                bar.write(f"{len(points)} points, {len(ready) - len(todo)} of them finished before; {jobs} at a time.")
                for job in prepared:
                    if not job["digests"]:
                        bar.write(progress_line(job))
                execute_all(todo, jobs, made_by, bar)
            table = pd.DataFrame([row_of(job) for job in prepared])
            for name, write in (("results.parquet", table.to_parquet), ("results.csv", table.to_csv)):
                with atomic_write(folder / name) as beside:
                    write(beside, index=False)
            (folder / "report.html").unlink(missing_ok=True)
            if table["error"].isna().any():
                executed = execute(REPORT, {"results": str(folder), "output": str(folder)}, folder, progress=False)
                write_report([executed], folder / "report.html")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ValueError(
            f"The disk of {str(folder)!r} is full. Finished points are kept: make room and start the sweep again."
        ) from error
    return folder, table
