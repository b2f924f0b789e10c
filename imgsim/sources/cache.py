"""Places on disk and on the Hub: the cache folder, files written whole or not at all, pinned downloads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tokenize import TokenError

import numpy as np

FORMAT = 2  # of an index's folder
MANIFEST = "manifest.json"
CHECKPOINT_FILES = ["*.json", "*.safetensors"]
UNTRAINED = "untrained:"  # before a checkpoint's name: the same network with random weights
HUB_TIMEOUT = 5  # seconds; without a network transformers and datasets would try for over a minute


def cache_folder(name: str = "") -> Path:
    """Where drawn images and embeddings are kept: $IMGSIM_CACHE, else ~/.cache/imgsim."""
    root = os.environ.get("IMGSIM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "imgsim"
    folder = Path(root).expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def first_line(error: BaseException) -> str:
    """What an error says, without its further explanations."""
    return str(error).strip().partition("\n")[0]


def cache_megabytes() -> float:
    """How much the cache holds."""
    return sum(file.lstat().st_size for file in cache_folder().rglob("*") if file.is_file()) / 1e6


@contextmanager
def environ(**values: str) -> Iterator[None]:
    """Environment variables that hold for a while, for the processes started meanwhile too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def write_whole(path) -> Iterator[Path]:
    """Give a path beside this one to write to; it takes this one's place at the end, or vanishes on an error."""
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path, content) -> None:
    """Write content as indented JSON, whole or not at all."""
    with write_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Blocks:
    """An array to write of which only one block of rows at a time stands in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterable[np.ndarray]


def write_arrays(folder, manifest: dict, arrays: dict[str, np.ndarray | Blocks]) -> None:
    """Write arrays and then the manifest that names them; until its rename what lay there before stays whole."""
    folder = Path(folder)
    own = re.compile(rf"\.?[\d-]*({'|'.join(arrays)})-[0-9a-f]{{16}}\.npy")
    if folder.exists() and not ours(folder) and not all(own.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError(f"{str(folder)!r} holds other files: an index wants a folder of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    digests = {name: write_array(folder, name, array) for name, array in arrays.items()}
    libraries = {name: version(name) for name in ("numpy", "torch", "transformers")}
    write_json(folder / MANIFEST, {"format": FORMAT} | manifest | {"versions": libraries, "arrays": digests})
    for stale in set(folder.glob("*.npy")) - {folder / f"{name}-{digest}.npy" for name, digest in digests.items()}:
        if own.fullmatch(stale.name):
            stale.unlink()


def write_array(folder: Path, name: str, array: np.ndarray | Blocks) -> str:
    """Write an array to a file called by its name and digest, whole or not at all; returns the digest."""
    shape, dtype, digest = tuple(array.shape), np.dtype(array.dtype), digest_of_kind(array)
    beside = folder / f".{os.getpid()}-{name}-{'0' * 16}.npy"
    try:
        with open(beside, "wb") as stream:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for block in array.blocks if isinstance(array, Blocks) else [array]:
                block = np.ascontiguousarray(block, dtype)
                digest.update(block)
                stream.write(block)
        beside.replace(folder / f"{name}-{digest.hexdigest()}.npy")
        return digest.hexdigest()
    finally:
        beside.unlink(missing_ok=True)


def ours(folder: Path) -> bool:
    """Whether a folder's manifest is one that `write_arrays` wrote."""
    try:
        return "arrays" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_arrays(
    folder, settings: Iterable[str], names: Iterable[str], mapped: bool = False
) -> tuple[dict, dict[str, np.ndarray]]:
    """Read what `write_arrays` wrote: the manifest, which has to hold these settings, and the named arrays.

    mapped: leave the arrays in their files, to be read where they are looked at; files are then taken for whole that
    have the right length. Raises ValueError for a folder that holds something else, and for a file that is not what
    was written.
    """
    folder, arrays = Path(folder), {}
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, and this version reads {FORMAT}")
        files = {name: (folder / f"{name}-{manifest['arrays'][name]}.npy", manifest["arrays"][name]) for name in names}
        _ = [manifest[name] for name in settings]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error!r} is missing from {MANIFEST}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{str(folder)!r} holds no index that can be read: {reason}.") from error
    for name, (file, digest) in files.items():
        try:
            # Copy on write: compiled code knows no array that must not be written to.
            arrays[name] = np.asarray(np.load(file, "c" if mapped else None, allow_pickle=False))
        except (OSError, ValueError, EOFError, SyntaxError, TokenError):
            arrays[name] = None
        if arrays[name] is None or not (mapped or digest_of(arrays[name]) == digest):
            raise ValueError(f"The index is damaged: {str(file)!r} is missing, cut short or changed; build it again.")
    return manifest, arrays


def digest_of_kind(array: np.ndarray | Blocks):
    """A digest that has seen an array's type and shape, and is still to see its content."""
    return blake2b(f"{np.dtype(array.dtype).str}{tuple(array.shape)}".encode(), digest_size=8)


def digest_of(array: np.ndarray) -> str:
    digest = digest_of_kind(array)
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def locate(name: str, kind: str) -> Path:
    """The local folder of a "dataset" or "checkpoint": a folder that is there, or a Hub repository.

    A repository, `owner/name` or `owner/name@revision`, is pinned to a commit and downloaded once: the local
    cache is asked first, then the Hub, with a short time-out. Neither code nor pickles are downloaded. Raises
    ValueError for a name that stands for nothing, ConnectionError where the Hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", repo):
        raise ValueError(f"{kind} {name!r}: there is no such folder, and a Hub id looks like owner/name.")
    repo_type, patterns = ("dataset", ["*.parquet", "README.md"]) if kind == "dataset" else ("model", CHECKPOINT_FILES)
    wanted = {"repo_id": repo, "repo_type": repo_type, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(**wanted, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        commit = HfApi().repo_info(repo, repo_type=repo_type, revision=revision or None, timeout=HUB_TIMEOUT).sha
        return Path(snapshot_download(**wanted, revision=commit))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"{kind} {name!r}: there is no such folder here and no such {repo_type} on the Hub."
        ) from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(
            f"{kind} {name!r}: there is no such folder, it is not in the local cache and the Hub cannot be "
            f"reached; without a network use {kind} 'builtin' or a local folder."
        ) from error
