"""Papermill runs of the notebooks: settings checked, notebooks executed, numbers and pictures in one folder."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import yaml
from datasets import Dataset, Image

import imgsim
from imgsim.hashing import check_settings
from imgsim.images import candidates_and_queries, fingerprint, load_images
from imgsim.sources.cache import write_json
from imgsim.sources.errors import require
from imgsim.sources.hub import locate
from imgsim.sources.names import is_onnx, join_source, split_checkpoint, split_source

PACKAGE = Path(imgsim.__file__).resolve().parent
NOTEBOOKS = ("01_embeddings", "02_hashing", "03_tables", "04_inference")
POINT = "sweep/point"  # executed for each point of a sweep
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
SHORT = {"k": "hash_size", "L": "num_tables", "p": "probes", "seed": "seed"}  # in a run's name
NOTEBOOK_TOOLS = ("papermill", "nbconvert", "latex2mathml", "ipykernel")
LIBRARIES = ("numpy", "numba", "pillow", "torch", "transformers", "datasets", "papermill")


def check(settings: dict) -> dict:
    """All settings, the defaults filled in; a ValueError with one sentence where a name or a value is wrong."""
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise ValueError(f"There is no setting {name!r}; the settings are {', '.join(DEFAULTS)}.")
        kind = type(DEFAULTS[name])
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "a whole number" if kind is int else "text"
            raise ValueError(f"{name} must be {expected}, not {value!r}.")
        if value == "":
            raise ValueError(f"{name} is empty.")
    settings = DEFAULTS | settings
    check_settings(settings["hash_size"], settings["num_tables"])
    for name, least in (("probes", 0), ("seed", 0), ("top_k", 1), ("batch_size", 1)):
        if settings[name] < least:
            raise ValueError(f"{name} is {settings[name]}, but must be {least} or more.")
    return settings


class Loader(yaml.SafeLoader):
    """YAML in which text settings stay text, so that a checkpoint may be called 075, and no name stands twice."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for i, (name, (_, value)) in enumerate(zip(names, node.value, strict=True)):
            if name in names[:i]:
                raise yaml.YAMLError(f"{name} stands there twice")
            if isinstance(name, str) and isinstance(DEFAULTS.get(name), str):
                for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    item.tag = "tag:yaml.org,2002:str" if isinstance(item, yaml.ScalarNode) else item.tag
        return super().construct_mapping(node, deep)


def read_params(path) -> dict:
    """Settings from a papermill parameters file (YAML)."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The parameters file {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The parameters file {str(path)!r} must hold lines of the form name: value.")
    return content


def run_name(settings: dict) -> str:
    """A folder's name made of the settings: beans-mobilenet-v1-025-k8-L10-p8-seed0."""
    prefix, checkpoint = split_checkpoint(settings["checkpoint"])
    checkpoint = prefix + Path(checkpoint).name
    numbers = "".join(f"-{short}{settings[key]}" for short, key in SHORT.items())
    precision = f"-{settings['dtype']}" if settings["dtype"] != DEFAULTS["dtype"] else ""
    return re.sub(r"[^\w.-]+", "-", f"{Path(settings['dataset']).name}-{checkpoint}{numbers}{precision}")


def find_inputs(settings: dict) -> tuple[dict, dict]:
    """Find data set and checkpoint before anything runs: the settings with whole paths, and the Hub's commits."""
    settings, found = dict(settings), {}
    name, options = split_source(settings["dataset"])
    if name != "builtin":
        folder = locate(name, "dataset")
        if not (commit := commit_of(folder)):
            settings["dataset"] = join_source(str(folder), options)
        found |= {"dataset_commit": commit} if commit else {}
    prefix, name = split_checkpoint(settings["checkpoint"])
    if is_onnx(name) or settings["dtype"] != DEFAULTS["dtype"]:
        from imgsim.models.loading import pick_device, pick_dtype  # torch

        pick_dtype(settings["dtype"], pick_device(name), name)
    if is_onnx(name):
        from imgsim.models.onnx import OnnxModel

        settings["checkpoint"] = f"{prefix}{OnnxModel(name).file.resolve()}"
    elif name != "builtin":
        folder = locate(name, "checkpoint")
        if not (commit := commit_of(folder)):
            settings["checkpoint"] = f"{prefix}{folder}"
        found |= {"checkpoint_commit": commit} if commit else {}
        if not ((folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
            raise ValueError(f"checkpoint {str(folder)!r}: there is no config.json with safetensors weights beside it.")
    return settings, found


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the Hub's cache, whose snapshots are named so."""
    return folder.name if folder.parent.name == "snapshots" else None


def digests_of(splits: tuple[Dataset, Dataset]) -> dict:
    """Digests of the images of (candidates, queries)."""
    return dict(zip(("candidates", "queries"), map(fingerprint, splits), strict=True))


def find_notebook(name: str) -> Path:
    """Find a notebook that is executed as a template: a wheel has it in the package, a checkout beside it."""
    folder = PACKAGE / "notebooks"
    return (folder if folder.is_dir() else PACKAGE.parent / "notebooks") / f"{name}.ipynb"


def code_digest() -> str:
    """A digest of all code that a result depends on: the package's, and that in the notebooks' cells."""
    digest = blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    for name in (*NOTEBOOKS, POINT):
        cells = json.loads(find_notebook(name).read_text(encoding="utf-8"))["cells"]
        digest.update("\0".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").encode())
    return digest.hexdigest()


def environment() -> dict:
    """What a result depends on beside settings and inputs: versions, machine, and the code with its commit."""

    def git(*words: str) -> str:
        if not (PACKAGE.parent / ".git").exists():  # installed: a repository around site-packages is another project's
            return ""
        try:
            return subprocess.run(["git", "-C", PACKAGE.parent, *words], capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    return {
        "versions": {"python": platform.python_version(), "imgsim": imgsim.__version__}
        | {name: version(name) for name in LIBRARIES},
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "code": code_digest(),
        "commit": git("rev-parse", "HEAD") or None,
        "changed": bool(git("status", "--porcelain")),
    }


def image_files(images: Dataset) -> list[str] | None:
    """The images' paths, where they are files of their own and not part of larger ones."""
    sources = images.select([0]).cast_column("image", Image(decode=False))["image"]
    if sources[0]["bytes"] is not None:
        return None
    return [source["path"] for source in images.cast_column("image", Image(decode=False))["image"]]


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


def execute(name: str, settings: dict, folder: Path, progress: bool = True) -> Path:
    """Execute one notebook with those of the settings that it takes; the executed copy goes to the folder."""
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
    """Execute notebooks 01 to 04 with these settings (see DEFAULTS); returns the folder with what came out.

    Raises ValueError or ConnectionError, before anything is run or written, where a setting, the data set or
    the checkpoint is wrong, and PapermillExecutionError where a notebook fails.
    """
    require(NOTEBOOK_TOOLS, "notebooks")
    from imgsim.extras.runs.report import write_report  # nbconvert takes a second to import

    settings, found = find_inputs(check(settings))
    images = load_images(settings["dataset"])
    splits = candidates_and_queries(images, settings["seed"])
    found |= digests_of(splits)
    folder = Path(output or f"outputs/{run_name(settings)}").expanduser().resolve()
    with replacing(folder):
        executed = [execute(name, settings | {"output": str(folder)}, folder) for name in NOTEBOOKS]
        write_report(executed, folder / "report.html")
        manifest = json.loads((folder / "index" / "manifest.json").read_text())
        found |= {"checkpoint": manifest["encoder"]["digest"], "index": manifest["arrays"]}
        names = getattr(splits[0].features.get("labels"), "names", None)
        write_json(folder / "images.json", {"labels": names, "files": image_files(splits[0])})
        content = {"settings": settings, "digests": found, "skipped": images.skipped, "environment": environment()}
        write_json(folder / "run.json", content)
    return folder
