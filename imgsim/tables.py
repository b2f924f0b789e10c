"""Locality-sensitive hash tables: codes in, candidate entries out.

Shapes: n entries, m queries, L tables. A table is sorted arrays, but reads like a dict of buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from imgsim.hashing import check_settings, code_dtype


class Entries:
    """What the tables of one index share: an id and a label for every row, stored once."""

    def __init__(self, ids=(), labels=()):
        self.ids = np.asarray(ids, dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)  # -1 where there is none

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids, labels=None) -> np.ndarray:
        """Append ids (n,) with labels (n,) or None; returns the rows (n,) they got."""
        ids = np.atleast_1d(np.asarray(ids, dtype=np.int64))
        labels = np.full(len(ids), -1) if labels is None else np.atleast_1d(np.asarray(labels, dtype=np.int64))
        if ids.ndim != 1 or labels.shape != ids.shape:
            raise ValueError(f"Each entry needs one id and one label, not {ids.shape} and {labels.shape}.")
        rows = np.arange(len(self), len(self) + len(ids), dtype=np.int32)
        self.ids, self.labels = np.append(self.ids, ids), np.append(self.labels, labels)
        return rows

    def id_label(self, row: int) -> str:
        """The article's unique identifier of an entry: "16_0", or "16" where there is no label."""
        label = self.labels[row]
        return f"{self.ids[row]}_{label}" if label >= 0 else f"{self.ids[row]}"


def stable_order(codes: np.ndarray) -> np.ndarray:
    """The order (n,) that sorts codes (n,), equal ones as they come."""
    if codes.dtype.itemsize != 4:
        return np.argsort(codes, kind="stable")
    keys = codes.astype(np.uint64) << np.uint64(32)  # numpy sorts these many times faster than it orders 32 bits stably
    keys |= np.arange(len(codes), dtype=np.uint64)
    keys.sort()
    return keys.astype(np.uint32)


class Table(Mapping):
    """One hash table, a mapping from codes to the entries in their bucket.

    `len(table)` counts the buckets, `code in table` looks one up and `table.items()` walks over them in order
    of their codes, each bucket as [{"id_label": "16_0"}, ...] as in the article, whose attribute `.table` is
    kept. Inside there are two arrays: the rows in order of their codes, and where each bucket starts among them or,
    where there would be more buckets than rows, the sorted codes.
    """

    def __init__(self, hash_size: int, entries: Entries | None = None):
        check_settings(hash_size, 1)
        self.hash_size = hash_size
        self.entries = Entries() if entries is None else entries
        self._rows = np.empty(0, np.int32)
        self._codes = np.empty(0, code_dtype(hash_size))
        self._starts = np.empty(0, np.int32)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def table(self) -> Table:
        return self

    def add(self, id, code, label=None) -> None:
        """Add one entry, or whole arrays of ids, codes and labels, each (n,)."""
        codes = np.atleast_1d(self.check(code))
        if codes.shape != np.atleast_1d(id).shape:
            raise ValueError(f"{np.size(id)} ids came with codes of shape {codes.shape}: one code each is needed.")
        self.insert(self.entries.add(id, label), codes)

    def insert(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Put rows (n,) of the shared entries under codes (n,); they are sorted in at the next look-up."""
        self._pending.append((rows, codes))

    def check(self, codes) -> np.ndarray:
        """The codes in this table's type; a ValueError where one needs more than `hash_size` bits."""
        # A list goes through objects: numpy turns a list of ints on both sides of 2^63 into floats.
        codes = codes if isinstance(codes, (np.ndarray, np.generic)) else np.array(codes, dtype=object)
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >> self.hash_size):
            raise ValueError(f"Codes must lie between 0 and 2^{self.hash_size} - 1, as hash_size bits give them.")
        return codes.astype(code_dtype(self.hash_size))

    def merge(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sort in what was inserted: sorted codes (n,) or none, rows (n,), starts (2^k + 1,) or none.

        Rows keep the order of their addition in a bucket.
        """
        if self._pending:
            rows, codes = zip((self._rows, self.codes), *self._pending, strict=True)
            self.fill(np.concatenate(rows), np.concatenate(codes))
        return self._codes, self._rows, self._starts

    def fill(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Hold these rows (n,) under codes (n,), and nothing else."""
        self._pending = []
        order = stable_order(codes)
        self._rows, buckets = rows[order], 1 << self.hash_size
        if buckets <= len(rows):
            self._codes, self._starts = codes[:0], np.zeros(buckets + 1, np.int32)
            np.cumsum(np.bincount(codes, minlength=buckets), out=self._starts[1:])
        else:
            self._codes, self._starts = codes[order], self._starts[:0]

    @property
    def codes(self) -> np.ndarray:
        """The codes (n,) of the rows that are sorted in, in order."""
        if not len(self._starts):
            return self._codes
        return np.repeat(np.arange(1 << self.hash_size, dtype=self._codes.dtype), np.diff(self._starts))

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The codes (n,) in order and their rows (n,)."""
        self.merge()
        return self.codes, self._rows

    def rows(self, code) -> np.ndarray:
        """The rows (c,) in the bucket of one code."""
        codes, rows, starts = self.merge()
        if len(starts):
            return rows[starts[code] : starts[int(code) + 1]]
        return rows[codes.searchsorted(code, "left") : codes.searchsorted(code, "right")]

    def query(self, code) -> list[dict[str, str]]:
        """The entries in the bucket of this code (or of several, one after another); [] where there is none."""
        rows = np.concatenate([self._rows[:0], *(self.rows(one) for one in np.atleast_1d(self.check(code)))])
        return [{"id_label": self.entries.id_label(row)} for row in rows]

    def bucket_sizes(self) -> np.ndarray:
        """How many entries each bucket holds, in order of the codes."""
        return np.unique(self.sorted()[0], return_counts=True)[1]

    def __contains__(self, code) -> bool:
        try:
            return len(self.rows(self.check(code))) > 0
        except ValueError:
            return False

    def __getitem__(self, code) -> list[dict[str, str]]:
        if code not in self:
            raise KeyError(code)
        return self.query(code)

    def __iter__(self) -> Iterator[int]:
        return iter(np.unique(self.sorted()[0]).tolist())

    def __len__(self) -> int:
        return len(np.unique(self.sorted()[0]))


class LSH:
    """Several tables side by side; an entry is found when it shares a bucket in any of them."""

    def __init__(self, hash_size: int, num_tables: int):
        check_settings(hash_size, num_tables)
        self.hash_size, self.num_tables = hash_size, num_tables
        self.entries = Entries()
        self.tables = [Table(hash_size, self.entries) for _ in range(num_tables)]
        self._arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def check(self, codes) -> np.ndarray:
        codes = np.atleast_2d(self.tables[0].check(codes))
        if codes.shape[1] != self.num_tables:
            raise ValueError(f"{self.num_tables} tables need {self.num_tables} codes each, not {codes.shape[1]}.")
        return codes

    def add(self, id, codes, label=None) -> None:
        """Add one entry with its codes (L,), or arrays: ids (n,), codes (n, L), labels (n,)."""
        codes = self.check(codes)
        if len(codes) != np.size(id):
            raise ValueError(f"{np.size(id)} ids came with {len(codes)} rows of codes.")
        rows = self.entries.add(id, label)
        for table, column in zip(self.tables, codes.T, strict=True):
            table.insert(rows, column)

    def query(self, codes) -> list[dict[str, str]]:
        """The entries of all buckets that codes (L,) fall into: one that shares three buckets comes three times."""
        codes = self.check(codes)
        if len(codes) != 1:
            raise ValueError(f"query takes the codes of one image, not of {len(codes)}.")
        return [entry for table, code in zip(self.tables, codes[0], strict=True) for entry in table.query(code)]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All tables in three arrays: sorted codes (L, n), their rows (L, n), and where buckets start (L, 2^k + 1).

        Of codes and starts only one is kept, see Table; the other is (L, 0).
        """
        if self._arrays is None or self._arrays[1].shape[1] != len(self):
            self._share(tuple(map(np.stack, zip(*(table.merge() for table in self.tables), strict=True))))
        return self._arrays

    def _share(self, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        self._arrays = arrays
        for table, *views in zip(self.tables, *arrays, strict=True):
            table._pending, table._codes, table._rows, table._starts = [], *views  # nothing is kept twice

    def fill(self, ids: np.ndarray, labels: np.ndarray, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Hold these entries, in tables that `arrays` has made of them, and nothing else."""
        self.entries.ids, self.entries.labels = ids, labels
        self._share(arrays)

    def keep(self, kept: np.ndarray) -> None:
        """Drop all entries but those marked in kept (n,) bool; rows are counted anew, in the same order."""
        number = np.cumsum(kept, dtype=np.int32) - 1
        for table in self.tables:
            codes, rows = table.sorted()
            still = kept[rows]
            table.fill(number[rows[still]], codes[still])
        self.entries.ids, self.entries.labels = self.entries.ids[kept], self.entries.labels[kept]
        self._arrays = None

    @property
    def codes(self) -> np.ndarray:
        """The codes (n, L) of all entries, by row."""
        codes = np.empty((self.num_tables, len(self)), code_dtype(self.hash_size))
        for table, column in zip(self.tables, codes, strict=True):
            ordered, rows = table.sorted()
            column[rows] = ordered
        return codes.T
