"""An index on disk: a folder of plain arrays and, written last, a manifest that names them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tokenize import TokenError  # raised by numpy for a damaged header

import numpy as np

from imgsim.hashing import code_dtype
from imgsim.sources.cache import write_json
from imgsim.tables import has_starts

FORMAT = 3  # of an index's folder
MANIFEST = "manifest.json"
ARRAYS = ("planes", "mean", "ids", "labels", "vectors", "signatures", "codes", "rows", "starts")


def array_specs(count: int, dim: int, hash_size: int, num_tables: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return the type and shape of each array of an index of `count` candidates, see `snapshot.Snapshot`."""
    starts = has_starts(hash_size, count)
    return {
        "planes": (np.dtype("f4"), (num_tables, dim, hash_size)),
        "mean": (np.dtype("f4"), (dim,)),
        "ids": (np.dtype("i8"), (count,)),
        "labels": (np.dtype("i8"), (count,)),
        "vectors": (np.dtype("f4"), (count, dim)),
        "signatures": (np.dtype("u8"), (count, -(-hash_size * num_tables // 64))),
        "codes": (code_dtype(hash_size), (num_tables, 0 if starts else count)),
        "rows": (np.dtype("i4"), (num_tables, count)),
        "starts": (np.dtype("i4"), (num_tables, (1 << hash_size) + 1 if starts else 0)),
    }


@dataclass(frozen=True)
class Blocks:
    """An array that is written block by block: only one block of rows is in memory at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterable[np.ndarray]


def write_arrays(folder, manifest: dict, arrays: dict[str, np.ndarray | Blocks]) -> None:
    """Write arrays to files named by digest and then, by a rename, the manifest that names them.

    Until that rename the folder still holds the index that was there before.

    Raises:
        ValueError: the folder holds other files.
    """
    folder = Path(folder)
    own = re.compile(rf"\.?[\d-]*({'|'.join(arrays)})-[0-9a-f]{{16}}\.npy")
    if (
        folder.exists()
        and not is_array_folder(folder)
        and not all(own.fullmatch(path.name) for path in folder.iterdir())
    ):
        raise ValueError(f"{str(folder)!r} holds other files: an index wants a folder of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    digests = {name: write_array(folder, name, array) for name, array in arrays.items()}
    libraries = {name: version(name) for name in ("numpy", "torch", "transformers")}
    write_json(folder / MANIFEST, {"format": FORMAT} | manifest | {"versions": libraries, "arrays": digests})
    for stale in set(folder.glob("*.npy")) - {folder / f"{name}-{digest}.npy" for name, digest in digests.items()}:
        if own.fullmatch(stale.name):
            stale.unlink()


def write_array(folder: Path, name: str, array: np.ndarray | Blocks) -> str:
    """Write an array to a file named by the array and its digest, whole or not at all; return the digest."""
    shape, dtype, digest = tuple(array.shape), np.dtype(array.dtype), start_digest(array)
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


def is_array_folder(folder: Path) -> bool:
    """Tell whether `write_arrays` wrote a folder's manifest."""
    try:
        return "arrays" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_arrays(
    folder, settings: Iterable[str], names: Iterable[str], mapped: bool = False
) -> tuple[dict, dict[str, np.ndarray]]:
    """Read what `write_arrays` wrote.

    Args:
        folder: the index's folder.
        settings: names that the manifest must hold.
        names: of the arrays to read.
        mapped: leave the arrays on disk, to be read where a search looks; their digests are then not checked.

    Returns:
        The manifest, and the arrays by name.

    Raises:
        ValueError: the folder holds something else, or a file is not what was written.
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


def start_digest(array: np.ndarray | Blocks):
    """Start a digest with an array's type and shape; the content is still to be added."""
    return blake2b(f"{np.dtype(array.dtype).str}{tuple(array.shape)}".encode(), digest_size=8)


def digest_of(array: np.ndarray) -> str:
    """Return the digest of an array: type, shape and content."""
    digest = start_digest(array)
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
