"""The image files of a folder: what they hold, which are new, and which cannot be read."""

from __future__ import annotations

import os
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from imgsim.sources.decode import reason, why_unreadable
from imgsim.sources.folder import file_signature, find_images


class File(NamedTuple):
    """What is known of a file.

    Attributes:
        signature: changes when the file does, see `file_signature`.
        content: stands for its bytes, see `content_id`; None if it cannot be read.
        problem: why it holds no image, or None.
    """

    signature: str | None
    content: int | None
    problem: str | None


def content_id(content: bytes) -> int:
    """Return a whole number of 63 bits that stands for these bytes."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1


def entry_id(name: str, content: int) -> int:
    """Return the id in the index of a file with this name and `content_id`."""
    return content_id(os.fsencode(f"{content} {name}"))


def examine_files(folder: Path, before: dict[str, File], known: Container[int]) -> dict[str, File]:
    """Find the images in a folder and read those that are new or changed.

    Args:
        folder: of the images.
        before: what the last call returned.
        known: contents that need not be decoded to see whether they can be.

    Returns:
        The files by their paths relative to the folder.
    """

    def examine(path: Path) -> tuple[int | None, str | None]:
        try:
            if not path.is_file():
                path.lstat()  # says why, if it is not there
                return None, "not a regular file" if not path.is_dir() else "a folder that is empty or cannot be read"
            content = path.read_bytes()
        except OSError as error:
            return None, reason(error)
        number = content_id(content)
        return number, None if number in known else why_unreadable(content)

    paths = {str(path.relative_to(folder)): path for path in find_images(folder)}
    signatures = {name: file_signature(path, folder) for name, path in paths.items()}
    same = {name: old for name, old in before.items() if old.signature and old.signature == signatures.get(name)}
    new = [name for name in paths if name not in same]
    with ThreadPoolExecutor() as pool:
        examined = pool.map(examine, [paths[name] for name in new])
        found = list(tqdm(examined, "checking files", len(new), unit="file", delay=1))
    same |= {name: File(signatures[name], *content) for name, content in zip(new, found, strict=True)}
    return {name: same[name] for name in paths}
