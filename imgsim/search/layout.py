"""How the tables of an index lie in memory, and how they grow and shrink in linear time.

All tables lie side by side: sorted codes and their rows (L, n). For a search, the codes give way to the places where
buckets start if these are fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imgsim.search.compiled import kept
from imgsim.tables import sort_codes


class Tables(NamedTuple):
    """Tables as they are searched: codes (L, n) or (L, 0), rows (L, n) int32, starts (L, 0) or (L, 2^k + 1) int32."""

    codes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray


def has_starts(hash_size: int, count: int) -> bool:
    """Tell how a table of `count` rows is kept: by where its buckets start, or by the sorted codes if that is less."""
    return 1 << hash_size <= count


def default_hash_size(count: int) -> int:
    """Return the bits of a code for so many candidates: measured so that the default settings keep their recall."""
    return max(2, round(2.5 + np.log2(max(count, 1)) / 2))


def bucket_starts(codes: np.ndarray, hash_size: int) -> np.ndarray:
    """Return where each bucket starts among the codes (n,) of a table, in any order: (2^k + 1,) int32."""
    return np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=1 << hash_size))]).astype(np.int32)


def sort_tables(codes: np.ndarray, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sort codes (n, L) of rows from `first_row` on into tables: codes and rows (L, n)."""
    tables = [sort_codes(np.ascontiguousarray(column)) for column in codes.T]
    ordered, rows = (np.stack(arrays) for arrays in zip(*tables, strict=True))
    return ordered, rows + np.int32(first_row)


def compress(codes: np.ndarray, rows: np.ndarray, hash_size: int) -> Tables:
    """Bring sorted codes and rows (L, n) into the form in which they are searched."""
    if not has_starts(hash_size, codes.shape[1]):
        return Tables(codes, rows, np.empty((len(codes), 0), np.int32))
    return Tables(codes[:, :0], rows, np.stack([bucket_starts(table, hash_size) for table in codes]))


def expand(tables: Tables, hash_size: int) -> np.ndarray:
    """Return the sorted codes (L, n) of tables."""
    if not tables.starts.shape[1]:
        return tables.codes
    values = np.arange(1 << hash_size, dtype=tables.codes.dtype)
    return np.stack([np.repeat(values, np.diff(starts)) for starts in tables.starts])


@kept()
def merge_tables(codes, rows, new_codes, new_rows):
    """Merge sorted tables (L, n) and (L, m), of which the second has the higher rows, into one (L, n + m)."""
    shape = codes.shape[0], codes.shape[1] + new_codes.shape[1]
    all_codes, all_rows = np.empty(shape, codes.dtype), np.empty(shape, rows.dtype)
    for t in range(shape[0]):
        i = j = 0
        for place in range(shape[1]):
            if j == new_codes.shape[1] or (i < codes.shape[1] and codes[t, i] <= new_codes[t, j]):
                all_codes[t, place], all_rows[t, place] = codes[t, i], rows[t, i]
                i += 1
            else:
                all_codes[t, place], all_rows[t, place] = new_codes[t, j], new_rows[t, j]
                j += 1
    return all_codes, all_rows


def take_rows(codes: np.ndarray, rows: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the rows of sorted tables (L, n) that are `left` (n,) bool, and number them anew."""
    numbers, kept = (np.cumsum(left) - 1).astype(np.int32), left[rows]
    shape = len(rows), int(left.sum())
    return codes[kept].reshape(shape), numbers[rows[kept]].reshape(shape)
