"""A papermill run of notebooks 01 to 04: numbers, pictures and the index in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgsim.extras.runs.environment import NOTEBOOKS, environment, find_notebook
from imgsim.extras.runs.inputs import digests_of, find_inputs, image_files
from imgsim.extras.runs.report import write_report
from imgsim.extras.runs.settings import complete_settings, run_name
from imgsim.images import candidates_and_queries, load_images
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


def run(settings: dict, output=None) -> Path:
    """Execute notebooks 01 to 04.

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
    candidates, queries = candidates_and_queries(images, settings["seed"])
    digests = commits | digests_of((candidates, queries))
    folder = Path(output or f"outputs/{run_name(settings)}").expanduser().resolve()
    with fresh_folder(folder):
        executed = [execute(name, settings | {"output": str(folder)}, folder) for name in NOTEBOOKS]
        write_report(executed, folder / "report.html")
        manifest = json.loads((folder / "index" / "manifest.json").read_text(encoding="utf-8"))
        digests |= {"checkpoint": manifest["encoder"]["digest"], "index": manifest["arrays"]}
        names = getattr(candidates.features.get("labels"), "names", None)
        write_json(folder / "images.json", {"labels": names, "files": image_files(candidates)})
        content = {"settings": settings, "digests": digests, "skipped": images.skipped, "environment": environment()}
        write_json(folder / "run.json", content)
    return folder
