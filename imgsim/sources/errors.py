"""Errors in one line: what one says, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

INSTALLED_AS = {"ray": "ray[data]"}  # modules whose name for pip is another


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().partition("\n")[0]


def require(modules: Sequence[str], extra: str) -> None:
    """Check that an extra's modules, named as they are imported, are installed; ValueError with the command if not."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        packages = " ".join(f'"{INSTALLED_AS[name]}"' if name in INSTALLED_AS else name for name in missing)
        raise ValueError(f"{', '.join(missing)} (extra {extra!r}) must be installed first: pip install {packages}")
