"""Search in tables that lie in Parquet files, and export them to arrays that can be mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from imgsim.extras.scale.buckets import nearest_codes
from imgsim.extras.scale.build import embeddings_version, read_coder
from imgsim.extras.scale.parts import SortedFile, read_footers, read_groups
from imgsim.extras.scale.shards import Shards, as_array, vectors_in
from imgsim.hashing import check_integer, code_dtype, normalise
from imgsim.index import SETTINGS
from imgsim.search.answers import SearchResult
from imgsim.search.layout import has_starts
from imgsim.search.snapshot import Snapshot
from imgsim.search.storage import MANIFEST, Blocks, array_specs, write_arrays


class ShardedIndex:
    """The index that `build_index` left in a folder, of which a search reads only what its queries need.

    A search gives the same ids and cosines as that of BuildLSHTable. It reads the row groups with the buckets looked
    up, with the sketches of the candidates in them, and with the embeddings of the `rerank` best of these.

    Args:
        folder: a path, or an address that fsspec knows.
        probes, rerank: as in BuildLSHTable; they may be set at any time.

    Raises:
        ValueError: there is no index, or the embeddings have changed since it was built.
    """

    def __init__(self, folder, *, probes: int = 8, rerank: int | None = 200):
        self.tables, self.embeddings = Shards.at(folder, "index"), Shards.at(folder, "embeddings")
        with ThreadPoolExecutor() as pool:  # both at once
            self.manifest, source = pool.map(Shards.manifest, (self.tables, self.embeddings))
        if self.manifest["embeddings"] != embeddings_version(source):
            raise ValueError(
                f"The embeddings in {str(folder)!r} have changed since the index was built: build it again."
            )
        if "planes" not in self.manifest:
            raise ValueError(f"The index in {str(folder)!r} comes from an older version: build it again.")
        self.hash_size, self.num_tables, self.dim = (self.manifest[key] for key in ("hash_size", "num_tables", "dim"))
        self.probes, self.rerank, self.prefix_bits = probes, rerank, self.manifest["top"]
        files = self.manifest["files"]
        self.coder = read_coder(self.tables, files[0]["name"], self.hash_size, self.num_tables)
        self._part_files = {file["place"]: file["name"] for file in files if "place" in file}
        self._sketch_files, self._embedding_files = [file for file in files if "first" in file], source["files"]
        self._sizes = {file["name"]: file["bytes"] for file in files + source["files"]}
        self._footers = {file["name"]: file["footer"] for file in files + source["files"] if "footer" in file}
        self._opened: dict[str, SortedFile] = {}

    def __len__(self) -> int:
        return self.manifest["count"]

    def search(self, embeddings, top_k: int = 10) -> SearchResult:
        """Find the nearest candidates of every query embedding (m, d), as BuildLSHTable.search does."""
        queries = np.atleast_2d(np.asarray(embeddings, np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.dim or not np.isfinite(queries).all():
            raise ValueError(f"Finite embeddings of shape (m, {self.dim}) are needed, not {queries.shape}.")
        queries, top_k = normalise(queries), check_integer(top_k, "top_k", 1)
        probes = check_integer(self.probes, "probes", 0)
        rerank = len(self) if self.rerank is None else check_integer(self.rerank, "rerank", 0)
        compare_all = self.rerank is not None and len(self) <= rerank
        if compare_all:
            ids = self._all_ids()
        else:
            ids = self._ids_in(nearest_codes(self.coder.margins(queries), min(1 + probes, 1 << self.hash_size)))
        codes, sketches = self._sketches(ids)
        best, seen = np.arange(len(ids)), None
        if not compare_all:
            # First an index of vectors without dimensions, which ranks and compares nothing; then one of the best.
            ranking = self._snapshot(np.empty((len(ids), 0), np.float32), ids, codes, sketches)
            rows, _, seen, _ = ranking.search(queries, max(1, min(rerank, len(ids))), probes, rerank, False)
            best = np.unique(rows[rows >= 0])
        vectors = vectors_in(self._rows(self.embeddings, self._embedding_files, ids[best], "embedding")["embedding"])
        comparing = self._snapshot(vectors, ids[best], codes[best], sketches[best])
        rows, cosines, held, compared = comparing.search(queries, top_k, probes, rerank, compare_all)
        found = np.where(rows >= 0, ids[best][rows], -1) if rows.size else rows
        short = ((0, 0), (0, min(top_k, len(self)) - found.shape[1]))  # fewer were compared than places are asked for
        found, cosines = np.pad(found, short, constant_values=-1), np.pad(cosines, short, constant_values=np.nan)
        wanted = np.unique(found[found >= 0])
        keys = np.array(["", *self.sources(wanted)], object)
        rows = np.where(found >= 0, np.searchsorted(wanted, found) + 1, -1)
        return SearchResult(found, cosines, held if seen is None else seen, compared, rows, keys)

    def _snapshot(self, vectors: np.ndarray, ids: np.ndarray, codes: np.ndarray, sketches: np.ndarray) -> Snapshot:
        return Snapshot.build(self.coder, vectors, ids, np.full(len(ids), -1), codes, sketches)

    def _all_ids(self) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            tables = list(pool.map(self.tables.read, (file["name"] for file in self._sketch_files)))
        return np.concatenate([table["id"].to_numpy() for table in tables])

    def _sketches(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the codes (c, L) and sketches (c, words + 1) of candidates with ids (c,), in order."""
        rows = self._rows(self.tables, self._sketch_files, ids, "codes", "sketch")
        return as_array(rows["codes"], code_dtype(self.hash_size)), as_array(rows["sketch"], np.uint64)

    def _ids_in(self, codes: np.ndarray) -> np.ndarray:
        """Return the ids (c,), in order, in the buckets with these codes (m, L, b)."""
        wanted = []
        for table in range(self.num_tables):
            values = np.unique(codes[:, table])
            prefixes = values >> np.uint64(self.hash_size - self.prefix_bits)
            for prefix in np.unique(prefixes):
                file = self._part_files[(table << self.prefix_bits) + int(prefix)]
                wanted.append((file, values[prefixes == prefix]))
        wanted = wanted or [(self._part_files[0], np.empty(0, codes.dtype))]  # no queries: a table all the same
        return np.unique(self._select(self.tables, wanted, "hash", "id")["id"].to_numpy())

    def _rows(self, shards: Shards, files: list[dict], ids: np.ndarray, *columns: str) -> pa.Table:
        """Read columns for the candidates with these ids (c,), which ascend and are different."""
        begins = np.searchsorted(ids, [file["first"] for file in files])
        ends = np.searchsorted(ids, [file["last"] for file in files], "right")
        wanted = [(file["name"], ids[begin:end]) for file, begin, end in zip(files, begins, ends, strict=True)]
        wanted = [item for item in wanted if len(item[1])] or wanted[:1]  # so that there is a table, even an empty one
        table = self._select(shards, wanted, "id", *columns)
        if len(table) != len(ids):
            raise ValueError(f"'{shards.path}' lacks candidates that stand in the tables: build the index again.")
        return table

    def _select(self, shards: Shards, wanted: list[tuple[str, np.ndarray]], key: str, *columns: str) -> pa.Table:
        """Read key and columns of the rows of files whose key is among some values: row groups that can hold them."""
        unopened = {file: self._sizes[file] for file, _ in wanted if file not in self._opened}
        for file, footer in read_footers(shards, unopened, self._footers).items():
            if isinstance(footer, Exception):
                raise ValueError(shards.damaged(file)) from footer
            self._opened[file] = SortedFile(footer, key)
        groups = [(file, self._opened[file].footer, self._opened[file].groups(values)) for file, values in wanted]
        selected = []
        for (file, values), table in zip(wanted, read_groups(shards, groups, [key, *columns]), strict=True):
            if isinstance(table, Exception):
                raise ValueError(shards.damaged(file)) from table
            selected.append(table.filter(np.isin(table[key].to_numpy(), values)))
        return pa.concat_tables(selected)

    def sources(self, ids) -> list[str]:
        """Return where the images with these ids (c,) are: file, or file#row in a Parquet file."""
        ids, order = np.unique(ids, return_inverse=True)
        sources = self._rows(self.embeddings, self._embedding_files, ids, "source")["source"].to_pylist()
        return [sources[i] for i in order]

    def export(self, folder) -> str:
        """Write the index to a folder that BuildLSHTable.load(folder, mapped=True) opens at once; return its address.

        One shard or part of a table at a time is in memory, and 8 bytes per id. A folder in a store is written on this
        machine first, and sent there, its manifest last.
        """
        target = Shards.at(folder)
        if not target.local:
            with TemporaryDirectory(prefix="imgsim-") as here:
                self.export(here)
                for path in sorted(Path(here).glob("*.*"), key=lambda path: path.name == MANIFEST):
                    target.ask("put_file", str(path), f"{target.path}/{path.name}")
            return str(folder)

        def read(shards: Shards, files: list[str], column: str) -> Iterator[pa.ChunkedArray]:
            for file in tqdm(files, f"exporting {column}", unit="file", delay=1):
                yield shards.read(file)[column]

        parts = [self._part_files[part] for part in range(self.num_tables << self.prefix_bits)]
        sketches = [file["name"] for file in self._sketch_files]
        embeddings = [file["name"] for file in self._embedding_files]
        ids = np.concatenate([column.to_numpy() for column in read(self.tables, sketches, "id")])
        hashes = (column.to_numpy() for column in read(self.tables, parts, "hash"))
        vectors = read(self.embeddings, embeddings, "embedding")
        starts = has_starts(self.hash_size, len(self))
        projection, directions = self.coder.projection, self.coder.projection.directions
        directions = np.empty((self.dim, 0), np.float32) if directions is None else directions
        blocks = {
            "planes": [projection.planes],
            "mean": [projection.mean],
            "directions": [directions],
            "rotation": [self.coder.rotation],
            "ids": [ids],
            "labels": [np.full(len(self), -1)],
            "sketches": (as_array(column, np.uint64) for column in read(self.tables, sketches, "sketch")),
            "vectors": map(vectors_in, vectors),
            "codes": [] if starts else hashes,
            "rows": (np.searchsorted(ids, column.to_numpy()) for column in read(self.tables, parts, "id")),
            "starts": self._starts(hashes) if starts else [],
        }
        sizes = directions.shape[1], self.coder.rotation.shape[1]
        specs = array_specs(len(self), self.dim, self.hash_size, self.num_tables, *sizes)
        arrays = {name: Blocks(shape, dtype, blocks[name]) for name, (dtype, shape) in specs.items()}
        manifest = self.manifest | {"batch_size": 48, "probes": self.probes, "rerank": self.rerank}
        manifest = {name: manifest[name] for name in (*SETTINGS, "count", "build_seconds", "encoder")}
        write_arrays(folder, manifest, arrays | {"keys": np.empty(0, np.uint8)})
        return str(folder)

    def _starts(self, hashes: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Return where the buckets of each table begin, one table after another."""
        for _ in range(self.num_tables):
            parts = (next(hashes) for _ in range(1 << self.prefix_bits))
            sizes = sum(np.bincount(part, minlength=1 << self.hash_size) for part in parts)
            yield np.concatenate([[0], np.cumsum(sizes)])
