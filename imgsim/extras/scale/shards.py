"""A folder of Parquet files that a manifest makes one version: on this machine, or wherever fsspec reaches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from imgsim.search.storage import MANIFEST
from imgsim.sources.cache import atomic_write
from imgsim.sources.errors import first_line

FORMAT = 1
OWN = re.compile(r"(?P<stem>[\w=/-]+)-(?P<job>[0-9a-f]{8})-(?P<digest>[0-9a-f]{16})\.parquet")
# What is sorted takes few bits as differences; the rest would not get smaller.
ENCODING = {"id": "DELTA_BINARY_PACKED", "hash": "DELTA_BINARY_PACKED", "source": "DELTA_BYTE_ARRAY"}
LEFT = re.compile(r"(?<![^/])\.\d+-")  # begins the name of what a process that was killed has left half-written


def short_digest(*parts) -> str:
    """Four bytes of all that decides a job."""
    return blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()


@dataclass(frozen=True)
class Shards:
    """Parquet files, each called by what it holds, the job that made it and a digest of its bytes.

    Files of several jobs may lie side by side: which of them are the content says the manifest, which is written
    last. What a job had finished when it was interrupted can so be told from what is missing.
    """

    fs: AbstractFileSystem
    path: str

    @classmethod
    def at(cls, *address) -> Shards:
        """The folder of this name, or the one of the last name in it: a path, or an address that fsspec knows."""
        try:
            fs, path = url_to_fs("/".join(map(str, address)))
        except (ValueError, ImportError) as error:
            raise ValueError(f"{address[0]!r} is no address that can be reached: {first_line(error)}") from error
        return cls(fs, path.rstrip("/"))

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def write(self, name: str, content) -> None:
        """Write a file, whole or not at all."""
        file = f"{self.path}/{name}"
        if not self.local:  # object stores know no half-written files
            return self.fs.pipe_file(file, bytes(content))
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as beside:
            beside.write_bytes(content)

    def write_table(self, stem: str, job: str, table: pa.Table, rows: int) -> str:
        """Write a table in row groups of so many rows; returns the name of its file."""
        stream = pa.BufferOutputStream()
        encoding = {name: ENCODING[name] for name in table.column_names if name in ENCODING}
        settings = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        settings["write_statistics"] = [name for name in ("id", "hash") if name in encoding]  # which are searched for
        table = table.combine_chunks()  # the same rows give the same bytes, in however many blocks they came
        pq.write_table(table, stream, row_group_size=rows, column_encoding=encoding, **settings)
        content = stream.getvalue()
        name = f"{stem}-{job}-{blake2b(content, digest_size=8).hexdigest()}.parquet"
        self.write(name, content)
        return name

    def finished(self, job: str) -> dict[str, str]:
        """The files of a job, by what they hold."""
        found = map(OWN.fullmatch, sorted(self._names()))
        return {match["stem"]: match[0] for match in found if match and match["job"] == job}

    def _names(self) -> Iterable[str]:
        self.fs.invalidate_cache()
        return (file.removeprefix(f"{self.path}/") for file in self.fs.find(self.path))

    def open(self, name: str) -> pq.ParquetFile:
        """One of the files, of which nothing is read yet but where its parts lie."""
        file = f"{self.path}/{name}"
        try:
            return pq.ParquetFile(file if self.local else self.fs.open(file), page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(self.damaged(name)) from error

    def select(self, file: pq.ParquetFile, key: str, values: np.ndarray, column: str, dense: int | None) -> pa.Table:
        """The key by which a file is sorted, and a column, of the rows whose key is one of these values (v,), in order.

        Only the row groups that can hold them are read. dense: the first key, where each is one more than the last.
        """
        if dense is None:
            place = file.schema_arrow.get_field_index(key)
            groups = range(file.num_row_groups if file.metadata.num_rows else 0)
            parts = (file.metadata.row_group(i).column(place).statistics for i in groups)
            first, last = np.array([(part.min, part.max) for part in parts], values.dtype).reshape(-1, 2).T
            groups = np.flatnonzero(np.searchsorted(values, last, "right") > np.searchsorted(values, first))
        else:
            groups = np.unique((values - dense) // file.metadata.row_group(0).num_rows)
        table = file.read_row_groups(groups.tolist(), [key, column], use_threads=False)
        keys = table[key].to_numpy()
        first, last = (np.searchsorted(keys, values.astype(keys.dtype), side) for side in ("left", "right"))
        sizes = last - first
        return table.take(np.arange(sizes.sum()) + np.repeat(first - sizes.cumsum() + sizes, sizes))

    def read(self, name: str) -> pa.Table:
        """All of a file, whose bytes are those that were written."""
        try:
            content = self.fs.cat_file(f"{self.path}/{name}")
        except OSError:
            content = b""
        if blake2b(content, digest_size=8).hexdigest() != OWN.fullmatch(name)["digest"]:
            raise ValueError(self.damaged(name))
        return pq.read_table(pa.BufferReader(content), use_threads=False)

    def damaged(self, name: str) -> str:
        return (
            f"'{self.path}/{name}' is missing, cut short or changed: delete it, if it is there, and repeat the step "
            "that wrote it, which makes what is missing."
        )

    def publish(self, manifest: dict) -> None:
        """Make the files that a manifest names the content; all others of ours go."""
        self.write(MANIFEST, (json.dumps({"format": FORMAT} | manifest, indent=1) + "\n").encode())
        named = {entry["name"] for entry in manifest["files"]}
        for name in set(self._names()) - named:
            if OWN.fullmatch(LEFT.sub("", name)):
                self.fs.rm_file(f"{self.path}/{name}")

    def manifest(self) -> dict:
        """What was published; a ValueError where nothing was, or by another version."""
        try:
            manifest = json.loads(self.fs.cat_file(f"{self.path}/{MANIFEST}"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']}, and this version reads {FORMAT}")
            return manifest | {"files": list(manifest["files"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"There are no finished shards in '{self.path}': {first_line(error) or 'no ' + MANIFEST}."
            ) from error

    def describe(self, job: str, stems: list[str]) -> list[dict]:
        """The files of a finished job for a manifest: name, bytes and rows of each, and what was noted in it."""
        finished = self.finished(job)
        if lost := [stem for stem in stems if stem not in finished]:
            raise ValueError(
                f"{lost[0]} is gone from '{self.path}': is another job at work there? Start this one again."
            )

        def read(name: str) -> dict:
            footer = self.open(name).metadata
            notes = json.loads((footer.metadata or {}).get(b"imgsim", b"{}"))
            return {"name": name, "bytes": self.fs.size(f"{self.path}/{name}"), "rows": footer.num_rows} | notes

        with ThreadPoolExecutor() as pool:
            return list(pool.map(read, (finished[stem] for stem in stems)))


def note(table: pa.Table, **notes) -> pa.Table:
    """A table with something to remember about it in its file."""
    return table.replace_schema_metadata({"imgsim": json.dumps(notes)})


def vectors(column: pa.ChunkedArray, dtype) -> np.ndarray:
    """A column of lists or bytes, all of the same length, as rows (n, any) of the type that they are of."""
    of_bytes = pa.types.is_fixed_size_binary(column.type)
    width = column.type.byte_width // np.dtype(dtype).itemsize if of_bytes else column.type.list_size
    rows = np.empty((len(column), width), dtype)
    start = 0
    for chunk in column.chunks:
        flat = np.frombuffer(chunk.buffers()[1], dtype) if of_bytes else chunk.values.to_numpy()
        rows[start : start + len(chunk)] = flat.reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)]
        start += len(chunk)
    return rows


def as_lists(points: np.ndarray) -> pa.Array:
    """Rows (n, d) as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), points.shape[1])


def as_bytes(words: np.ndarray) -> pa.Array:
    """Rows of numbers (n, w) as a column of bytes."""
    width = words.shape[1] * words.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(words), [None, pa.py_buffer(words.tobytes())])
