"""Near-duplicates: pairs from an index's tables, and a threshold calibrated on the images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from imgsim.extras.duplicates.alterations import EVERYDAY, alter
from imgsim.hashing import normalise
from imgsim.index import BuildLSHTable
from imgsim.sources.decode import open_image

BLOCK = 4096  # images searched for at a time
PARTNERS = 50  # of one image; where there are more, they hang together through one another
SHARE = 0.2  # of the images are taken to have a copy where precision is foretold
SAME = 0.88  # correlation of thumbnails from which on they are taken for one picture: different photographs stay below
ASKED = 500  # images that are compared with all others, to see how alike different ones are
NEAREST = 6  # places in which a copy is looked for that was there already


@dataclass(frozen=True)
class Duplicates:
    """Pairs of ids (p, 2), the smaller first, and their cosines (p,); groups: ids that are connected by pairs, each
    in order; compared: how many cosines it took to find them."""

    pairs: np.ndarray
    cosines: np.ndarray
    groups: list[list[int]]
    compared: int


def index_for_duplicates(encoder, embeddings: np.ndarray, seed: int = 0) -> BuildLSHTable:
    """An index of embeddings (n, d) in which few images share a bucket that are not nearly the same."""
    bits = int(np.clip(np.log2(len(embeddings)), 6, 16))
    index = BuildLSHTable(encoder, hash_size=bits, num_tables=16, probes=16, rerank=PARTNERS, seed=seed)
    return index.build_from_embeddings(embeddings)


def find_duplicates(index: BuildLSHTable, threshold: float) -> Duplicates:
    """Find the pairs in an index whose cosine is at least `threshold`, among those that its tables bring together."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but a cosine lies between -1 and 1.")
    import networkx

    ids, pairs, cosines, compared = index.ids, [], [], 0
    for start in range(0, len(index), BLOCK):
        block = slice(start, start + BLOCK)
        found = index.search(index.vectors[block], PARTNERS)
        row, place = np.nonzero((found.cosines >= threshold) & (found.ids != ids[block, None]))
        pairs.append(np.stack([ids[block][row], found.ids[row, place]], axis=1))
        cosines.append(found.cosines[row, place])
        compared += int(found.compared_exactly.sum())
    pairs, first = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0, return_index=True)
    groups = networkx.connected_components(networkx.Graph(pairs.tolist()))
    return Duplicates(pairs, np.concatenate(cosines)[first], sorted(map(sorted, groups)), compared)


@dataclass(frozen=True)
class Calibration:
    """What copies made of a sample taught. kinds (c,) of alteration; cosines (c,) of copies and their originals, NaN
    where the tables did not bring them together; beside (o,): all cosines of copies and other images; between (p,):
    all cosines of `asked` images, as they are, and other images.
    """

    kinds: np.ndarray
    cosines: np.ndarray
    beside: np.ndarray
    between: np.ndarray
    asked: int

    def recall(self, threshold: float, kind: str | None = None) -> float:
        """The share of the copies, all or those of one kind, that are found."""
        chosen = slice(None) if kind is None else self.kinds == kind
        return float((self.cosines[chosen] >= threshold).mean())

    def precision(self, threshold: float) -> float:
        """The share of copies among the pairs that are found, where a fifth of the images have one."""
        copies = SHARE * self.recall(threshold)
        wrong = (self.between >= threshold).sum() / self.asked / 2  # a pair is met from both sides
        wrong += SHARE * (1 + SHARE / 2) * (self.beside >= threshold).sum() / len(self.cosines)
        return float(copies / max(copies + wrong, 1e-9))

    @property
    def threshold(self) -> float:
        """Where recall and precision are best together, by their harmonic mean; the middle where that is a range."""
        steps = np.arange(0.5, 1, 0.0005)
        measured = np.array([(self.recall(step), self.precision(step)) for step in steps])
        means = 2 / (1 / np.maximum(measured, 1e-9)).sum(axis=1)
        best = steps[np.isclose(means, means.max())]
        return float(best[len(best) // 2])


def calibrate(
    index: BuildLSHTable, images: Dataset, kinds: Sequence[str] = EVERYDAY, sample: int = 100, seed: int = 0
) -> Calibration:
    """Alter a sample of the images that the index holds, ids being their rows, and search it with the copies.

    What is found beside the original counts as another image, unless it looks like the original or one of its
    copies, pixel by pixel: then it is a copy that was there already.
    """
    rng = np.random.default_rng(seed)
    rows, asked = (rng.choice(len(images), min(size, len(images)), replace=False) for size in (sample, ASKED))
    copies = []
    for row in tqdm(rows.tolist(), "altering images", unit="image", delay=1):
        original = open_image(images[row]["image"])
        copies.append(index.encoder.embed([alter(original, kind) for kind in kinds], index.batch_size))
    found = index.search(np.concatenate([*copies, index.vectors[asked]]), PARTNERS)
    owners, made = np.concatenate([np.repeat(rows, len(kinds)), asked]), len(rows) * len(kinds)
    own = found.ids == owners[:, None]
    cosines = np.where(own.any(axis=1), np.where(own, found.cosines, -1).max(axis=1), np.nan)[:made]
    others = ~own & (found.ids >= 0)
    doubtful = others[:, :NEAREST] & (found.cosines[:, :NEAREST] >= np.nanquantile(cosines, 0.05))
    query, place = np.nonzero(doubtful)
    others[query, place] = ~same_picture(images, owners[query], found.ids[query, place], kinds)
    beside, between = (found.cosines[part][others[part]] for part in (slice(made), slice(made, None)))
    return Calibration(np.tile(kinds, len(rows)), cosines, beside, between, len(asked))


def same_picture(images: Dataset, owners: np.ndarray, others: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    """Whether other images (p,) look like these (p,) or like one of their altered copies: (p,) bool."""
    rows, places = np.unique(others, return_inverse=True)
    seen, same = outlines(images.select(rows)["image"]), np.zeros(len(others), bool)
    for owner in np.unique(owners).tolist():
        original, mine = open_image(images[owner]["image"]), owners == owner
        original.thumbnail((256, 256))
        looks = outlines([original, *(alter(original, kind) for kind in kinds)])
        same[mine] = (seen[places[mine]] @ looks.T).max(axis=1) > SAME
    return same


def outlines(images) -> np.ndarray:
    """Images as unit rows (n, 768) of which a product is the correlation of their thumbnails."""
    small = [np.asarray(open_image(image).resize((16, 16)), np.float32).ravel() for image in images]
    return normalise([row - row.mean() for row in small]) if small else np.empty((0, 768), np.float32)
