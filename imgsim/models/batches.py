"""Many images through an encoder: batches on threads, streams, and embeddings kept in the cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from imgsim.sources.cache import atomic_write, best_effort, cache_folder
from imgsim.sources.decode import open_or_error
from imgsim.sources.splits import encode_labels, image_key, labels_of, stored_images

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PREPARING = min(4, os.cpu_count() or 1)  # threads that prepare batches for a GPU


def embed_batches(sources: Sequence, size: int, prepare: Callable, forward: Callable, on_cpu: bool) -> np.ndarray:
    """Embed sources in batches of `size`, with a progress bar.

    On a CPU each thread takes its batches all the way, alone: threads that share a batch wait for one another. For a
    GPU, threads prepare the batches ahead of it.

    Args:
        sources: n images, or whatever `prepare` takes.
        size: sources per batch.
        prepare: sources -> tensor (b, ...).
        forward: tensor (b, ...) -> rows (b, d).
        on_cpu: whether `forward` runs on a CPU.

    Returns:
        Rows (n, d).
    """
    rows, threads = [], torch.get_num_threads()
    batches = (sources[first : first + size] for first in range(0, len(sources), size))
    alone = on_cpu and len(sources) > size
    work = (lambda batch: forward(prepare(batch))) if alone else prepare
    workers = threads if alone else PREPARING
    pool = ThreadPoolExecutor(workers, initializer=use_one_thread if alone else None)
    try:
        with tqdm(total=len(sources), desc="embedding", unit="image", delay=1) as bar, pool:
            waiting = deque(pool.submit(work, batch) for batch in islice(batches, workers + 1))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(work, batch) for batch in islice(batches, 1))
                rows.append(done if alone else forward(done))
                bar.update(len(rows[-1]))
    finally:
        torch.set_num_threads(threads)  # new threads inherit what the pool's set for themselves
    return np.concatenate(rows)


def count_images(images: Sequence) -> int:
    """Return how many images there are; ValueError if it is one image and no sequence."""
    if isinstance(images, (str, bytes, os.PathLike, PIL.Image.Image)):
        raise ValueError("embed takes a sequence of images; for one image: embed([image]).")
    return len(images)


def use_one_thread() -> None:
    torch.set_num_threads(1)


def embed_entries(
    encoder, images: Dataset | IterableDataset | Sequence, batch_size: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list]:
    """Embed a split, a stream or image files.

    Returns:
        Embeddings (n, d), labels (n,) or None, ids (n,) or None if they are counted, and keys (n,): paths or names of
        the images' files, None if there is none.

    Raises:
        ValueError: `images` is something else, or lacks the column `image`, or a file cannot be read.
    """
    if isinstance(images, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in images):
        return encoder.embed(images, batch_size), None, None, list(images)
    from datasets import Dataset, IterableDataset

    if isinstance(images, IterableDataset):
        embeddings, labels, ids, keys = embed_stream(encoder, images, batch_size)
        return embeddings, encode_labels(labels), ids, keys
    if not isinstance(images, Dataset):
        raise ValueError(f"build takes one split, such as images['train'], or paths, not a {type(images).__name__}.")
    keys = [image_key(image) for image in stored_images(images)]
    return encoder.embed(images, batch_size), labels_of(images), None, keys


def embed_stream(encoder, stream: IterableDataset, batch_size: int) -> tuple[np.ndarray, list, np.ndarray, list]:
    """Embed a stream with the column image, batch by batch; images that cannot be read are left out and counted.

    Returns:
        Embeddings (n, d), labels (n,), None if there is none, positions in the stream (n,) int64, and paths or names
        of the images' files (n,), None if there is none.

    Raises:
        ValueError: the stream has no column `image`.
    """
    from datasets import Image

    columns = stream.column_names or list(next(iter(stream), {}))
    if "image" not in columns:
        raise ValueError(f"The stream has no column 'image', only {', '.join(columns)}: rename one by rename_columns.")
    if stream.features:
        stream = stream.cast_column("image", Image(decode=False))
    rows, labels, positions, unreadable, seen = [np.empty((0, encoder.dim), np.float32)], [], [], {}, 0
    keys: list[str | None] = []
    with ThreadPoolExecutor() as pool, tqdm(desc="embedding a stream", unit="image", delay=1) as bar:
        for batch in stream.iter(batch_size):
            images = list(pool.map(open_or_error, batch["image"]))
            readable = [i for i, image in enumerate(images) if not isinstance(image, str)]
            unreadable |= {seen + i: reason for i, reason in enumerate(images) if isinstance(reason, str)}
            positions += [seen + i for i in readable]
            keys += [image_key(batch["image"][i]) for i in readable]
            labels += [batch["labels"][i] if "labels" in batch else None for i in readable]
            rows.append(encoder.embed([images[i] for i in readable], batch_size))
            seen += len(images)
            bar.update(len(images))
    if unreadable:
        row, reason = next(iter(unreadable.items()))
        count = len(unreadable)
        print(f"Left out {count:,} images of the stream that cannot be read, the first in row {row}: {reason}")
    return np.concatenate(rows), labels, np.array(positions, np.int64), keys


def cached_embeddings(key: str, embed: Callable[[], tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    """Return embeddings (n, d) and images per second from the cache, or make them and keep them there.

    Args:
        key: decides both; digests of images and encoder.
        embed: makes both if they are not there, or damaged.
    """
    file = cache_folder("embeddings") / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.npz"
    try:
        with np.load(file) as kept:
            return kept["embeddings"], float(kept["images_per_second"])
    except Exception:  # not there, or damaged, for which numpy and zipfile have many errors
        embeddings, images_per_second = embed()
    with best_effort(), atomic_write(file) as beside, open(beside, "wb") as stream:
        np.savez(stream, embeddings=embeddings, images_per_second=images_per_second)
    return embeddings, images_per_second
