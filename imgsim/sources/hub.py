"""Pinned downloads from the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CHECKPOINT_FILES = ["*.json", "*.safetensors"]
HUB_TIMEOUT = 5  # seconds; without a network transformers and datasets would try for over a minute


def locate(name: str, kind: str) -> Path:
    """Find the local folder of a "dataset" or "checkpoint"; a repository is pinned to a commit and downloaded once.

    Args:
        name: a folder, or a repository of the Hub, `owner/name` or `owner/name@revision`: the local cache is asked
            first, then the Hub, with a short time-out. Neither code nor pickles are downloaded.
        kind: which of the two.

    Raises:
        ValueError: there is neither such a folder nor such a repository.
        ConnectionError: the Hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file():
        raise ValueError(f"{kind} {name!r} is a file: name a folder, or a repository of the Hub.")
    from huggingface_hub import HfApi, errors, snapshot_download

    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", repo):
        raise ValueError(f"{kind} {name!r}: there is no such folder, and a Hub id looks like owner/name.")
    repo_type, patterns = ("dataset", ["*.parquet", "README.md"]) if kind == "dataset" else ("model", CHECKPOINT_FILES)
    wanted: dict[str, Any] = {"repo_id": repo, "repo_type": repo_type, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(**wanted, revision=revision or None, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    try:
        commit = HfApi().repo_info(repo, repo_type=repo_type, revision=revision or None, timeout=HUB_TIMEOUT).sha
        return Path(snapshot_download(**wanted, revision=commit))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"{kind} {name!r}: there is no such folder here, nor such a {repo_type} on the Hub."
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise ConnectionError(
            f"{kind} {name!r}: there is no such folder, it is not in the local cache and the Hub cannot be "
            f"reached; without a network use {kind} 'builtin' or a local folder."
        ) from error
