"""An encoder, a projection and hash tables together: build an index, query it, keep it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imgsim.hashing import Projection, check_integer, check_settings, normalise
from imgsim.search.answers import Matches, SearchResult
from imgsim.search.candidates import Candidates
from imgsim.search.coder import Coder, draw_rotation
from imgsim.search.layout import default_hash_size
from imgsim.search.principal import check_planes, fit_projection
from imgsim.search.snapshot import Snapshot
from imgsim.tables import LSH

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SETTINGS = ("batch_size", "hash_size", "dim", "num_tables", "planes", "seed", "probes", "rerank")
DRIFT = 0.25  # of the spread: from here on the planes no longer divide the candidates evenly
NO_ENCODER = dict.fromkeys(("name", "digest", "pooling", "dtype"))  # what an index remembers if it has none


class BuildLSHTable:
    """An image index. A search has three stages, each with its own switch:

    1. look-up: the candidates in the query's bucket of each table and in its `probes` next nearest buckets there
       (query-directed multi-probe, Lv et al. 2007);
    2. ranking: a sketch of each candidate, one bit per direction, estimates its cosine (RaBitQ, Gao and Long 2024);
    3. comparison: the `rerank` first of them (None: all) are compared with the query by their exact cosine. If there
       are no more candidates than that, all are compared, seen or not.

    The projection is fixed at the first build; probes and rerank may be set at any time.

    Args:
        model: a checkpoint (see `load_encoder`), an Encoder, a module with its `processor`, or None if only embeddings
            are used.
        batch_size: images embedded at a time.
        hash_size: bits per code; by default they follow the number of candidates.
        dim: length of the embeddings; by default that of the model, or of the first embeddings.
        num_tables: independent tables.
        planes: "principal", rotated within the directions in which the candidates differ most, or "random".
        seed: of planes and sketches.
        probes: extra buckets looked up per table.
        rerank: candidates compared exactly per query.

    Raises:
        ValueError: a setting is impossible, or the model cannot embed images.
    """

    def __init__(
        self,
        model=None,
        batch_size: int = 48,
        hash_size: int | None = None,
        dim: int | None = None,
        num_tables: int = 10,
        *,
        processor=None,
        planes: str = "principal",
        seed: int = 0,
        probes: int = 8,
        rerank: int | None = 200,
    ):
        check_settings(1 if hash_size is None else hash_size, num_tables)
        check_planes(planes)
        self._encoder, self._made_with = as_encoder(model, processor), NO_ENCODER
        if self._encoder and dim not in (None, self._encoder.dim):
            raise ValueError(f"dim is {dim}, but this model's embeddings have {self._encoder.dim} dimensions.")
        self.dim = self._encoder.dim if self._encoder else dim
        self.batch_size, self.planes = check_integer(batch_size, "batch_size", 1), planes
        self.hash_size, self.num_tables = hash_size and int(hash_size), int(num_tables)
        self.seed, self._given_size = check_integer(seed, "seed", 0), self.hash_size
        self.probes = check_integer(probes, "probes", 0)
        self.rerank = None if rerank is None else check_integer(rerank, "rerank", 0)
        self.build_seconds: float | None = None  # projection, codes and tables
        self._candidates: Candidates | None = None

    def __len__(self) -> int:
        return len(self._candidates.current) if self._candidates else 0

    @property
    def encoder(self):
        """What embeds images: the model given, or the checkpoint that a loaded index was made with, or None."""
        if self._encoder is None and self._made_with["name"]:
            self._encoder = encoder_that_made("The index", self._made_with)
        return self._encoder

    @property
    def snapshot(self) -> Snapshot:
        """All arrays of the index as they are now."""
        return self._built().snapshot

    @property
    def lsh(self) -> LSH:
        """The hash tables as the article has them, for reading."""
        return self._built().lsh

    @property
    def projection(self) -> Projection:
        """Planes and mean, fixed at the first build."""
        return self._built().current.projection

    @property
    def ids(self) -> np.ndarray:
        """The candidates' ids (n,)."""
        return self.snapshot.ids

    @property
    def labels(self) -> np.ndarray:
        """The candidates' labels (n,), -1 if there is none."""
        return self.snapshot.labels

    @property
    def keys(self) -> np.ndarray:
        """What the candidates are called (n,): texts such as paths, "" if there is none."""
        return self.snapshot.keys

    @property
    def vectors(self) -> np.ndarray:
        """The candidates' embeddings scaled to length 1 (n, d)."""
        return self.snapshot.vectors

    def build(self, ds: Dataset | IterableDataset | Sequence[str | os.PathLike]) -> BuildLSHTable:
        """Embed, hash and store images; ids are their positions, keys the paths of their files. Returns the index.

        Args:
            ds: a split with the columns image and, if there are classes, labels; of a stream (load_dataset(...,
                streaming=True)) nothing is kept but the embeddings. Or a list of image files.
        """
        if self.encoder is None:
            raise ValueError("The index has no model to embed images with: give it one, or use build_from_embeddings.")
        from imgsim.models.batches import embed_entries  # torch

        return self.build_from_embeddings(*embed_entries(self.encoder, ds, self.batch_size))

    def build_from_embeddings(self, embeddings, labels=None, ids=None, keys=None) -> BuildLSHTable:
        """Hash and store embeddings (n, d) with labels, ids (by default 0 to n - 1) and keys, see `add`.

        They replace what was in the index. Returns the index.
        """
        embeddings = self._check_embeddings(embeddings)
        if not len(embeddings):
            raise ValueError("There is nothing to build an index from: the embeddings have no rows.")
        start = time.perf_counter()
        vectors = normalise(embeddings)
        hash_size = self._given_size or default_hash_size(len(vectors))
        projection = fit_projection(vectors, hash_size, self.num_tables, self.seed, self.planes)
        coder = Coder(projection, draw_rotation(vectors.shape[1], self.seed))
        candidates = Candidates.build(coder, vectors, ids, labels, keys)
        self.dim, self.hash_size, self._candidates = embeddings.shape[1], hash_size, candidates
        self._made_with = self._encoder.describe() if self._encoder else self._made_with
        self.build_seconds = time.perf_counter() - start
        candidates.snapshot.warm_up()
        return self

    def add(self, embeddings, labels=None, ids=None, keys=None) -> None:
        """Add embeddings (n, d) under the projection as it is.

        Args:
            embeddings: (n, d) as the model gives them.
            labels: (n,) whole numbers, None or NaN for none; or None.
            ids: (n,) different whole numbers; by default they continue from the largest.
            keys: (n,) texts such as paths, None or "" for none; or None.
        """
        self._built().add(normalise(self._check_embeddings(embeddings)), ids, labels, keys)
        drift = self.drift()
        if drift > DRIFT:
            warnings.warn(
                f"The embeddings' mean has moved by {drift:.0%} of their spread since the projection was fixed; "
                "build the index again to centre it anew.",
                stacklevel=2,
            )

    def remove(self, ids) -> None:
        """Remove entries by their ids (n,) or keys (n,), or by a mask (all entries,) of those to remove."""
        self._built().remove(ids)

    def drift(self) -> float:
        """Return how far the vectors' mean has moved since the projection was fixed, as a share of their spread."""
        spread = np.sqrt(max(1 - np.square(self.projection.mean).sum(), 1e-6))
        return float(np.linalg.norm(self._built().mean - self.projection.mean) / spread)

    def search(self, embeddings, top_k: int = 10) -> SearchResult:
        """Find the nearest candidates of every query embedding (m, d) among those that the stages let through."""
        now = self._built().current
        queries = normalise(self._check_embeddings(embeddings))
        rows, cosines, seen, compared = now.search(queries, top_k, self.probes, self.rerank)
        return SearchResult(np.where(rows < 0, -1, now.ids[rows]), cosines, seen, compared, rows, now.keys)

    def query(self, image, top_k: int | None = 5, verbose: bool = True) -> Matches:
        """Find the images most similar to one image (a path, bytes, a PIL image or an array); top_k None: all."""
        if self.encoder is None:
            raise ValueError("The index has no model to embed images with: give it one, or use search.")
        query, now = normalise(self._check_embeddings(self.encoder.embed([image]))), self._built().current
        best = now.search(query, max(len(now), 1) if top_k is None else top_k, self.probes, self.rerank)
        rows, cosines, seen, compared = (array[0] for array in best)
        if verbose:
            print("Matches:", seen)
        rows = rows[:compared]
        overlap, cosines = now.overlap(query, rows), cosines[:compared]
        return Matches(now.ids[rows], now.labels[rows], overlap, cosines, int(seen), now.keys[rows])

    def save(self, folder) -> Path:
        """Write the index to a folder of its own, in place of an index that lies there; return the folder."""
        manifest = {name: getattr(self, name) for name in SETTINGS} | {"build_seconds": self.build_seconds}
        manifest["encoder"] = self._made_with
        self._built().save(folder, manifest)
        return Path(folder).expanduser()

    @classmethod
    def load(cls, folder, model=None, *, processor=None, mapped: bool = False) -> BuildLSHTable:
        """Read an index that `save` wrote.

        Args:
            folder: what `save` was given.
            model: the model it was built with, as in the constructor; by default the checkpoint that the index
                remembers, loaded when an image has to be embedded. A ValueError then says so if it is not the same.
            mapped: leave the arrays on disk: processes share one copy in memory, and of vectors and sketches a search
                reads only what it looks at. Whether these two are whole is then not checked.

        Raises:
            ValueError: the folder holds no index, a file is damaged, or the model is another one.
        """
        candidates, manifest = Candidates.load(folder, (*SETTINGS, "encoder"), mapped)
        index = cls(None, **{name: manifest[name] for name in SETTINGS})
        index._made_with = NO_ENCODER | manifest["encoder"]
        if model is not None or processor is not None:
            index._encoder = encoder_that_made(f"The index {str(folder)!r}", index._made_with, model, processor)
        index.build_seconds, index._candidates = manifest.get("build_seconds"), candidates
        candidates.snapshot.warm_up()
        return index

    def _built(self) -> Candidates:
        if self._candidates is None:
            raise ValueError("The index is empty: call build or build_from_embeddings first.")
        return self._candidates

    def _check_embeddings(self, embeddings) -> np.ndarray:
        given = np.atleast_2d(np.asarray(embeddings))
        dim = self.dim or given.shape[-1]
        if given.shape != (len(given), dim) or given.dtype.kind in "cOSUmM":
            raise ValueError(f"Real numbers of shape (n, {dim}) are needed, not {given.dtype} {given.shape}.")
        embeddings = given.astype(np.float32, copy=False)
        if not np.isfinite(embeddings).all():
            raise ValueError("The embeddings hold values that are not finite numbers.")
        return embeddings


def encoder_that_made(what: str, made_with: dict, model=None, processor=None):
    """Return the encoder that made an index: the model given or, by default, the checkpoint that it remembers.

    Raises:
        ValueError: there is no such checkpoint any more, or it is not the same; the sentence begins with `what`.
    """
    phrase = "was made with the checkpoint {name!r} ({pooling}, {dtype})".format
    encoder = as_encoder(model, processor)
    if encoder is None:
        from imgsim.encoder import load_encoder

        try:
            encoder = load_encoder(made_with["name"], dtype=made_with["dtype"], pooling=made_with["pooling"])
        except (OSError, ValueError) as error:
            raise ValueError(f"{what} {phrase(**made_with)}, which cannot be loaded any more: {error}") from error
    if encoder.digest != made_with["digest"]:
        now = phrase(**encoder.describe()).removeprefix("was made with ")
        raise ValueError(
            f"{what} {phrase(**made_with)}, not with {now} as it is now: load it with that one, or build it again."
        )
    return encoder


def as_encoder(model, processor=None):
    """Return the model argument as an encoder: None and encoders stay as they are, all else is loaded."""
    if model is None or hasattr(model, "embed"):
        if processor is not None:
            raise ValueError("A processor goes with a checkpoint or a module, and neither is given.")
        return model
    from imgsim.encoder import load_encoder  # torch is loaded only if there is something to embed

    return load_encoder(model, processor=processor)
