"""A papermill run of notebooks 01 to 04: numbers, pictures and the index in one folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
from datasets import Dataset
from filelock import FileLock, Timeout

from imgsim.extras.runs.environment import NOTEBOOKS, environment, find_notebook
from imgsim.extras.runs.inputs import all_images, check_apart, digests_of, find_inputs, folder_state
from imgsim.extras.runs.report import read_result, write_report
from imgsim.extras.runs.settings import complete_settings, run_name, short_digest
from imgsim.images import candidates_and_queries, labels_of, load_images
from imgsim.sources.cache import BESIDE, write_json
from imgsim.sources.errors import require
from imgsim.sources.splits import fingerprint, image_key, stored_images

NOTEBOOK_TOOLS = ("papermill", "nbconvert", "latex2mathml", "ipykernel")


# All that a run, `imgsim query` and further notebooks write to a folder; the rest is somebody else's.
OWN = re.compile(
    r"\d\d_\w+\.ipynb|report\.html|(metrics|run|images)\.json|figures/(\d\d|query)-[^/]+|index/(manifest\.json|\.lock|[^/]+\.npy)"
)


@contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """Make an empty folder to work in, in place of an earlier run's, and keep other runs out of it.

    If the work fails, the earlier run comes back, and what was done stays beside it, in <folder>.failed. Until the
    work is done the earlier run lies in .<folder>.imgsim. Files that no run wrote are in the folder at the end.

    Raises:
        ValueError: the folder holds other files, cannot be written to, or another run is at work in it.
    """
    beside = folder.with_name(f".{folder.name}.imgsim")
    before, names = beside / "before", (folder.with_name(f"{folder.name}.failed{number or ''}") for number in count())
    failed = next(path for path in names if not path.exists() or (path.is_dir() and not others_in(path)))
    holds_run = before.exists() or any((folder / name).exists() for name in ("run.json", f"{NOTEBOOKS[0]}.ipynb"))
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not holds_run):
        what = "is a file" if folder.is_file() else "holds other files"
        raise ValueError(f"{str(folder)!r} {what}: a run wants a folder of its own (--output).")
    lock = FileLock(beside / "lock", timeout=0)  # released by the system, however the process ends
    try:
        beside.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        shutil.rmtree(failed, ignore_errors=True)
        if before.exists():
            whole = (folder / "run.json").exists()  # it is written last
            print(f"An earlier run in {str(folder)!r} was stopped {'at its end' if whole else 'and is cleared away'}.")
            remove_run(*((before, folder) if whole else (folder, before)))
            if not whole:
                before.replace(folder)
        if folder.exists():
            folder.replace(before)
        folder.mkdir(parents=True)
    except Timeout as error:
        raise ValueError(f"Another run is at work in {str(folder)!r}.") from error
    except OSError as error:
        lock.release()
        reason = error.strerror
        raise ValueError(f"{str(folder)!r} cannot be written to ({reason}): name another (--output).") from error
    try:
        yield
    except BaseException:
        folder.replace(failed)
        if before.exists():
            before.replace(folder)
        raise
    else:
        remove_run(before, folder)
    finally:
        lock.release()


def others_in(folder: Path) -> list[Path]:
    """Return the files in a folder that no run wrote, relative to it."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(folder) for path in paths]
    return [name for name in names if not (OWN.fullmatch(name.as_posix()) or BESIDE.fullmatch(name.name))]


def remove_run(folder: Path, successor: Path) -> None:
    """Remove a run; files in its folder that no run wrote move to that of its successor."""
    for name in others_in(folder):
        (successor / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(successor / name)
    shutil.rmtree(folder, ignore_errors=True)


def default_folder(settings: dict) -> Path:
    """Return the folder in outputs/ that is named by the settings and holds no run of other images or weights."""
    folder, named = Path("outputs", run_name(settings)), ("dataset", "checkpoint")
    try:
        kept = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = settings
    same = all(kept.get(name) == settings[name] for name in named)
    return folder if same else Path(f"{folder}-{short_digest([settings[name] for name in named])}")


def execute(name: str, settings: dict, folder: Path, progress: bool = True) -> Path:
    """Execute one notebook with those of the settings that it takes; return the executed copy in the folder."""
    import papermill

    source = find_notebook(name)
    target = folder / source.name
    known = papermill.inspect_notebook(str(source))
    parameters = {key: value for key, value in settings.items() if key in known}
    quiet = ["--IPKernelApp.log_level=ERROR"]  # kernels talk on this machine only, and warn that they do
    options = {"kernel_name": "python3", "progress_bar": progress, "extra_arguments": quiet}
    papermill.execute_notebook(str(source), str(target), parameters, **options)
    return target


def index_all(folder: Path, settings: dict, images: Dataset) -> None:
    """Add the images that a run held out to measure with to its index, and to metrics.json how many there are."""
    from imgsim.encoder import load_encoder  # torch
    from imgsim.index import BuildLSHTable

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    encoder = load_encoder(settings["checkpoint"], dtype=settings["dtype"])
    index = BuildLSHTable.load(folder / "index", encoder)
    held_out = encoder.embed(images.select(range(len(index), len(images))), settings["batch_size"])
    vectors, keys = np.concatenate([index.vectors, held_out]), [image_key(image) for image in stored_images(images)]
    index.build_from_embeddings(vectors, labels_of(images), keys=keys).save(folder / "index")
    write_json(folder / "metrics.json", metrics | {"held_out": len(held_out), "indexed": len(index)})
    print(f"The numbers were measured with {len(held_out):,} images held out; the index holds all {len(index):,}.")


def run(settings: dict, output=None) -> Path:
    """Execute notebooks 01 to 04, and index all images.

    Args:
        settings: those that are not the default, see `settings.DEFAULTS`.
        output: the folder to write to; by default outputs/ and a name made of the settings.

    Returns:
        The folder.

    Raises:
        ValueError: a setting, the dataset or the checkpoint is wrong; nothing was written.
        ConnectionError: the Hub cannot be reached; nothing was written.
        PapermillExecutionError: a notebook failed.
    """
    require(NOTEBOOK_TOOLS, "notebooks")
    settings, commits = find_inputs(complete_settings(settings))
    folder = Path(output or default_folder(settings)).expanduser().resolve()
    check_apart(settings["dataset"], folder)
    listed, images = folder_state(settings["dataset"]), load_images(settings["dataset"])
    splits, everything = candidates_and_queries(images, settings["seed"]), all_images(images, settings["seed"])
    digests = commits | digests_of(splits) | {"images": fingerprint(everything)}
    with fresh_folder(folder):
        executed = []
        for name in NOTEBOOKS:
            executed.append(execute(name, settings | {"output": str(folder)}, folder))
            if folder_state(settings["dataset"]) != listed:
                raise ValueError(f"The images of {settings['dataset']!r} changed during the run: start it again.")
        index_all(folder, settings, everything)
        write_report(executed, folder / "report.html", read_result(folder, settings))
        manifest = json.loads((folder / "index" / "manifest.json").read_text(encoding="utf-8"))
        digests |= {"checkpoint": manifest["encoder"]["digest"], "index": manifest["arrays"]}
        names = getattr(everything.features.get("labels"), "names", None)
        write_json(folder / "images.json", {"labels": names})
        content = {"settings": settings, "digests": digests, "skipped": images.skipped, "environment": environment()}
        write_json(folder / "run.json", content)
    return folder
