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
from filelock import FileLock

from imgsim.hashing import code_dtype
from imgsim.search.coder import SKETCH_BITS, as_factors
from imgsim.search.layout import has_starts
from imgsim.sources.cache import BESIDE, sync_folder, write_json

FORMAT = 5  # of an index's folder
MANIFEST = "manifest.json"
DIGEST = re.compile("[0-9a-f]{16}")
TABLES = ("codes", "rows", "starts")
ARRAYS = ("planes", "mean", "directions", "rotation", "ids", "labels", "vectors", "sketches", "keys", *TABLES)
LAZY = ("vectors", "sketches")  # of a mapped index: read where a search looks, and not checked


def array_specs(
    count: int, dim: int, hash_size: int, num_tables: int, directions: int, sketch_bits: int
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return the type and shape of each array of an index of `count` candidates, see `snapshot.Snapshot`.

    Args:
        count, dim, hash_size, num_tables: of the index.
        directions: in which the planes lie, 0 if they are random.
        sketch_bits: of each sketch.
    """
    starts = has_starts(hash_size, count)
    return {
        "planes": (np.dtype("f4"), (num_tables, dim, hash_size)),
        "mean": (np.dtype("f4"), (dim,)),
        "directions": (np.dtype("f4"), (dim, directions)),
        "rotation": (np.dtype("f4"), (dim, sketch_bits)),
        "ids": (np.dtype("i8"), (count,)),
        "labels": (np.dtype("i8"), (count,)),
        "vectors": (np.dtype("f4"), (count, dim)),
        "sketches": (np.dtype("u8"), (count, sketch_bits // 64 + 1)),
        "codes": (code_dtype(hash_size), (num_tables, 0 if starts else count)),
        "rows": (np.dtype("i4"), (num_tables, count)),
        "starts": (np.dtype("i4"), (num_tables, (1 << hash_size) + 1 if starts else 0)),
    }


def check_meaning(arrays: dict[str, np.ndarray], hash_size: int, mapped: bool) -> None:
    """Check that the arrays of an index, which have the right types and shapes, can be one.

    Raises:
        ValueError: a table lacks a row or is not sorted, an id occurs twice, or a vector is none.
    """
    count = len(arrays["ids"])
    for codes, rows, starts in zip(*(arrays[name] for name in TABLES), strict=True):
        inside = count == 0 or (rows.min() >= 0 and rows.max() < count)
        if not inside or np.bincount(rows, minlength=count).max(initial=1) != 1:
            raise ValueError("a table does not hold each row once")
        if len(starts) and not (starts[0] == 0 and starts[-1] == count and (np.diff(starts) >= 0).all()):
            raise ValueError("the buckets of a table do not follow one another")
        if len(codes) and ((codes[1:] < codes[:-1]).any() or int(codes[-1]) >> hash_size):
            raise ValueError("the codes of a table are not sorted")
    if len(np.unique(arrays["ids"])) != count or arrays["ids"].min(initial=0) < 0:
        raise ValueError("its ids are not different whole numbers")
    if arrays["rotation"].shape[1] % SKETCH_BITS or not arrays["rotation"].size:
        raise ValueError("its sketches are not whole words")
    for name in ("planes", "mean", "directions", "rotation", "vectors"):
        if not (mapped and name in LAZY) and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are no numbers")
    if not mapped:
        lengths = np.vecdot(arrays["vectors"], arrays["vectors"])
        if not ((np.abs(lengths - 1) < 1e-3) | (lengths == 0)).all():
            raise ValueError("its vectors do not have length 1")
        if not np.isfinite(as_factors(arrays["sketches"])[:, -2:]).all():
            raise ValueError("sketches holds values that are no numbers")


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
    folder = Path(folder).expanduser()
    own = re.compile(rf"\.lock|\.?[\d-]*({'|'.join(arrays)})-[0-9a-f]{{16}}\.npy")
    there = [path.name for path in folder.iterdir()] if folder.exists() and not is_array_folder(folder) else []
    if not all(own.fullmatch(name) or BESIDE.fullmatch(name) for name in there):
        raise ValueError(f"{str(folder)!r} holds other files: an index wants a folder of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of two that save at once, the later one wins whole
        digests = {name: write_array(folder, name, array) for name, array in arrays.items()}
        libraries = {name: version(name) for name in ("numpy", "torch", "transformers")}
        sync_folder(folder)  # the arrays are on disk before the manifest names them
        content = {"format": FORMAT} | manifest | {"versions": libraries, "arrays": digests}
        write_manifest(folder, content)
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
            stream.flush()
            os.fsync(stream.fileno())
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
        mapped: leave the arrays on disk; those that are LAZY are read where a search looks, and not checked.

    Returns:
        The manifest, and the arrays by name.

    Raises:
        ValueError: the folder holds something else, or a file is not what was written.
    """
    folder, before = Path(folder).expanduser(), None
    while True:
        manifest = read_manifest(folder, settings, names)
        try:
            return manifest, {name: read_array(folder, name, manifest["arrays"][name], mapped) for name in names}
        except ValueError:
            if manifest == before:
                raise
            before = manifest  # another process may have saved meanwhile: look once more


def read_manifest(folder: Path, settings: Iterable[str], names: Iterable[str]) -> dict:
    """Read the manifest of a folder that `write_arrays` wrote, see `read_arrays`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, and this version reads {FORMAT}")
        if not all(DIGEST.fullmatch(manifest["arrays"][name]) for name in {*names, *manifest["arrays"]}):
            raise ValueError("the names of its arrays are not digests")
        _ = [manifest[name] for name in settings]
        if manifest["digest"] != manifest_digest(manifest):
            raise ValueError(f"{MANIFEST} was changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error!r} is missing from {MANIFEST}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{str(folder)!r} holds no index that can be read: {reason}.") from error
    return manifest


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write a manifest, sealed with a digest of itself."""
    write_json(folder / MANIFEST, manifest | {"digest": manifest_digest(manifest)})


def manifest_digest(manifest: dict) -> str:
    """Return a digest of a manifest's content, but for that digest itself."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_array(folder: Path, name: str, digest: str, mapped: bool) -> np.ndarray:
    """Read an array that `write_array` wrote, see `read_arrays`."""
    file = folder / f"{name}-{digest}.npy"
    try:
        # Copy on write: compiled code knows no array that must not be written to.
        array = np.asarray(np.load(file, "c" if mapped else None, allow_pickle=False))
        whole = (mapped and name in LAZY) or digest_of(array) == digest
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):
        whole = False
    if not whole:
        raise ValueError(f"The index is damaged: {str(file)!r} is missing, cut short or changed; build it again.")
    return array


def start_digest(array: np.ndarray | Blocks):
    """Start a digest with an array's type and shape; the content is still to be added."""
    return blake2b(f"{np.dtype(array.dtype).str}{tuple(array.shape)}".encode(), digest_size=8)


def digest_of(array: np.ndarray) -> str:
    """Return the digest of an array: type, shape and content."""
    digest = start_digest(array)
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
