"""What goes into a run: where its dataset and checkpoint are, and digests of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imgsim.extras.runs.settings import DEFAULTS
from imgsim.sources.folder import file_signature, find_images
from imgsim.sources.hub import locate
from imgsim.sources.names import is_onnx, join_source, split_checkpoint, split_source
from imgsim.sources.splits import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def find_inputs(settings: dict) -> tuple[dict, dict]:
    """Find dataset and checkpoint before anything runs.

    Returns:
        The settings with whole paths, and the Hub's commits as {"dataset_commit", "checkpoint_commit"}.

    Raises:
        ValueError: there is no such dataset or checkpoint.
        ConnectionError: the Hub cannot be reached.
    """
    settings, commits = dict(settings), {}
    name, options = split_source(settings["dataset"])
    if name != "builtin":
        folder = locate(name, "dataset")
        if commit := commit_of(folder):
            commits["dataset_commit"] = commit
        else:
            settings["dataset"] = join_source(str(folder), options)
    prefix, name = split_checkpoint(settings["checkpoint"])
    if settings["dtype"] != DEFAULTS["dtype"]:
        from imgsim.models.loading import pick_device, pick_dtype  # torch

        pick_dtype(settings["dtype"], pick_device(name), name)
    if is_onnx(name):
        from imgsim.models.onnx import OnnxModel

        settings["checkpoint"] = f"{prefix}{OnnxModel(name).file.resolve()}"
    elif name != "builtin":
        folder = locate(name, "checkpoint")
        if not ((folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
            raise ValueError(f"checkpoint {str(folder)!r}: there is no config.json with safetensors weights beside it.")
        if commit := commit_of(folder):
            commits["checkpoint_commit"] = commit
        else:
            settings["checkpoint"] = f"{prefix}{folder}"
    return settings, commits


def check_apart(dataset: str, output: Path) -> None:
    """Check that neither a dataset's folder nor the output, a whole path, lies in the other; else ValueError."""
    folder = Path(split_source(dataset)[0]).resolve()
    if folder.is_dir() and (output.is_relative_to(folder) or folder.is_relative_to(output)):
        raise ValueError(f"The output {str(output)!r} and the dataset {str(folder)!r} must not lie in one another.")


def folder_state(dataset: str) -> list[str | None]:
    """Return what changes when an image is added to a local folder, removed or changed; [] for other datasets."""
    folder = Path(split_source(dataset)[0])
    files = (*find_images(folder), *sorted(folder.rglob("*.parquet"))) if folder.is_dir() else ()
    return [file_signature(path, folder) for path in files]


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder in the Hub's cache, whose snapshots are named by commit."""
    return folder.name if folder.parent.name == "snapshots" else None


def all_images(images: DatasetDict, seed: int) -> Dataset:
    """Return the images of all splits as one: the candidates, then those that a run holds out to measure with."""
    from datasets import concatenate_datasets

    from imgsim.images import candidates_and_queries

    candidates, queries = candidates_and_queries(images, seed)
    measured = {"train" if "train" in images else next(iter(images))}
    measured |= {next((split for split in ("test", "validation") if split in images), "")}
    parts = [candidates, queries, *(images[split] for split in images if split not in measured)]
    common = [name for name in candidates.column_names if all(name in part.column_names for part in parts)]
    return concatenate_datasets([part.select_columns(common) for part in parts])


def digests_of(splits: tuple[Dataset, Dataset]) -> dict[str, str]:
    """Return digests of the images of (candidates, queries)."""
    candidates, queries = splits
    return {"candidates": fingerprint(candidates), "queries": fingerprint(queries)}
