"""The cache folder, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

BESIDE = re.compile(r"\.imgsim-[0-9a-f]{16}\..*")  # a file that is being written, or that a kill has left
DAY = 86400  # seconds


def cache_folder(name: str = "") -> Path:
    """Return a folder of the cache, made if it is missing: $IMGSIM_CACHE, else ~/.cache/imgsim, or a folder in it."""
    root = os.environ.get("IMGSIM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "imgsim"
    try:
        folder = Path(root).expanduser() / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a place that cannot be written to, or no home
        folder = Path(temporary_cache().name, name)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def temporary_cache() -> TemporaryDirectory:
    """Make a cache that lasts as long as the process, and say so."""
    warnings.warn("There is no place for a cache, and nothing is kept: IMGSIM_CACHE can name one.", stacklevel=3)
    return TemporaryDirectory(prefix="imgsim-")


def outlives_process(path: Path) -> bool:
    """Tell whether a path in the cache stays when the process ends."""
    return not (temporary_cache.cache_info().currsize and path.is_relative_to(temporary_cache().name))


@contextmanager
def best_effort() -> Iterator[None]:
    """Write to the cache if that is possible; if not, say so and go on."""
    try:
        yield
    except OSError as error:
        # From this line whoever asked: said once, however many files cannot be written.
        warnings.warn(f"The cache {str(cache_folder())!r} cannot be written to: {error.strerror}.", stacklevel=1)


def cache_megabytes() -> float:
    """Return the size of the cache in MB."""
    return sum(file.lstat().st_size for file in cache_folder().rglob("*") if file.is_file()) / 1e6


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to that replaces `path` at the end, or vanishes on an error; old remains are removed.

    Raises:
        ValueError: `path` is a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: a file has to be named.")
    for remains in path.parent.glob(".imgsim-*"):
        with suppress(OSError):  # another process may remove it, too
            if BESIDE.fullmatch(remains.name) and remains.lstat().st_mtime < time.time() - DAY:
                remains.unlink()
    # Threads, and containers with one cache, share a process number.
    beside = path.with_name(f".imgsim-{token_hex(8)}{path.suffix}")
    try:
        yield beside
        with open(beside, "r+b") as stream:
            os.fsync(stream.fileno())  # on disk before its name is: a power failure leaves the old file or the new
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names of files in a folder survive a power failure, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write content as indented JSON, whole or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
