"""The names of datasets and checkpoints: owner/name@revision?split=train, untrained:name, file.onnx."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlencode

OPTIONS = ("config", "split", "image", "label")
UNTRAINED = "untrained:"  # before a checkpoint's name: the same network with random weights


def split_source(source: str) -> tuple[str, dict[str, str]]:
    """Split owner/name?split=train&label=species into name and options; ValueError if an option is not known."""
    name, mark, query = source.partition("?")
    if not mark or Path(source).expanduser().is_dir():
        return source, {}
    try:
        pairs = parse_qsl(query, strict_parsing=True)
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    if not pairs or len(options) < len(pairs) or not set(options) <= set(OPTIONS):
        raise ValueError(
            f"dataset {source!r}: after the question mark come {', '.join(f'{key}=...' for key in OPTIONS)}, "
            "each at most once, with & between them."
        )
    if name == "builtin":
        raise ValueError(f"dataset {source!r}: the built-in images take no options.")
    return name, options


def join_source(name: str, options: dict[str, str]) -> str:
    """Join a dataset's name and its options: the inverse of `split_source`."""
    return f"{name}?{urlencode(options)}" if options else name


def add_options(source: str, revision: str | None = None, **options: str | None) -> str:
    """Add a revision and options to a dataset's name; ValueError if it has one already, or cannot have it."""
    name, present = split_source(source)
    added = {key: value for key, value in options.items() if value is not None}
    twice = sorted(set(present) & set(added))
    if name == "builtin" and (added or revision):
        raise ValueError("The built-in images take neither a revision nor a split nor columns.")
    if revision and Path(name).expanduser().is_dir():
        raise ValueError(f"dataset {source!r} is a folder: it has no revisions.")
    if twice or (revision and "@" in name):
        raise ValueError(f"dataset {source!r} already says which {twice[0] if twice else 'revision'} to take.")
    return join_source(f"{name}@{revision}" if revision else name, present | added)


def split_checkpoint(checkpoint: str) -> tuple[str, str]:
    """Split a checkpoint's name into the prefix "untrained:" or "" and the rest."""
    name = checkpoint.removeprefix(UNTRAINED)
    return checkpoint[: len(checkpoint) - len(name)], name


def whole_name(checkpoint: str) -> str:
    """Return the name of a checkpoint, with the whole path if it is a folder or file."""
    prefix, name = split_checkpoint(checkpoint)
    path = Path(name).expanduser()
    return f"{prefix}{path.resolve()}" if name != "builtin" and path.exists() else checkpoint


def is_onnx(checkpoint) -> bool:
    """Tell whether a checkpoint is named as an ONNX file."""
    return str(checkpoint).endswith(".onnx")
