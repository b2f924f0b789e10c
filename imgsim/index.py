"""An encoder, a projection and hash tables together: build an index, query it, keep it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from imgsim.evaluation import normalise
from imgsim.hashing import Projection, check_settings
from imgsim.images import labels_of
from imgsim.store import read_arrays, write_arrays
from imgsim.tables import LSH

SETTINGS = ("batch_size", "hash_size", "dim", "num_tables", "seed")
ARRAYS = ("planes", "mean", "ids", "labels", "codes", "embeddings")


def compute_hash(encoder, projection: Projection) -> Callable[[dict], dict]:
    """A function for `Dataset.map(..., batched=True)` that adds a column `hashes`, L codes an image.

    It returns the new column only: images that pass through `map` would be encoded again, with loss.
    """

    def pp(example_batch: dict) -> dict:
        # From a copy: map writes back, encoded again, every column that was decoded in the batch itself.
        embeddings = normalise(encoder.embed(example_batch.copy()["image"]))
        return {"hashes": projection(embeddings).astype(np.uint64)}

    return pp


@dataclass(frozen=True, eq=False)  # Mapping's comparison, which knows other mappings
class Matches(Mapping):
    """The ranked answer to one query, best first; also a mapping {"id_label": overlap}, as in the article.

    ids (t,), labels (t,) (-1 where there is none), overlap (t,): the share of the tables in which query and
    match fall into the same bucket, cosine (t,): of their embeddings. candidates: how many the tables returned.
    """

    ids: np.ndarray
    labels: np.ndarray
    overlap: np.ndarray
    cosine: np.ndarray
    candidates: int

    def _pairs(self) -> dict[str, float]:
        names = (f"{i}_{label}" if label >= 0 else f"{i}" for i, label in zip(self.ids, self.labels, strict=True))
        return dict(zip(names, self.overlap.tolist(), strict=True))

    def __getitem__(self, id_label: str) -> float:
        return self._pairs()[id_label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class SearchResult:
    """Ranked answers to m queries: ids (m, top_k) int64 and cosines (m, top_k) float32, short rows padded with
    -1 and NaN; candidates_seen (m,) from the tables, compared_exactly (m,) by their cosine."""

    ids: np.ndarray
    cosines: np.ndarray
    candidates_seen: np.ndarray
    compared_exactly: np.ndarray


class BuildLSHTable:
    """An image index: hash tables to find candidates, exact cosines to rank them.

    model: a module (with its `processor`), a checkpoint (see `load_encoder`), an Encoder, or None where only
    embeddings are used. dim: the embeddings' length; taken from the model or the first embeddings where left
    out. The projection is fixed at the first build and drawn from `seed`.
    """

    def __init__(
        self,
        model=None,
        batch_size: int = 48,
        hash_size: int = 8,
        dim: int | None = None,
        num_tables: int = 10,
        *,
        processor=None,
        seed: int = 0,
    ):
        check_settings(hash_size, num_tables)
        self.encoder = as_encoder(model, processor)
        if self.encoder and dim not in (None, self.encoder.dim):
            raise ValueError(f"dim is {dim}, but this model's embeddings have {self.encoder.dim} dimensions.")
        self.dim = self.encoder.dim if self.encoder else dim
        settings = (int(value) for value in (batch_size, hash_size, num_tables, seed))
        self.batch_size, self.hash_size, self.num_tables, self.seed = settings
        self._clear()

    def _clear(self) -> None:
        self.lsh = LSH(self.hash_size, self.num_tables)
        self.projection: Projection | None = None
        self.embeddings: np.ndarray | None = None
        self.build_seconds: float | None = None  # projection, codes and tables

    def __len__(self) -> int:
        return len(self.lsh)

    def build(self, ds: Dataset) -> BuildLSHTable:
        """Embed, hash and store the images of one split, ids being their positions in it; returns the index."""
        if not isinstance(ds, Dataset):
            raise ValueError(f"build takes one split, such as images['train'], not a {type(ds).__name__}.")
        if self.encoder is None:
            raise ValueError("The index has no model to embed images with: give it one, or use build_from_embeddings.")
        return self.build_from_embeddings(self.encoder.embed(ds, self.batch_size), labels_of(ds))

    def build_from_embeddings(self, embeddings, labels=None, ids=None) -> BuildLSHTable:
        """Hash and store embeddings (n, d) with labels (n,) and ids (n,), by default 0 to n - 1; returns the
        index. What was in it before is replaced."""
        embeddings = self._check(embeddings)
        if not len(embeddings):
            raise ValueError("There is nothing to build an index from: the embeddings have no rows.")
        ids = np.arange(len(embeddings)) if ids is None else np.asarray(ids)
        if len(np.unique(ids)) != len(embeddings) or ids.dtype.kind not in "iu" or ids.min() < 0:
            raise ValueError(f"{len(embeddings)} embeddings need as many different ids, whole numbers from 0 on.")
        if labels is not None and np.shape(labels) != (len(embeddings),):
            raise ValueError(f"{len(embeddings)} embeddings need as many labels, not {np.shape(labels)}.")
        start = time.perf_counter()
        self._clear()
        self.dim = embeddings.shape[1]
        self.embeddings = normalise(embeddings)
        self.projection = Projection.fit(self.embeddings, self.hash_size, self.num_tables, self.seed)
        self.lsh.add(ids, self.projection(self.embeddings), labels)
        self.lsh.sort()
        self.build_seconds = time.perf_counter() - start
        return self

    def rank(self, embedding, code) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the tables return for one normalised query (d,) and its codes (L,), best first: rows (c,), in
        how many tables each shares the query's bucket (c,), and their cosines (c,)."""
        rows, votes = self.lsh.candidates(code)
        cosines = self.embeddings[rows] @ embedding
        order = np.lexsort((rows, -cosines))
        return rows[order], votes[order], cosines[order]

    def search(self, embeddings, top_k: int = 10) -> SearchResult:
        """Find the nearest candidates of every query (m, d), by exact cosine among those the tables return."""
        embeddings = normalise(self._check(embeddings))
        ids = np.full((len(embeddings), top_k), -1, np.int64)
        cosines = np.full((len(embeddings), top_k), np.nan, np.float32)
        seen = np.zeros(len(embeddings), np.int64)
        for i, (embedding, code) in enumerate(zip(embeddings, self._codes(embeddings), strict=True)):
            rows, _, values = self.rank(embedding, code)
            found = min(len(rows), top_k)
            ids[i, :found], cosines[i, :found] = self.lsh.entries.ids[rows[:top_k]], values[:top_k]
            seen[i] = len(rows)
        return SearchResult(ids, cosines, seen, seen)

    def query(self, image, top_k: int | None = 5, verbose: bool = True) -> Matches:
        """Find the images most similar to one image (a path, bytes, a PIL image or an array); top_k None: all."""
        if self.encoder is None:
            raise ValueError("The index has no model to embed images with: give it one, or use search.")
        embedding = normalise(self._check(self.encoder.embed([image])))
        rows, votes, cosines = self.rank(embedding[0], self._codes(embedding)[0])
        if verbose:
            print("Matches:", len(rows))
        best, entries = rows[:top_k], self.lsh.entries
        overlap = votes[:top_k] / self.num_tables
        return Matches(entries.ids[best], entries.labels[best], overlap, cosines[:top_k], len(rows))

    def _codes(self, embeddings: np.ndarray) -> np.ndarray:
        if self.projection is None:
            raise ValueError("The index is empty: call build or build_from_embeddings first.")
        return self.projection(embeddings)

    def _check(self, embeddings) -> np.ndarray:
        embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
        dim = self.dim or embeddings.shape[-1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"Embeddings of shape (n, {dim}) are needed, not {embeddings.shape}.")
        if not np.isfinite(embeddings).all():
            raise ValueError("The embeddings hold values that are not finite numbers.")
        return embeddings

    def save(self, folder) -> Path:
        """Write the index to a folder of its own, in place of an index that lies there."""
        if self.projection is None:
            raise ValueError("The index is empty: call build or build_from_embeddings before save.")
        entries, projection = self.lsh.entries, self.projection
        values = (projection.planes, projection.mean, entries.ids, entries.labels, self.lsh.codes, self.embeddings)
        manifest = {name: getattr(self, name) for name in SETTINGS} | {
            "count": len(self),
            "build_seconds": self.build_seconds,
        }
        manifest["encoder"] = {name: getattr(self.encoder, name, None) for name in ("name", "digest")}
        write_arrays(folder, manifest, dict(zip(ARRAYS, values, strict=True)))
        return Path(folder)

    @classmethod
    def load(cls, folder, model=None, *, processor=None) -> BuildLSHTable:
        """Read an index that `save` wrote; `model` as in the constructor, the one that it was built with.

        Raises ValueError where the folder holds no index, a file is damaged, or the model is another one.
        """
        manifest, arrays = read_arrays(folder, (*SETTINGS, "encoder"), ARRAYS)
        index = cls(None, **{name: manifest[name] for name in SETTINGS})
        index.encoder, made_with = as_encoder(model, processor), manifest["encoder"]
        if index.encoder and index.encoder.digest != made_with["digest"]:
            raise ValueError(
                f"The index {str(folder)!r} was made with the checkpoint {made_with['name']!r}, not with "
                f"{index.encoder.name!r} as it is now: load it with that one, or build it again."
            )
        if arrays["planes"].shape != (index.num_tables, index.dim, index.hash_size):
            raise ValueError(f"The index {str(folder)!r} is damaged: manifest and planes contradict each other.")
        index.projection = Projection(arrays["planes"], arrays["mean"])
        index.embeddings, index.build_seconds = arrays["embeddings"], manifest.get("build_seconds")
        index.lsh.add(arrays["ids"], arrays["codes"], arrays["labels"])
        return index


def as_encoder(model, processor=None):
    """The model argument as an encoder: None and encoders stay as they are, all else is loaded."""
    if model is None or hasattr(model, "embed"):
        return model
    from imgsim.encoder import load_encoder  # torch is loaded only where there is something to embed

    return load_encoder(model, processor=processor)
