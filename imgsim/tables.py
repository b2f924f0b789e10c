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


class Table(Mapping):
    """One hash table, a mapping from codes to the entries in their bucket.

    `len(table)` counts the buckets, `code in table` looks one up and `table.items()` walks over them in order
    of their codes, each bucket as [{"id_label": "16_0"}, ...] as in the article, whose attribute `.table` is
    kept. Inside there are two arrays: sorted codes, and the rows they belong to.
    """

    def __init__(self, hash_size: int, entries: Entries | None = None):
        check_settings(hash_size, 1)
        self.hash_size = hash_size
        self.entries = Entries() if entries is None else entries
        self._codes = np.empty(0, code_dtype(hash_size))
        self._rows = np.empty(0, np.int32)
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

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The codes (n,) in order and their rows (n,); rows keep the order of their addition in a bucket."""
        if self._pending:
            rows, codes = zip((self._rows, self._codes), *self._pending, strict=True)
            rows, codes = np.concatenate(rows), np.concatenate(codes)
            order = np.argsort(codes, kind="stable")
            self._rows, self._codes = rows[order], codes[order]
            self._pending = []
        return self._codes, self._rows

    def rows(self, code) -> np.ndarray:
        """The rows (c,) in the bucket of one code."""
        codes, rows = self.sorted()
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
        """All tables in three arrays: sorted codes (L, n), their rows (L, n), and where the buckets start.

        The latter, (L, 2^k + 1), is worth its room where most buckets are filled; else it is (L, 0), and buckets are
        found by binary search.
        """
        pairs = [table.sorted() for table in self.tables]
        if self._arrays is None or any(codes.base is not self._arrays[0] for codes, _ in pairs):
            codes, rows = (np.stack(column) for column in zip(*pairs, strict=True))
            buckets = 1 << self.hash_size
            starts = np.zeros((self.num_tables, buckets + 1 if 2 * buckets <= len(self) else 0), np.int32)
            for table, *row in zip(self.tables, codes, rows, starts, strict=True):
                table._codes, table._rows, start = row  # views: nothing is kept twice
                if len(start):
                    np.cumsum(np.bincount(table._codes, minlength=buckets), out=start[1:])
            self._arrays = codes, rows, starts
        return self._arrays

    def keep(self, kept: np.ndarray) -> None:
        """Drop all entries but those marked in kept (n,) bool; rows are counted anew, in the same order."""
        number = np.cumsum(kept, dtype=np.int32) - 1
        for table in self.tables:
            codes, rows = table.sorted()
            still = kept[rows]
            table._codes, table._rows = codes[still], number[rows[still]]
        self.entries.ids, self.entries.labels = self.entries.ids[kept], self.entries.labels[kept]

    @property
    def codes(self) -> np.ndarray:
        """The codes (n, L) of all entries, by row."""
        codes, rows, _ = self.arrays()
        return np.take_along_axis(codes, np.argsort(rows, axis=1), axis=1).T
