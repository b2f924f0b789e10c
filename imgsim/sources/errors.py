"""Errors in one line: what one says, what was left out, and what is missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from importlib.util import find_spec

INSTALLED_AS = {"ray": "ray[data]", "faiss": "faiss-cpu"}  # modules whose name for pip is another


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().partition("\n")[0]


def say(error: Exception) -> str:
    """Return what an error says to somebody at a command line, in one sentence."""
    said = str(getattr(error, "evalue", error)).strip()  # a notebook's error says more than its execution's
    if any(os.strerror(full) in said for full in (errno.ENOSPC, errno.EDQUOT)):
        return "The disk is full: make room on it, or let --output or IMGSIM_CACHE name another place."
    if isinstance(error, FileNotFoundError) and error.filename is None:  # what os.getcwd raises
        return "The folder that this was started in is gone: change to another one."
    return said.partition("\n")[0] or f"stopped by {getattr(error, 'ename', type(error).__name__)}"


def print_skipped(skipped: Sequence[dict[str, str]], total: int) -> None:
    """Print which of all images, as [{"path", "reason"}], were left out, if any was."""
    if skipped:
        shown = "; ".join(f"{entry['path']!r} ({entry['reason']})" for entry in skipped[:5])
        more = f"; and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        print(f"Left out {len(skipped):,} of {total:,} images: {shown}{more}")


def require(modules: Sequence[str], extra: str) -> None:
    """Check that an extra's modules, named as they are imported, are installed; ValueError with the command if not."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        packages = " ".join(f'"{INSTALLED_AS[name]}"' if name in INSTALLED_AS else name for name in missing)
        raise ValueError(f"{', '.join(missing)} (extra {extra!r}) must be installed first: pip install {packages}")
