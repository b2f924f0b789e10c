"""Near-duplicates: pairs from an index's tables, with a threshold calibrated on the images themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from imgsim.extras.duplicates.alterations import EVERYDAY, alter
from imgsim.hashing import normalise
from imgsim.index import BuildLSHTable
from imgsim.sources.decode import open_image

BATCH = 4096  # images searched with at a time
PARTNERS = 50  # of one image; if it has more, they are connected through one another
COPY_SHARE = 0.2  # of the images are taken to have a copy when precision is predicted
SAME_PICTURE = 0.88  # correlation of thumbnails above which they show one picture: different photographs stay below
REFERENCES = 500  # images compared with all others, to see how alike different ones are
NEAREST = 6  # ranks among which a copy may be that was there already


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates in an index."""

    pairs: np.ndarray  # (p, 2) ids, the smaller first
    cosines: np.ndarray  # (p,)
    groups: list[list[int]]  # ids that pairs connect, each group in order
    compared: int  # pairs whose cosine was computed, each counted once


def index_for_duplicates(encoder: Any, embeddings: np.ndarray) -> BuildLSHTable:
    """Build an index of embeddings (n, d) in which images that are not nearly the same seldom share a bucket."""
    bits = int(np.clip(np.log2(len(embeddings)), 6, 16))
    index = BuildLSHTable(encoder, hash_size=bits, num_tables=16, probes=16, rerank=PARTNERS)
    return index.build_from_embeddings(embeddings)


def check_threshold(threshold: float) -> None:
    """Raise a ValueError if a threshold is no cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but a cosine lies between -1 and 1.")


def find_duplicates(index: BuildLSHTable, threshold: float) -> Duplicates:
    """Find the pairs whose cosine is at least `threshold`, among those that share a bucket in some table."""
    check_threshold(threshold)
    import networkx

    order, pairs, cosines = np.argsort(index.ids), [], []
    for start in range(0, len(index), BATCH):
        found = index.search(index.vectors[start : start + BATCH], PARTNERS)
        rows, places = np.nonzero(found.ids >= 0)
        partners = order[np.searchsorted(index.ids, found.ids[rows, places], sorter=order)]
        pairs.append(np.sort(np.stack([rows + start, partners]), axis=0))
        cosines.append(found.cosines[rows, places])
    (a, b), cosine = np.concatenate(pairs, axis=1), np.concatenate(cosines)
    _, first = np.unique(a * len(index) + b, return_index=True)  # most pairs are found from both sides
    first = first[a[first] != b[first]]
    near = first[cosine[first] >= threshold]
    unique = np.sort(index.ids[np.stack([a[near], b[near]], axis=1)], axis=1)
    groups = networkx.connected_components(networkx.Graph(unique.tolist()))
    return Duplicates(unique, cosine[near], sorted(map(sorted, groups)), len(first))


@dataclass(frozen=True)
class Calibration:
    """What altered copies of a sample teach about thresholds."""

    cosines: np.ndarray  # (c,) of copies and their originals, NaN if they share no bucket
    copies_to_others: np.ndarray  # (o,) all cosines of copies and other images
    images_to_others: np.ndarray  # (p,) all cosines of the references and other images
    references: int  # images compared with the others as they are

    def recall(self, threshold: float) -> float:
        """Return the share of the copies that are found."""
        return float((self.cosines >= threshold).mean())

    def precision(self, threshold: float) -> float:
        """Return the share of copies among the pairs found, if a fifth of the images have one."""
        copies = COPY_SHARE * self.recall(threshold)
        wrong = (self.images_to_others >= threshold).sum() / self.references / 2  # a pair is found from both sides
        wrong_copies = (self.copies_to_others >= threshold).sum() / len(self.cosines)
        wrong += COPY_SHARE * (1 + COPY_SHARE / 2) * wrong_copies
        return float(copies / max(copies + wrong, 1e-9))

    @property
    def threshold(self) -> float:
        """The threshold with the best harmonic mean of recall and precision; the middle if there are several."""
        steps = np.arange(0.5, 1, 0.0005)
        measured = np.array([(self.recall(step), self.precision(step)) for step in steps])
        means = 2 / (1 / np.maximum(measured, 1e-9)).sum(axis=1)
        best = steps[np.isclose(means, means.max())]
        return float(best[len(best) // 2])


def calibrate(index: BuildLSHTable, images: Dataset, sample: int = 100, seed: int = 0) -> Calibration:
    """Alter a sample of the images in an index, whose ids are rows, in everyday ways, and search for the copies.

    Any other image found counts as wrong unless it looks like the original or a copy of it, pixel by pixel: then it
    is a copy that was there already.
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(images), min(sample, len(images)), replace=False)
    references = rng.choice(len(images), min(REFERENCES, len(images)), replace=False)
    copies = []
    for row in tqdm(rows.tolist(), "altering images", unit="image", delay=1):
        original = open_image(images[row]["image"])
        copies.append(index.encoder.embed([alter(original, kind) for kind in EVERYDAY], index.batch_size))
    found = index.search(np.concatenate([*copies, index.vectors[references]]), PARTNERS)
    owners, count = np.concatenate([np.repeat(rows, len(EVERYDAY)), references]), len(rows) * len(EVERYDAY)
    own = found.ids == owners[:, None]
    cosines = np.where(own.any(axis=1), np.where(own, found.cosines, -1).max(axis=1), np.nan)[:count]
    others = ~own & (found.ids >= 0)
    query, rank = np.nonzero(others[:, :NEAREST] & (found.cosines[:, :NEAREST] >= np.nanquantile(cosines, 0.05)))
    others[query, rank] = ~same_picture(images, owners[query], found.ids[query, rank])
    copies_to_others, images_to_others = found.cosines[:count][others[:count]], found.cosines[count:][others[count:]]
    return Calibration(cosines, copies_to_others, images_to_others, len(references))


def same_picture(images: Dataset, owners: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell whether the images in rows `others` (p,) look like those in `owners` (p,) or copies of them: (p,) bool."""
    rows, places = np.unique(others, return_inverse=True)
    looks, same = outlines(images.select(rows)["image"])[places], np.zeros(len(others), bool)
    for owner in np.unique(owners).tolist():
        original, mine = open_image(images[owner]["image"]), owners == owner
        original.thumbnail((256, 256))
        originals = outlines([original, *(alter(original, kind) for kind in EVERYDAY)])
        same[mine] = (looks[mine] @ originals.T).max(axis=1) > SAME_PICTURE
    return same


def outlines(images: Iterable) -> np.ndarray:
    """Turn n images into unit rows (n, 768) whose products are the correlations of their thumbnails."""
    small = [np.asarray(open_image(image).resize((16, 16)), np.float32).ravel() for image in images]
    return normalise([row - row.mean() for row in small]) if small else np.empty((0, 768), np.float32)
