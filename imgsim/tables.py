"""Locality-sensitive hash tables: codes in, candidates out.

Shapes: n entries, L tables (`num_tables`), k bits per code (`hash_size`). A table is sorted arrays inside, and reads
like a dict of buckets. A row is an entry's position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from imgsim.hashing import check_settings, code_dtype


def stable_order(codes: np.ndarray) -> np.ndarray:
    """Return the order (n,) that sorts codes (n,) and leaves equal ones as they come."""
    if codes.dtype.itemsize != 4:
        return np.argsort(codes, kind="stable")
    keys = codes.astype(np.uint64) << np.uint64(32)  # numpy sorts these many times faster than it orders 32 bits stably
    keys |= np.arange(len(codes), dtype=np.uint64)
    keys.sort()
    return keys.astype(np.uint32)


def sort_codes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the codes (n,) of a table into buckets: the sorted codes (n,), and their rows (n,) int32 in that order."""
    order = stable_order(codes)
    return codes[order], order.astype(np.int32)


def id_label(id: int, label: int) -> str:
    """Return the article's unique name of an entry: "16_0", or "16" if it has no label (-1)."""
    return f"{id}_{label}" if label >= 0 else f"{id}"


def as_codes(codes, hash_size: int) -> np.ndarray:
    """Return codes as an array of the smallest type that holds them.

    Raises:
        ValueError: a code is negative or needs more than `hash_size` bits.
    """
    # A list goes through objects: numpy turns a list of ints on both sides of 2^63 into floats.
    codes = codes if isinstance(codes, (np.ndarray, np.generic)) else np.array(codes, dtype=object)
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >> hash_size):
        raise ValueError(f"Codes must lie between 0 and 2^{hash_size} - 1, as hash_size bits give them.")
    return codes.astype(code_dtype(hash_size))


class Table(Mapping):
    """One hash table: a mapping from each code to the entries in its bucket.

    `len(table)` counts the buckets, `code in table` looks one up, and `table.items()` walks over them in order of
    their codes, each bucket as [{"id_label": "16_0"}, ...] as in the article, whose attribute `.table` is kept.
    """

    def __init__(self, hash_size: int):
        check_settings(hash_size, 1)
        self.hash_size = hash_size
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # sorted in at the next look-up
        self._frozen = False  # the arrays are an index's
        nothing = np.empty(0, np.int64)
        self._set_arrays(nothing, nothing, *sort_codes(np.empty(0, code_dtype(hash_size))))

    def _set_arrays(self, ids: np.ndarray, labels: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> None:
        self._ids, self._labels, self._codes, self._rows = ids, labels, codes, rows

    @property
    def table(self) -> Table:
        return self

    def add(self, id, code, label=None) -> None:
        """Add one entry, or arrays of ids, codes and labels, each (n,).

        Raises:
            ValueError: their lengths differ, a code has too many bits, or the table is an index's; nothing is added.
        """
        if self._frozen:
            raise ValueError("These tables are part of an index: add to the index itself.")
        codes, ids = np.atleast_1d(as_codes(code, self.hash_size)), np.atleast_1d(np.asarray(id, np.int64))
        labels = np.full(len(ids), -1) if label is None else np.atleast_1d(np.asarray(label, np.int64))
        if ids.ndim != 1 or codes.shape != ids.shape or labels.shape != ids.shape:
            shapes = f"{ids.shape}, {codes.shape} and {labels.shape}"
            raise ValueError(f"Each entry needs one id, one code and one label, not arrays of shape {shapes}.")
        self._pending.append((ids, labels, codes))

    def _sort_pending(self) -> None:
        if self._pending:
            by_row = np.empty(len(self._rows), self._codes.dtype)
            by_row[self._rows] = self._codes
            parts = [(self._ids, self._labels, by_row), *self._pending]
            ids, labels, codes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            self._set_arrays(ids, labels, *sort_codes(codes))
            self._pending = []

    def sorted_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes (n,) in order, and the row (n,) int32 of each: all that a table holds."""
        self._sort_pending()
        return self._codes, self._rows

    def rows(self, code) -> np.ndarray:
        """Return the rows (c,) in the bucket of one code."""
        self._sort_pending()
        return self._rows[self._codes.searchsorted(code, "left") : self._codes.searchsorted(code, "right")]

    def query(self, code) -> list[dict[str, str]]:
        """Return the entries in the bucket of this code (or of several, one after another), or [] if it is empty."""
        found = [row for one in np.atleast_1d(as_codes(code, self.hash_size)) for row in self.rows(one)]
        return [{"id_label": id_label(self._ids[row], self._labels[row])} for row in found]

    def bucket_sizes(self) -> np.ndarray:
        """Return how many entries each bucket holds (b,), in order of the codes."""
        return np.unique(self.sorted_codes()[0], return_counts=True)[1]

    def __contains__(self, code) -> bool:
        try:
            return len(self.rows(as_codes(code, self.hash_size))) > 0
        except ValueError:
            return False

    def __getitem__(self, code) -> list[dict[str, str]]:
        if code not in self:
            raise KeyError(code)
        return self.query(code)

    def __iter__(self) -> Iterator[int]:
        return iter(np.unique(self.sorted_codes()[0]).tolist())

    def __len__(self) -> int:
        return len(np.unique(self.sorted_codes()[0]))


class LSH:
    """Several tables side by side: an entry is found if it shares a bucket in any of them."""

    def __init__(self, hash_size: int, num_tables: int):
        check_settings(hash_size, num_tables)
        self.hash_size, self.num_tables = hash_size, num_tables
        self.tables = [Table(hash_size) for _ in range(num_tables)]

    @classmethod
    def from_arrays(cls, hash_size: int, ids, labels, codes, rows) -> LSH:
        """Wrap the tables of an index: sorted codes and their rows (L, n), see `sort_codes`. They are for reading."""
        lsh = cls(hash_size, len(rows))
        for table, *arrays in zip(lsh.tables, codes, rows, strict=True):
            table._set_arrays(ids, labels, *arrays)
            table._frozen = True
        return lsh

    def __len__(self) -> int:
        return len(self.tables[0].sorted_codes()[1])

    def _as_codes(self, codes) -> np.ndarray:
        codes = np.atleast_2d(as_codes(codes, self.hash_size))
        if codes.shape[1] != self.num_tables:
            raise ValueError(f"{self.num_tables} tables need {self.num_tables} codes per entry, not {codes.shape[1]}.")
        return codes

    def add(self, id, codes, label=None) -> None:
        """Add one entry with its codes (L,), or arrays: ids (n,), codes (n, L), labels (n,).

        Raises:
            ValueError: as for `Table.add`; nothing is added.
        """
        for table, column in zip(self.tables, self._as_codes(codes).T, strict=True):
            table.add(id, column, label)  # the first table refuses what any would

    def query(self, codes) -> list[dict[str, str]]:
        """Return the entries of all buckets that codes (L,) fall into; one that shares three buckets comes thrice."""
        codes = self._as_codes(codes)
        if len(codes) != 1:
            raise ValueError(f"query takes the codes of one image, not of {len(codes)}.")
        return [entry for table, code in zip(self.tables, codes[0], strict=True) for entry in table.query(code)]

    @property
    def codes(self) -> np.ndarray:
        """The codes (n, L) of all entries, by row."""
        codes = np.empty((self.num_tables, len(self)), code_dtype(self.hash_size))
        for by_row, table in zip(codes, self.tables, strict=True):
            in_order, rows = table.sorted_codes()
            by_row[rows] = in_order
        return codes.T
