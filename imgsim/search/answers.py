"""What a search answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from imgsim.search.keys import printable_keys
from imgsim.tables import id_label

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)  # compared as a Mapping
class Matches(Mapping):
    """The ranked answer to one query, best first; also a mapping {"id_label": overlap}, as in the article.

    Attributes:
        ids: (t,) of the candidates; labels: (t,), -1 if there is none.
        overlap: (t,) share of the tables in which query and match fall into the same bucket.
        cosine: (t,) of query and match.
        candidates: how many candidates the tables returned.
        key: (t,) texts such as paths, "" if there is none; keys() are the mapping's.
    """

    ids: np.ndarray
    labels: np.ndarray
    overlap: np.ndarray
    cosine: np.ndarray
    candidates: int
    key: np.ndarray

    @cached_property  # dict(matches) asks for every key
    def _overlaps(self) -> dict[str, float]:
        names = (id_label(*entry) for entry in zip(self.ids, self.labels, strict=True))
        return dict(zip(names, self.overlap.tolist(), strict=True))

    def __getitem__(self, id_label: str) -> float:
        return self._overlaps[id_label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._overlaps)

    def __len__(self) -> int:
        return len(self.ids)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with the columns query (0), rank, id, key and cosine."""
        return as_table(self.ids[None], self.key[None], self.cosine[None])


@dataclass(frozen=True)
class SearchResult:
    """Ranked answers to m queries, best first.

    Attributes:
        ids: (m, t) int64, short rows padded with -1; cosines: (m, t) float32, padded with NaN; t is top_k, or the
            number of candidates if that is less.
        candidates_seen: (m,) in the buckets looked up; compared_exactly: (m,) by their cosine.
        rows: (m, t) of the answers among the entries, -1 for padding; known: (n,) the entries' keys.
    """

    ids: np.ndarray
    cosines: np.ndarray
    candidates_seen: np.ndarray
    compared_exactly: np.ndarray
    rows: np.ndarray
    known: np.ndarray

    @cached_property  # most who search many times want ids alone
    def keys(self) -> np.ndarray:
        """(m, t) texts such as paths, "" if there is none."""
        return np.where(self.rows < 0, "", self.known[self.rows])

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with the columns query, rank, id, key and cosine; padding is left out."""
        return as_table(self.ids, self.keys, self.cosines)


def as_table(ids: np.ndarray, keys: np.ndarray, cosines: np.ndarray) -> pandas.DataFrame:
    """Return answers (m, t) as a table."""
    import pandas

    query, rank = np.nonzero(ids >= 0)
    columns = {"query": query, "rank": rank + 1, "id": ids[query, rank], "key": printable_keys(keys[query, rank])}
    return pandas.DataFrame(columns | {"cosine": cosines[query, rank]})
