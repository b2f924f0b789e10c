"""Places on disk and on the Hub: the cache folder, files written whole or not at all, pinned downloads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUB_TIMEOUT = 5  # seconds; without a network transformers and datasets would try for over a minute


def cache_folder(name: str = "") -> Path:
    """Where drawn images and embeddings are kept: $IMGSIM_CACHE, else ~/.cache/imgsim."""
    root = os.environ.get("IMGSIM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "imgsim"
    folder = Path(root).expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


def snapshot(name: str, kind: str) -> Path:
    """The local folder of a Hub repository, `name` or `name@revision`, downloaded once and pinned to a commit.

    kind is "model" or "dataset". The local cache is asked first, then the Hub, with a short time-out. No code
    and no pickle is downloaded. Raises ValueError for a name that the Hub does not know, ConnectionError where
    the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    option = "checkpoint" if kind == "model" else "dataset"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise ValueError(f"{option} {name!r}: there is no such folder, and a Hub id looks like owner/name.")
    patterns = ["*.json", "*.safetensors"] if kind == "model" else ["*.parquet", "README.md"]
    wanted = {"repo_id": repo, "repo_type": kind, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(**wanted, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        commit = HfApi().repo_info(repo, repo_type=kind, revision=revision or None, timeout=HUB_TIMEOUT).sha
        return Path(snapshot_download(**wanted, revision=commit))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"{option} {name!r}: there is no such folder, and the Hub shows no such {kind} and revision."
        ) from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(
            f"{option} {name!r}: there is no such folder, it is not in the local cache and the Hub cannot be "
            f"reached; without a network use {option} 'builtin' or a local folder."
        ) from error
