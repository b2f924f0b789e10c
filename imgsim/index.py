"""An encoder, a projection and hash tables together: build an index, query it, keep it."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset

from imgsim.evaluation import normalise
from imgsim.hashing import Projection, check_settings, code_dtype, whole
from imgsim.images import labels_of
from imgsim.search.candidates import Candidates, Matches, SearchResult
from imgsim.search.kernels import search_block
from imgsim.sources.cache import read_arrays, write_arrays
from imgsim.sources.parquet import embed_stream
from imgsim.tables import LSH

SETTINGS = ("batch_size", "hash_size", "dim", "num_tables", "seed", "probes", "rerank")
DRIFT = 0.25  # of the spread: from here on the planes no longer divide the candidates evenly
ABOUT = "the checkpoint {name!r} ({pooling}, {dtype})"  # an encoder in a sentence
UNKNOWN = dict.fromkeys(("name", "digest", "pooling", "dtype"))
ARRAYS = ("planes", "mean", "ids", "labels", "signatures", "embeddings", "codes", "rows", "starts")


def compute_hash(encoder, projection: Projection) -> Callable[[dict], dict]:
    """A function for `Dataset.map(..., batched=True)` that adds a column `hashes`, L codes an image.

    It returns the new column only: images that pass through `map` would be encoded again, with loss.
    """

    def pp(example_batch: dict) -> dict:
        # From a copy: map writes back, encoded again, every column that was decoded in the batch itself.
        embeddings = normalise(encoder.embed(example_batch.copy()["image"]))
        return {"hashes": projection(embeddings).astype(np.uint64)}

    return pp


class BuildLSHTable:
    """An image index. A search has three stages, each with its own switch:

    1. look-up: the candidates in the query's bucket of each table and in `probes` more buckets of it, those that
       lie nearest to the query (query-directed multi-probe, Lv et al. 2007);
    2. ranking: the candidates are ordered by the Hamming distance of their signatures, all bits of all tables;
    3. comparison: the `rerank` first of them (None: all) are compared with the query by their exact cosine.

    model: a module (with its `processor`), a checkpoint (see `load_encoder`), an Encoder, or None where only
    embeddings are used. dim: the embeddings' length; taken from the model or the first embeddings where left
    out. The projection is fixed at the first build and drawn from `seed`; probes and rerank may be set at any time.
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
        probes: int = 8,
        rerank: int | None = 200,
    ):
        check_settings(hash_size, num_tables)
        self.encoder = as_encoder(model, processor)
        if self.encoder and dim not in (None, self.encoder.dim):
            raise ValueError(f"dim is {dim}, but this model's embeddings have {self.encoder.dim} dimensions.")
        self.dim = self.encoder.dim if self.encoder else dim
        settings = (int(value) for value in (batch_size, hash_size, num_tables, seed))
        self.batch_size, self.hash_size, self.num_tables, self.seed = settings
        self.probes = whole("probes", probes, 0)
        self.rerank = None if rerank is None else whole("rerank", rerank, 0)
        self._candidates: Candidates | None = None
        self.build_seconds: float | None = None  # projection, codes and tables

    def __len__(self) -> int:
        return len(self._built().lsh) if self._candidates else 0

    @property
    def lsh(self) -> LSH:
        """The hash tables."""
        return self._built().lsh

    @property
    def projection(self) -> Projection:
        """Planes and mean, fixed at the first build."""
        return self._built().projection

    @property
    def embeddings(self) -> np.ndarray:
        """The candidates as unit rows (n, d)."""
        return self._built().points

    def build(self, ds: Dataset | IterableDataset) -> BuildLSHTable:
        """Embed, hash and store the images of one split, ids being their positions in it; returns the index.

        Of a stream (load_dataset(..., streaming=True)) with the columns image and, where there are classes, labels,
        nothing is kept but the embeddings.
        """
        if not isinstance(ds, (Dataset, IterableDataset)):
            raise ValueError(f"build takes one split, such as images['train'], not a {type(ds).__name__}.")
        if self.encoder is None:
            raise ValueError("The index has no model to embed images with: give it one, or use build_from_embeddings.")
        if isinstance(ds, IterableDataset):
            return self.build_from_embeddings(*embed_stream(self.encoder, ds, self.batch_size))
        return self.build_from_embeddings(self.encoder.embed(ds, self.batch_size), labels_of(ds))

    def build_from_embeddings(self, embeddings, labels=None, ids=None) -> BuildLSHTable:
        """Hash and store embeddings (n, d) with labels (n,) and ids (n,), by default 0 to n - 1; returns the
        index. What was in it before is replaced."""
        embeddings = self._check(embeddings)
        if not len(embeddings):
            raise ValueError("There is nothing to build an index from: the embeddings have no rows.")
        ids = self._check_entries(embeddings, ids, labels)
        start = time.perf_counter()
        points = normalise(embeddings)
        candidates = Candidates(Projection.fit(points, self.hash_size, self.num_tables, self.seed))
        candidates.insert(points, ids, labels)
        candidates.lsh.arrays()
        self.dim, self._candidates = embeddings.shape[1], candidates
        self.build_seconds = time.perf_counter() - start
        self._warm_up()
        return self

    def add(self, embeddings, labels=None, ids=None) -> None:
        """Add embeddings (n, d) under the projection as it is; ids (n,) by default go on where the largest ends."""
        embeddings, known = self._check(embeddings), self.lsh.entries.ids
        ids = self._check_entries(embeddings, ids, labels, first=known.max(initial=-1) + 1)
        if np.isin(ids, known).any():
            raise ValueError(f"The id {ids[np.isin(ids, known)][0]} is in the index already; remove it first.")
        self._built().insert(normalise(embeddings), ids, labels)
        spread = np.sqrt(max(1 - np.square(self.projection.mean).sum(), 1e-6))
        drift = np.linalg.norm(self._built().mean - self.projection.mean) / spread
        if drift > DRIFT:
            warnings.warn(
                f"The embeddings' mean has moved by {drift:.0%} of their spread since the projection was fixed; "
                "build the index again to centre it anew.",
                stacklevel=2,
            )

    def remove(self, ids) -> None:
        """Remove entries by their ids (n,)."""
        ids, known = np.atleast_1d(ids), self.lsh.entries.ids
        if not np.isin(ids, known).all():
            raise ValueError(f"There is no id {ids[~np.isin(ids, known)][0]} in the index.")
        self._built().keep(~np.isin(known, ids))

    def _warm_up(self) -> None:
        """Compile the search now, and say so where it has not been compiled on this machine yet."""
        kept = Path(search_block._cache.cache_path)
        if not any(kept.glob("kernels.search_block*.nbi")):
            print("Compiling the search, once on this machine (some ten seconds).", file=sys.stderr)
        self._built().search(self.embeddings[:1], 1, self.probes, self.rerank)

    def search(self, embeddings, top_k: int = 10) -> SearchResult:
        """Find the nearest candidates of every query (m, d); what is seen of them, the stages decide."""
        points = normalise(self._check(embeddings))
        rows, cosines, seen, compared = self._built().search(points, top_k, self.probes, self.rerank)
        ids = np.where(rows >= 0, self.lsh.entries.ids[rows], -1) if len(self) else rows
        return SearchResult(ids, cosines, seen, compared)

    def tune(self, embeddings, recall: float = 0.9, top_k: int = 10):
        """Find the cheapest settings that reach a recall on queries (m, d); see tuning.tune."""
        from imgsim.extras.tuning import tune

        return tune(self, embeddings, recall, top_k)

    def query(self, image, top_k: int | None = 5, verbose: bool = True) -> Matches:
        """Find the images most similar to one image (a path, bytes, a PIL image or an array); top_k None: all."""
        if self.encoder is None:
            raise ValueError("The index has no model to embed images with: give it one, or use search.")
        point, candidates = normalise(self._check(self.encoder.embed([image]))), self._built()
        best = candidates.search(point, max(len(self), 1) if top_k is None else top_k, self.probes, self.rerank)
        rows, cosines, seen, compared = (array[0] for array in best)
        if verbose:
            print("Matches:", seen)
        rows, entries = rows[:compared], self.lsh.entries
        overlap = candidates.overlap(point, rows)
        return Matches(entries.ids[rows], entries.labels[rows], overlap, cosines[:compared], int(seen))

    def _built(self) -> Candidates:
        if self._candidates is None:
            raise ValueError("The index is empty: call build or build_from_embeddings first.")
        return self._candidates

    def _check_entries(self, embeddings, ids, labels, first: int = 0) -> np.ndarray:
        """The ids (n,), counted from `first` where there are none; a ValueError where they or the labels do not fit."""
        if labels is not None and np.shape(labels) != (len(embeddings),):
            raise ValueError(f"{len(embeddings)} embeddings need as many labels, not {np.shape(labels)}.")
        if ids is None:
            return np.arange(first, first + len(embeddings))
        ids = np.atleast_1d(ids)
        whole_numbers = ids.dtype.kind in "iu" and ids.astype(np.int64).min(initial=0) >= 0
        if not whole_numbers or ids.shape != np.unique(ids).shape or len(ids) != len(embeddings):
            raise ValueError(
                f"{len(embeddings)} embeddings need as many different ids, whole numbers from 0 to 2^63 - 1."
            )
        return ids

    def _check(self, embeddings) -> np.ndarray:
        embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
        dim = self.dim or embeddings.shape[-1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"Embeddings of shape (n, {dim}) are needed, not {embeddings.shape}.")
        if not np.isfinite(embeddings).all():
            raise ValueError("The embeddings hold values that are not finite numbers.")
        return embeddings

    def arrays(self) -> dict[str, np.ndarray]:
        """All that decides the index's answers, by name: planes, mean, ids, labels, signatures, embeddings, and the
        tables' codes, rows and starts (see LSH.arrays)."""
        candidates, entries, projection = self._built(), self.lsh.entries, self.projection
        values = (projection.planes, projection.mean, entries.ids, entries.labels, candidates.signatures)
        return dict(zip(ARRAYS, (*values, candidates.points, *candidates.lsh.arrays()), strict=True))

    def save(self, folder) -> Path:
        """Write the index to a folder of its own, in place of an index that lies there."""
        arrays = self.arrays()
        manifest = {name: getattr(self, name) for name in SETTINGS}
        manifest |= {"count": len(self), "build_seconds": self.build_seconds}
        manifest["encoder"] = self.encoder.about() if self.encoder else UNKNOWN
        write_arrays(folder, manifest, arrays)
        return Path(folder)

    @classmethod
    def load(cls, folder, model=None, *, processor=None, mapped: bool = False) -> BuildLSHTable:
        """Read an index that `save` wrote; `model` as in the constructor, the one that it was built with.

        mapped: leave it on disk, where a search reads only what it looks at: opens at once, whatever the size, and
        several processes share one copy in memory. Files are then not read through to see whether they are whole.
        Raises ValueError where the folder holds no index, a file is damaged, or the model is another one.
        """
        manifest, arrays = read_arrays(folder, (*SETTINGS, "encoder"), ARRAYS, mapped)
        index = cls(None, **{name: manifest[name] for name in SETTINGS})
        index.encoder, made_with = as_encoder(model, processor), manifest["encoder"]
        if index.encoder and index.encoder.digest != made_with["digest"]:
            raise ValueError(
                f"The index {str(folder)!r} was made with {ABOUT.format_map(UNKNOWN | made_with)}, not with "
                f"{ABOUT.format_map(index.encoder.about())} as it is now: load it with that one, or build it again."
            )
        wanted = kinds(len(arrays["ids"]), index.dim, index.hash_size, index.num_tables)
        if wrong := [name for name, kind in wanted.items() if (arrays[name].dtype, arrays[name].shape) != kind]:
            raise ValueError(f"The index {str(folder)!r} is damaged: manifest and {wrong[0]} contradict each other.")
        index.build_seconds = manifest.get("build_seconds")
        index._candidates = Candidates(Projection(arrays["planes"], arrays["mean"]))
        index._candidates.fill(**{name: arrays[name] for name in ARRAYS[2:]})
        index._warm_up()
        return index


def kinds(count: int, dim: int, hash_size: int, num_tables: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of each of an index's ARRAYS."""
    buckets = 1 << hash_size
    direct = buckets <= count  # see Table
    shapes = (
        ("f4", num_tables, dim, hash_size),
        ("f4", dim),
        ("i8", count),
        ("i8", count),
        ("u8", count, -(-hash_size * num_tables // 64)),
        ("f4", count, dim),
        (code_dtype(hash_size), num_tables, 0 if direct else count),
        ("i4", num_tables, count),
        ("i4", num_tables, buckets + 1 if direct else 0),
    )
    return {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, *shape) in zip(ARRAYS, shapes, strict=True)}


def as_encoder(model, processor=None):
    """The model argument as an encoder: None and encoders stay as they are, all else is loaded."""
    if model is None or hasattr(model, "embed"):
        return model
    from imgsim.encoder import load_encoder  # torch is loaded only where there is something to embed

    return load_encoder(model, processor=processor)
