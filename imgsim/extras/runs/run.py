"""A papermill run of notebooks 01 to 04: numbers, pictures and the index in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from datasets import Dataset

from imgsim.extras.runs.environment import NOTEBOOKS, environment, find_notebook
from imgsim.extras.runs.inputs import all_images, digests_of, find_inputs, image_files
from imgsim.extras.runs.report import read_result, write_report
from imgsim.extras.runs.settings import complete_settings, run_name
from imgsim.images import candidates_and_queries, fingerprint, labels_of, load_images
from imgsim.sources.cache import write_json
from imgsim.sources.errors import require

NOTEBOOK_TOOLS = ("papermill", "nbconvert", "latex2mathml", "ipykernel")


@contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """Make an empty folder to work in, in place of an earlier run's.

    If the work fails, the earlier run comes back, and what was done stays beside it, in <folder>.failed.

    Raises:
        ValueError: the folder holds other files, or cannot be written to.
    """
    before, failed = folder.with_name(f"{folder.name}.before"), folder.with_name(f"{folder.name}.failed")
    holds_run = any((folder / name).exists() for name in ("run.json", f"{NOTEBOOKS[0]}.ipynb"))
    if folder.exists() and any(folder.iterdir()) and not holds_run:
        raise ValueError(f"{str(folder)!r} holds other files: a run wants a folder of its own (--output).")
    try:
        shutil.rmtree(failed, ignore_errors=True)
        if before.exists():  # an earlier run was killed: the run that it was to replace is still whole
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            folder.replace(before)
        folder.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"{str(folder)!r} cannot be written to ({reason}): name another (--output).") from error
    try:
        yield
    except BaseException:
        folder.replace(failed)
        if before.exists():
            before.replace(folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


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
    index.build_from_embeddings(np.concatenate([index.vectors, held_out]), labels_of(images)).save(folder / "index")
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
    images = load_images(settings["dataset"])
    splits, everything = candidates_and_queries(images, settings["seed"]), all_images(images, settings["seed"])
    digests = commits | digests_of(splits) | {"images": fingerprint(everything)}
    folder = Path(output or f"outputs/{run_name(settings)}").expanduser().resolve()
    with fresh_folder(folder):
        executed = [execute(name, settings | {"output": str(folder)}, folder) for name in NOTEBOOKS]
        index_all(folder, settings, everything)
        write_report(executed, folder / "report.html", read_result(folder, settings))
        manifest = json.loads((folder / "index" / "manifest.json").read_text(encoding="utf-8"))
        digests |= {"checkpoint": manifest["encoder"]["digest"], "index": manifest["arrays"]}
        names = getattr(everything.features.get("labels"), "names", None)
        write_json(folder / "images.json", {"labels": names, "files": image_files(everything)})
        content = {"settings": settings, "digests": digests, "skipped": images.skipped, "environment": environment()}
        write_json(folder / "run.json", content)
    return folder
