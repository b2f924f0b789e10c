"""Parts of Parquet files, of many files at once: of files far away only what is needed travels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from imgsim.extras.scale.shards import Shards

TAIL = 1 << 16  # bytes at the end of a file that are read for its footer; a longer one takes a second read


def read_footers(
    shards: Shards, sizes: dict[str, int], footers: dict[str, int] | None = None
) -> dict[str, pq.FileMetaData | Exception]:
    """Read the footers of files of so many bytes, all at once where the store can; of a file without one, say why.

    `footers` says how many bytes they take, where that is known.

    Raises:
        OSError: the store cannot be reached.
    """
    tails: dict[str, bytes | Exception] = {}
    wanted = {file: (footers or {}).get(file, TAIL) for file in sizes}
    while wanted:
        ranges = [(file, max(0, sizes[file] - size), sizes[file]) for file, size in wanted.items()]
        tails |= zip(wanted, shards.fetch(ranges), strict=True)
        needed = {file: footer_size(tails[file]) for file in wanted}
        wanted = {file: size for file, size in needed.items() if wanted[file] < size <= sizes[file]}
    return {file: parse(tail, pq.read_metadata) for file, tail in tails.items()}


def footer_size(tail: bytes | Exception) -> int:
    """Return how many bytes the end of a file says that its footer takes; 0 if this is no end of a Parquet file."""
    if isinstance(tail, Exception) or tail[-4:] != b"PAR1" or len(tail) < 8:
        return 0
    return int.from_bytes(tail[-8:-4], "little") + 8


def parse(content: bytes | np.ndarray | Exception, read):
    """Return what `read` makes of the content of a Parquet file, or the error that says why that cannot be."""
    if isinstance(content, Exception):
        return content
    try:
        return read(pa.BufferReader(content))
    except (OSError, ValueError) as error:  # pyarrow raises either
        return error


def read_groups(
    shards: Shards, wanted: list[tuple[str, pq.FileMetaData, list[int]]], columns: list[str]
) -> Iterator[pa.Table | Exception]:
    """Read columns of some row groups of each of several files, all at once where the store can.

    Yields:
        Of each file in turn the table, or why there is none.

    Raises:
        OSError: the store cannot be reached.
    """
    places = [chunk_places(footer, groups, columns) for _, footer, groups in wanted]
    ranges = [(wanted[i][0], *place) for i in range(len(wanted)) for place in places[i]]
    contents = iter(shards.fetch(ranges))
    for (_, footer, groups), of_file in zip(wanted, places, strict=True):
        # Memory as long as the file up to there, of which the system gives only what is written to.
        content = np.zeros(max((end for _, end in of_file), default=0), np.uint8)
        error = None
        for start, end in of_file:
            part = next(contents)
            if isinstance(part, Exception) or len(part) != end - start:
                error = part if isinstance(part, Exception) else ValueError("it was cut short")
            else:
                content[start:end] = np.frombuffer(part, np.uint8)

        def read(stream, footer=footer, groups=groups) -> pa.Table:
            file = pq.ParquetFile(stream, metadata=footer, page_checksum_verification=True)
            return file.read_row_groups(groups, columns, use_threads=False)

        yield parse(error or content, read)


def chunk_places(footer: pq.FileMetaData, groups: list[int], columns: list[str]) -> list[tuple[int, int]]:
    """Return where (first byte, end) columns of row groups lie in a file; neighbours are one place."""
    places: list[tuple[int, int]] = []
    for group in map(footer.row_group, groups):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                end = start + chunk.total_compressed_size
                start = places.pop()[0] if places and places[-1][1] == start else start
                places.append((start, end))
    return places


class SortedFile:
    """The footer of a file that is sorted by a column, its key."""

    def __init__(self, footer: pq.FileMetaData, key: str):
        schema = footer.schema.to_arrow_schema()
        column = schema.get_field_index(key)
        groups = [footer.row_group(i).column(column) for i in range(footer.num_row_groups)]
        bounds = [(group.statistics.min, group.statistics.max) for group in groups if group.num_values]
        self.footer, dtype = footer, schema.field(key).type.to_pandas_dtype()
        self.first, self.last = np.array(bounds, dtype).reshape(-1, 2).T

    def groups(self, values: np.ndarray) -> list[int]:
        """Return the row groups that can hold any of these values (v,), ascending, of the key."""
        values = values.astype(self.first.dtype)
        begins, ends = np.searchsorted(values, self.first), np.searchsorted(values, self.last, "right")
        return np.flatnonzero(begins < ends).tolist()
