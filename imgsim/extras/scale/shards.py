"""A folder of Parquet files that a manifest makes one version: on this machine, or wherever fsspec reaches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
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

from imgsim.extras.scale.parts import read_footers
from imgsim.hashing import normalise
from imgsim.search.storage import MANIFEST
from imgsim.sources.cache import atomic_write
from imgsim.sources.errors import first_line

FORMAT = 1  # of the manifest; its words for a file's name, a part and prefix_bits are name, place and top
FILE_NAME = re.compile(r"(?P<name>[\w=/-]+)-(?P<job_id>[0-9a-f]{8})-(?P<digest>[0-9a-f]{16})\.parquet")
# What is sorted takes few bits as differences; the rest would not get smaller.
ENCODING = {"id": "DELTA_BINARY_PACKED", "hash": "DELTA_BINARY_PACKED", "source": "DELTA_BYTE_ARRAY"}


@dataclass(frozen=True)
class Shards:
    """Parquet files, each named by its content (its name), by the job that wrote it and by a digest of its bytes.

    Files of several jobs may lie side by side; the manifest, written last, says which of them are current. A job that
    was interrupted continues with the names that are not there yet.
    """

    fs: AbstractFileSystem
    path: str

    @classmethod
    def at(cls, *address) -> Shards:
        """Find a folder by the parts of its address: a path, or what fsspec knows, such as s3://.

        Raises:
            ValueError: there is no such file system.
        """
        # s3fs would ask for the size of a file first, and read a large one in pieces, which ours are not.
        options = {"max_concurrency": 1} if str(address[0]).startswith("s3://") else {}
        try:
            fs, path = url_to_fs("/".join(map(str, address)), **options)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{address[0]!r} is no address that can be reached: {first_line(error)}") from error
        return cls(fs, path.rstrip("/"))

    @property
    def local(self) -> bool:
        """Whether the folder is on this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def write(self, file: str, content) -> None:
        """Write a file, whole or not at all."""
        path = f"{self.path}/{file}"
        if not self.local:  # object stores know no half-written files
            return self.ask("pipe_file", path, bytes(content))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as beside:
            beside.write_bytes(content)

    def write_table(self, name: str, job_id: str, table: pa.Table, group_rows: int) -> str:
        """Write a table in row groups of `group_rows` rows; return the name of its file."""
        stream = pa.BufferOutputStream()
        encoding = {column: ENCODING[column] for column in table.column_names if column in ENCODING}
        settings = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        settings["write_statistics"] = [column for column in ("id", "hash") if column in encoding]  # searched for
        table = table.combine_chunks()  # the same rows give the same bytes, in however many blocks they came
        pq.write_table(table, stream, row_group_size=group_rows, column_encoding=encoding, **settings)
        content = stream.getvalue()
        file = f"{name}-{job_id}-{blake2b(content, digest_size=8).hexdigest()}.parquet"
        self.write(file, content)
        return file

    def finished(self, job_id: str) -> dict[str, str]:
        """Return the files of a job by their names."""
        matches = map(FILE_NAME.fullmatch, sorted(self._files()))
        return {match["name"]: match[0] for match in matches if match and match["job_id"] == job_id}

    def _files(self) -> Iterable[str]:
        self.fs.invalidate_cache()
        return (path.removeprefix(f"{self.path}/") for path in self.ask("find", self.path))

    def ask(self, method: str, *arguments, **options):
        """Call a method of the file system.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the store failed, although its own library asked again.
        """
        try:
            return getattr(self.fs, method)(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # each library has its own
            raise self.failure(error) from None

    def failure(self, error: Exception) -> OSError:
        """Return the error that says in a sentence that the store failed."""
        if self.local and isinstance(error, OSError):
            return error
        return OSError(f"'{self.path}' cannot be reached: {first_line(error) or type(error).__name__}")

    def fetch(self, ranges: Sequence[tuple[str, int | None, int | None]]) -> list[bytes | FileNotFoundError]:
        """Read parts (file, first byte, end) of files, all at once where the store can; OSError if it fails."""
        paths = [f"{self.path}/{file}" for file, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
        contents = self.ask("cat_ranges", paths, starts, ends, on_error="return") if ranges else []
        for content in contents:
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise self.failure(content)
        return contents

    def read(self, file: str) -> pa.Table:
        """Read a whole file, and check that its bytes are those that were written."""
        (content,) = self.fetch([(file, None, None)])
        gone = isinstance(content, FileNotFoundError)
        if gone or blake2b(content, digest_size=8).hexdigest() != FILE_NAME.fullmatch(file)["digest"]:
            raise ValueError(self.damaged(file))
        return pq.read_table(pa.BufferReader(content), use_threads=False)

    def damaged(self, file: str) -> str:
        """Return the sentence that says what to do about a damaged file."""
        return (
            f"'{self.path}/{file}' is missing, cut short or changed: delete it, if it is there, and repeat the step "
            "that wrote it, which makes what is missing."
        )

    def publish(self, manifest: dict) -> None:
        """Make the files in a manifest the current ones, and remove all others that a job wrote."""
        self.write(MANIFEST, (json.dumps({"format": FORMAT} | manifest, indent=1) + "\n").encode())
        current = {entry["name"] for entry in manifest["files"]}
        for file in set(self._files()) - current:
            if FILE_NAME.fullmatch(file):
                self.ask("rm_file", f"{self.path}/{file}")

    def manifest(self) -> dict:
        """Read what was published.

        Raises:
            ValueError: there is nothing, or another version wrote it.
        """
        (content,) = self.fetch([(MANIFEST, None, None)])
        try:
            if isinstance(content, FileNotFoundError):
                raise ValueError(f"no {MANIFEST}")
            manifest = json.loads(content)
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']}, and this version reads {FORMAT}")
            return manifest | {"files": list(manifest["files"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"There are no finished shards in '{self.path}': {first_line(error)}.") from error

    def describe(self, job_id: str, names: list[str]) -> list[dict]:
        """Return, for a manifest, the files of a finished job in this order: name, bytes, rows and such, metadata."""
        finished = self.finished(job_id)
        if lost := [name for name in names if name not in finished]:
            raise ValueError(
                f"{lost[0]} is gone from '{self.path}': is another job at work there? Start this one again."
            )

        files = [finished[name] for name in names]
        with ThreadPoolExecutor() as pool:
            sizes = dict(zip(files, pool.map(lambda file: self.ask("size", f"{self.path}/{file}"), files), strict=True))
        entries = []
        for file, footer in read_footers(self, sizes).items():
            if isinstance(footer, Exception):
                raise ValueError(self.damaged(file)) from footer
            metadata = json.loads((footer.metadata or {}).get(b"imgsim", b"{}"))
            entry = {"name": file, "bytes": sizes[file], "footer": footer.serialized_size + 8, "rows": footer.num_rows}
            entries.append(entry | metadata)
        return entries


def with_metadata(table: pa.Table, **metadata) -> pa.Table:
    """Return a table with metadata for its file, which `describe` finds there."""
    return table.replace_schema_metadata({"imgsim": json.dumps(metadata)})


def id_range(table: pa.Table) -> dict[str, int]:
    """Return the first and the last id of a table that is sorted by them; nothing of an empty one."""
    return {"first": table["id"][0].as_py(), "last": table["id"][-1].as_py()} if len(table) else {}


def as_array(column: pa.ChunkedArray, dtype) -> np.ndarray:
    """Return a column of lists or bytes, all equally long, as an array (n, width) of the type that they hold."""
    of_bytes = pa.types.is_fixed_size_binary(column.type)
    width = column.type.byte_width // np.dtype(dtype).itemsize if of_bytes else column.type.list_size
    chunks = [np.empty((0, width), dtype)]
    for chunk in column.chunks:
        flat = np.frombuffer(chunk.buffers()[1], dtype) if of_bytes else chunk.values.to_numpy()
        chunks.append(flat.reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(chunks)


def vectors_in(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of embeddings, lists of float16 or bytes of int8, as vectors (n, d) of length 1 in float32."""
    return normalise(as_array(column, np.int8 if pa.types.is_fixed_size_binary(column.type) else np.float16))


def as_lists(array: np.ndarray) -> pa.Array:
    """Return an array (n, width) as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def as_bytes(array: np.ndarray) -> pa.Array:
    """Return an array (n, width) as a column of bytes."""
    size = array.shape[1] * array.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(array), [None, pa.py_buffer(array.tobytes())])
