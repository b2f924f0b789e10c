"""Search in tables that lie in Parquet files, and their export to arrays that are mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from imgsim.extras.scale.build import read_projection, version_of
from imgsim.extras.scale.shards import Shards, vectors
from imgsim.hashing import check_integer, normalise
from imgsim.index import SearchResult
from imgsim.search.kernels import nearest_codes
from imgsim.search.snapshot import THREADS, Snapshot
from imgsim.search.storage import Blocks, array_specs, write_arrays


class ShardedIndex:
    """The index that `build` left in a folder, for a search that reads from it only what a query needs.

    A search is that of BuildLSHTable, and gives the same ids and cosines: from the tables come the row groups that hold
    the buckets looked up, from the signatures those of the candidates in them, from the embeddings those of the
    `rerank` best. Of these, an index in memory is made and asked.
    """

    def __init__(self, folder, *, probes: int = 8, rerank: int | None = 200):
        self.tables, self.embeddings = Shards.at(folder, "index"), Shards.at(folder, "embeddings")
        self.manifest, source = self.tables.manifest(), self.embeddings.manifest()
        if self.manifest["embeddings"] != version_of(source):
            raise ValueError(
                f"The embeddings in {str(folder)!r} have changed since the index was built: build it again."
            )
        self.hash_size, self.num_tables, self.dim = (self.manifest[key] for key in ("hash_size", "num_tables", "dim"))
        self.probes, self.rerank = probes, rerank
        files = self.manifest["files"]
        self.projection = read_projection(self.tables, files[0]["name"], self.hash_size, self.num_tables)
        self._parts = {file["place"]: file["name"] for file in files if "place" in file}
        self._signatures, self._embeddings = [file for file in files if "first" in file], source["files"]
        self._opened: dict[str, object] = {}

    def __len__(self) -> int:
        return self.manifest["count"]

    def search(self, embeddings, top_k: int = 10) -> SearchResult:
        """Find the nearest candidates of every query (m, d), as BuildLSHTable.search does."""
        points = np.atleast_2d(np.asarray(embeddings, np.float32))
        if points.ndim != 2 or points.shape[1] != self.dim or not np.isfinite(points).all():
            raise ValueError(f"Finite embeddings of shape (m, {self.dim}) are needed, not {points.shape}.")
        points, top_k, probes = (
            normalise(points),
            check_integer(top_k, "top_k", 1),
            check_integer(self.probes, "probes", 0),
        )
        rerank = len(self) if self.rerank is None else check_integer(self.rerank, "rerank", 0)
        ids = self._in_buckets(nearest_codes(self.projection.margins(points), min(1 + probes, 1 << self.hash_size)))
        words = vectors(self._column(self.tables, self._signatures, ids, "signature"), np.uint64)
        seen = self._candidates(np.empty((len(ids), 0), np.float32), ids, words)  # to be ranked only
        ranked, _, count, _ = seen.search(points, max(1, min(rerank, len(ids))), probes, rerank)
        best = np.unique(ranked[ranked >= 0])
        near = vectors(self._column(self.embeddings, self._embeddings, ids[best], "embedding"), np.float16)
        compared = self._candidates(normalise(near), ids[best], words[best])
        rows, cosines, _, number = compared.search(points, top_k, probes, rerank)
        return SearchResult(np.where(rows >= 0, ids[best][rows], -1) if len(best) else rows, cosines, count, number)

    def _candidates(self, points: np.ndarray, ids: np.ndarray, words: np.ndarray) -> Snapshot:
        return Snapshot.build(self.projection, points, ids, np.full(len(ids), -1), words)

    def _in_buckets(self, codes: np.ndarray) -> np.ndarray:
        """The ids (c,), in order, in buckets (m, L, b) of the tables."""
        top, wanted = self.manifest["top"], []
        for table in range(self.num_tables):
            values = np.unique(codes[:, table])
            parts = values >> np.uint64(self.hash_size - top)
            for part in np.unique(parts):
                wanted.append((self._parts[(table << top) + int(part)], values[parts == part], None))
        return np.unique(self._read(self.tables, wanted, "hash", "id")["id"].to_numpy())

    def _column(self, shards: Shards, files: list[dict], ids: np.ndarray, column: str) -> pa.ChunkedArray:
        """What a column says of the candidates with these ids (c,), which are in order."""
        begins = np.searchsorted(ids, [file["first"] for file in files])
        ends = np.searchsorted(ids, [file["last"] for file in files], "right")
        wanted = [
            (file["name"], ids[a:b], file["first"] if file["last"] - file["first"] < file["rows"] else None)
            for file, a, b in zip(files, begins, ends, strict=True)
            if a < b or file is files[0]  # so that there is a table, though it may be empty
        ]
        table = self._read(shards, wanted, "id", column)
        if len(table) != len(ids):
            raise ValueError(f"'{shards.path}' lacks candidates that stand in the tables: build the index again.")
        return table[column]

    def _read(
        self, shards: Shards, wanted: list[tuple[str, np.ndarray, int | None]], key: str, column: str
    ) -> pa.Table:
        """A column of the rows of files whose key is among some values: name, values, and `dense` as in select."""

        def read(item: tuple[str, np.ndarray, int | None]) -> pa.Table:
            name, values, dense = item
            try:
                if name not in self._opened:
                    self._opened[name] = shards.open(name)
                return shards.select(self._opened[name], key, values, column, dense)
            except (OSError, pa.ArrowException) as error:
                raise ValueError(shards.damaged(name)) from error

        with ThreadPoolExecutor(THREADS) as pool:
            return pa.concat_tables(pool.map(read, wanted))

    def sources(self, ids) -> list[str]:
        """Where the images with these ids (c,) are: as files, or as rows of Parquet files, name#row."""
        ids, place = np.unique(ids, return_inverse=True)
        found = self._column(self.embeddings, self._embeddings, ids, "source").to_pylist()
        return [found[i] for i in place]

    def export(self, folder) -> Path:
        """Write the index to a folder that BuildLSHTable.load(folder, mapped=True) opens at once; returns the folder.

        One shard or part of a table at a time stands in memory, and 8 bytes for every id.
        """
        count, tables, signatures = len(self), self.num_tables, [file["name"] for file in self._signatures]
        points = [file["name"] for file in self._embeddings]
        parts = [self._parts[place] for place in range(tables << self.manifest["top"])]
        wanted = array_specs(count, self.dim, self.hash_size, tables)
        direct = wanted["starts"][1][1] > 0
        with tqdm(
            total=2 * len(signatures) + len(points) + 2 * len(parts), desc="exporting", unit="file", delay=1
        ) as bar:

            def read(shards: Shards, names: list[str], column: str) -> Iterator[pa.ChunkedArray]:
                for name in names:
                    yield shards.read(name)[column]
                    bar.update()

            ids = np.concatenate([column.to_numpy() for column in read(self.tables, signatures, "id")])
            hashes = (column.to_numpy() for column in read(self.tables, parts, "hash"))
            blocks = {
                "planes": [self.projection.planes],
                "mean": [self.projection.mean],
                "ids": [ids],
                "labels": [np.full(count, -1)],
                "signatures": (vectors(column, np.uint64) for column in read(self.tables, signatures, "signature")),
                "vectors": (
                    normalise(vectors(column, np.float16)) for column in read(self.embeddings, points, "embedding")
                ),
                "codes": [] if direct else hashes,
                "rows": (np.searchsorted(ids, column.to_numpy()) for column in read(self.tables, parts, "id")),
                "starts": self._starts(hashes) if direct else [],
            }
            arrays = {name: Blocks(shape, dtype, blocks[name]) for name, (dtype, shape) in wanted.items()}
            manifest = {"batch_size": 48, "probes": self.probes, "rerank": self.rerank}
            manifest |= {name: self.manifest[name] for name in ("hash_size", "num_tables", "dim", "seed", "count")}
            manifest |= {name: self.manifest[name] for name in ("build_seconds", "encoder")}
            write_arrays(folder, manifest, arrays)
        return Path(folder)

    def _starts(self, hashes: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Where the buckets of each table start, one table after another."""
        for _ in range(self.num_tables):
            sizes = sum(
                np.bincount(next(hashes), minlength=1 << self.hash_size) for _ in range(1 << self.manifest["top"])
            )
            yield np.concatenate([[0], np.cumsum(sizes)])
