"""Files through an encoder, such that killed work is not lost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Lock
from zipfile import BadZipFile

import numpy as np

from imgsim.sources.cache import atomic_write, best_effort

BATCH = 1024  # images whose embeddings are written together: when work is killed, no more are lost


def embed_files(encoder, files: dict[int, str], place: Path) -> tuple[dict[int, np.ndarray], int]:
    """Embed image files.

    Args:
        encoder: see `load_encoder`.
        files: paths by content, see `content_id`.
        place: a folder in which what is done is written now and then, and looked for first.

    Returns:
        Embeddings (d,) by content, and how many had to be made.
    """
    from imgsim.models.batches import embed_batches  # torch

    done, pending, lock = read_embeddings(place, encoder.digest), {}, Lock()
    left = [(content, path) for content, path in files.items() if content not in done]

    def prepare(batch: list[tuple[int, str]]):
        return [content for content, _ in batch], encoder.prepare([path for _, path in batch])

    def forward(prepared) -> np.ndarray:
        contents, pixels = prepared
        rows = encoder.forward(pixels)
        with lock:
            pending.update(zip(contents, rows, strict=True))
            if len(pending) >= BATCH:
                keep_embeddings(place, encoder.digest, pending)
                pending.clear()
        return rows

    if left:
        rows = embed_batches(left, encoder.micro_batch(48), prepare, forward, encoder.device.type == "cpu")
        done |= {content: row for (content, _), row in zip(left, rows, strict=True)}
    return done, len(left)


def keep_embeddings(place: Path, digest: str, embeddings: dict[int, np.ndarray]) -> None:
    """Write embeddings (d,) by content, of the encoder with this digest."""
    file = place / f"{digest}-{min(embeddings)}.npz"
    with best_effort(), atomic_write(file) as beside, open(beside, "wb") as stream:
        np.savez(stream, contents=list(embeddings), embeddings=list(embeddings.values()))


def read_embeddings(place: Path, digest: str) -> dict[int, np.ndarray]:
    """Read what killed work has left, see `keep_embeddings`."""
    kept: dict[int, np.ndarray] = {}
    for file in place.glob(f"{digest}-*.npz"):
        with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(file) as arrays:
            kept |= dict(zip(arrays["contents"].tolist(), arrays["embeddings"], strict=True))
    return kept
