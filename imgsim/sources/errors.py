"""Sentences for people: what an error says in one line, and which package is missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec


def first_line(error: BaseException) -> str:
    """Return what an error says, without its further explanations."""
    return str(error).strip().partition("\n")[0]


def require(packages: Sequence[str], extra: str) -> None:
    """Check that the packages of an extra are installed, before any work is done.

    Raises:
        ValueError: one is missing; the sentence says how to install it.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(f"The extra {extra!r} needs {' and '.join(missing)}: pip install {' '.join(missing)}.")
