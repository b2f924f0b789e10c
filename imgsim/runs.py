"""Papermill runs of the notebooks: settings checked, notebooks executed, numbers and pictures in one folder."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import yaml

from imgsim.hashing import check_settings
from imgsim.images import candidates_and_queries, fingerprint, join_source, load_images, split_source
from imgsim.report import write_report
from imgsim.store import locate, write_json

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("01_embeddings", "02_hashing", "03_tables", "04_inference")
DEFAULTS = {
    "dataset": "builtin",
    "checkpoint": "builtin",
    "hash_size": 8,
    "num_tables": 10,
    "probes": 8,
    "seed": 0,
    "top_k": 5,
    "batch_size": 48,
    "dtype": "float32",
}
LIBRARIES = ("imgsim", "numpy", "pillow", "torch", "transformers", "datasets", "papermill")


def check(settings: dict) -> dict:
    """All settings, the defaults filled in; a ValueError with one sentence where a name or a value is wrong."""
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise ValueError(f"There is no setting {name!r}; the settings are {', '.join(DEFAULTS)}.")
        kind = type(DEFAULTS[name])
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "a whole number" if kind is int else "text"
            raise ValueError(f"{name} must be {expected}, not {value!r}.")
    settings = DEFAULTS | settings
    check_settings(settings["hash_size"], settings["num_tables"])
    for name, least in (("probes", 0), ("seed", 0), ("top_k", 1), ("batch_size", 1)):
        if settings[name] < least:
            raise ValueError(f"{name} is {settings[name]}, but must be {least} or more.")
    return settings


def read_params(path) -> dict:
    """Settings from a papermill parameters file (YAML)."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The parameters file {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The parameters file {str(path)!r} must hold lines of the form name: value.")
    return content


def run_name(settings: dict) -> str:
    """A folder's name made of the settings: beans-mobilenet-v1-025-k8-L10-seed0."""
    dataset, checkpoint = (re.sub(r"[^\w.-]+", "-", Path(settings[key]).name) for key in ("dataset", "checkpoint"))
    return f"{dataset}-{checkpoint}-k{settings['hash_size']}-L{settings['num_tables']}-seed{settings['seed']}"


def find_inputs(settings: dict) -> tuple[dict, dict, list[dict]]:
    """Find images and checkpoint before anything runs: the settings with whole paths, digests and commits, and
    which images were left out."""
    settings, found = dict(settings), {}
    for kind in ("dataset", "checkpoint"):
        name, options = split_source(settings[kind]) if kind == "dataset" else (settings[kind], {})
        if name == "builtin" or (kind == "checkpoint" and name.endswith(".onnx")):
            continue
        folder = locate(name, kind)
        if folder.parent.name == "snapshots":  # the Hub's cache: its folders are named by commit
            found[f"{kind}_commit"] = folder.name
        else:
            settings[kind] = join_source(str(folder), options)
        if kind == "checkpoint" and not ((folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
            raise ValueError(f"checkpoint {str(folder)!r}: there is no config.json with safetensors weights beside it.")
    if settings["checkpoint"].endswith(".onnx") or settings["dtype"] != DEFAULTS["dtype"]:
        from imgsim.encoder import check_encoder  # loads torch

        settings["checkpoint"] = check_encoder(settings["checkpoint"], settings["dtype"])
    images = load_images(settings["dataset"])
    splits = candidates_and_queries(images, settings["seed"])
    found |= dict(zip(("candidates", "queries"), map(fingerprint, splits), strict=True))
    return settings, found, images.skipped


def environment() -> dict:
    """What a result depends on beside the settings: versions, machine and the code's commit."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout.strip()

    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "machine": f"{platform.machine()} {platform.system()}",
        "commit": git("rev-parse", "HEAD") or None,
        "changed": bool(git("status", "--porcelain")),
    }


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """An empty folder to work in. What it held before comes back, and the work goes beside it, on an error."""
    before, failed = (folder.with_name(f"{folder.name}.{word}") for word in ("before", "failed"))
    ours = any((folder / name).exists() for name in ("run.json", f"{NOTEBOOKS[0]}.ipynb"))
    if folder.exists() and any(folder.iterdir()) and not ours:
        raise ValueError(f"{str(folder)!r} holds other files: a run wants a folder of its own (--output).")
    try:
        shutil.rmtree(failed, ignore_errors=True)
        if before.exists():  # an earlier run was killed: what it meant to replace is still whole
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            folder.replace(before)
        folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} cannot be written to ({error.strerror}): name another (--output)."
        ) from error
    try:
        yield
    except BaseException:
        folder.replace(failed)
        if before.exists():
            before.replace(folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def execute(name: str, settings: dict, folder: Path) -> Path:
    """Execute one notebook with those of the settings that it takes; the executed copy goes to the folder."""
    import papermill

    source, target = ROOT / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb"
    known = papermill.inspect_notebook(str(source))
    parameters = {key: value for key, value in settings.items() if key in known}
    quiet = ["--IPKernelApp.log_level=ERROR"]  # kernels talk on this machine only, and warn that they do
    papermill.execute_notebook(
        str(source), str(target), parameters, cwd=str(ROOT), kernel_name="python3", extra_arguments=quiet
    )
    return target


def run(settings: dict, output=None) -> Path:
    """Execute notebooks 01 to 04 with these settings (see DEFAULTS); returns the folder with what came out.

    Raises ValueError or ConnectionError, before anything is run or written, where a setting, the data set or
    the checkpoint is wrong, and PapermillExecutionError where a notebook fails.
    """
    settings, found, skipped = find_inputs(check(settings))
    folder = Path(output).expanduser().resolve() if output else ROOT / "outputs" / run_name(settings)
    with replacing(folder):
        executed = [execute(name, settings | {"output": str(folder)}, folder) for name in NOTEBOOKS]
        write_report(executed, folder / "report.html")
        manifest = json.loads((folder / "index" / "manifest.json").read_text())
        found |= {"checkpoint": manifest["encoder"]["digest"], "index": manifest["arrays"]}
        record = {"settings": settings, "digests": found, "skipped": skipped, "environment": environment()}
        write_json(folder / "run.json", record)
    return folder
