"""The one holder of an index's arrays: it adds, removes, saves and loads them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

import numpy as np

from imgsim.hashing import Projection, check_integer, check_settings, column_sums
from imgsim.search.coder import Coder
from imgsim.search.keys import check_keys, has_key, pack_keys, unpack_keys
from imgsim.search.layout import Tables, compress, expand, merge_tables, sort_tables, take_rows
from imgsim.search.snapshot import Snapshot, no_gone
from imgsim.search.storage import ARRAYS, array_specs, check_meaning, read_arrays, write_arrays
from imgsim.sources.errors import first_line
from imgsim.tables import LSH

BY_ROW = ("ids", "labels", "vectors", "sketches", "keys")
SPARE = 1.25  # arrays that grow get room for a quarter more rows
MOST_GONE = 0.25  # of all rows: from here on those removed are taken out
MAX_ID = (1 << 63) - 1


@dataclass
class _State:
    """A snapshot, and what is known of its ids; all but the snapshot is found when it is first asked for."""

    snapshot: Snapshot
    total: np.ndarray | None = None  # the sum (d,) of all vectors
    largest: int | None = None  # of the ids
    order: np.ndarray | None = None  # that sorts the ids in the large tables
    added: dict[int, int] = field(default_factory=dict)  # ids in the small tables and their rows


class Candidates:
    """An index's candidates, for any number of threads.

    A change makes a new snapshot beside the current one and publishes it in a single step: a search sees the index
    before an addition or after it, never between, and a change that is interrupted changes nothing.

    What is added goes into small tables beside the large ones, and is merged into these when it has become more than
    a few square roots of them; what is removed is marked, and taken out when it has become a quarter. Both cost work
    in proportion to the change, on average.
    """

    def __init__(self, snapshot: Snapshot):
        self._lock = Lock()  # held while a new state is made
        self._state = _State(snapshot)
        self._room: dict[str, np.ndarray] = {}  # arrays of which a snapshot's are the beginning

    @classmethod
    def build(cls, coder: Coder, vectors: np.ndarray, ids=None, labels=None, keys=None) -> Candidates:
        """Hold vectors (n, d) float32 of length 1, with ids (n,), by default 0 to n - 1, labels and keys (n,) or None.

        Raises:
            ValueError: ids, labels or keys do not fit.
        """
        ids, labels = check_entries(len(vectors), ids, labels)
        return cls(Snapshot.build(coder, vectors, ids, labels, keys=check_keys(len(vectors), keys)))

    @property
    def current(self) -> Snapshot:
        """All there is, as it is searched: some rows may be marked as gone."""
        return self._state.snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The arrays as a fresh build of what is left would have them."""
        with self._lock:  # what is returned is settled, whoever adds next
            now = self.current
            if now.added.rows.shape[1] or now.count < len(now.ids):
                self._state = _State(settle(now), self._state.total, self._state.largest)
            return self.current

    @property
    def lsh(self) -> LSH:
        """The tables as the article has them, for reading."""
        now = self.snapshot
        hash_size = now.projection.planes.shape[2]
        return LSH.from_arrays(hash_size, now.ids, now.labels, expand(now.tables, hash_size), now.tables.rows)

    @property
    def mean(self) -> np.ndarray:
        """The mean (d,) of all vectors."""
        with self._lock:
            self._state.total = total_of(self._state)
            return self._state.total / max(self.current.count, 1)

    def add(self, vectors: np.ndarray, ids=None, labels=None, keys=None) -> None:
        """Add candidates under the projection as it is.

        Args:
            vectors: (n, d) float32 of length 1.
            ids: (n,) different whole numbers; by default they continue from the largest.
            labels: (n,) whole numbers or None.
            keys: (n,) texts or None.

        Raises:
            ValueError: ids, labels or keys do not fit, or an id is in the index already.
        """
        with self._lock:
            state, now = self._state, self.current
            given = ids is not None
            largest = int(now.ids[now.live()].max(initial=-1)) if state.largest is None else state.largest
            ids, labels = check_entries(len(vectors), ids, labels, first=largest + 1)
            keys = check_keys(len(vectors), keys)
            if given and (taken := self._rows_of(ids) >= 0).any():
                raise ValueError(f"The id {ids[taken][0]} is in the index already; remove it first.")
            largest = int(ids.max(initial=largest))
            total, before = total_of(state) + column_sums(vectors), len(now.ids)
            codes, sketches = now.coder.encode(vectors)
            parts = {"ids": ids, "labels": labels, "vectors": vectors, "sketches": sketches, "keys": keys}
            arrays = {name: self._append(name, getattr(now, name), part) for name, part in parts.items()}
            new = sort_tables(codes, before)
            if now.added.rows.shape[1]:
                new = merge_tables(now.added.codes, now.added.rows, *new)
            added = Tables(*new, now.added.starts)
            gone = no_gone(before + len(ids))
            gone[: len(now.gone)] |= now.gone & ~no_gone(before) if before else now.gone
            after = replace(now, **arrays, added=added, gone=gone, count=now.count + len(ids))
            if added.rows.shape[1] > 4 * max(len(after.ids), 4096) ** 0.5:
                self._state = _State(settle(after), total, largest)
            else:
                rows = zip(ids.tolist(), range(before, before + len(ids)), strict=True)
                self._state = _State(after, total, largest, state.order, state.added | dict(rows))

    def _append(self, name: str, array: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Return an array (n, ...) with a part (m, ...) behind it; there is room for more behind that."""
        room, size = self._room.get(name), len(array) + len(part)
        if room is None or array.base is not room or size > len(room):
            room = self._room[name] = np.empty((int(size * SPARE) + 64, *array.shape[1:]), array.dtype)
            room[: len(array)] = array
        room[len(array) : size] = part  # behind all that a search has seen
        return room[:size]

    def _rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows (n,) in which ids (n,) stand, -1 if there is none."""
        state, now = self._state, self.current
        large = now.ids[: now.tables.rows.shape[1]]
        if state.order is None:
            state.order = np.argsort(large, kind="stable")
        rows = np.full(len(ids), -1)
        if len(large):
            places = np.searchsorted(large, ids, sorter=state.order).clip(max=len(large) - 1)
            rows = np.where(large[state.order[places]] == ids, state.order[places], -1)
        rows[is_gone(now.gone, rows)] = -1
        small = np.array([state.added.get(id, -1) for id in ids.tolist()], np.int64).reshape(len(ids))
        small[is_gone(now.gone, small)] = -1
        return np.maximum(rows, small)

    def remove(self, ids) -> None:
        """Remove candidates by their ids (n,) or keys (n,), or by a mask (all,) of those to remove.

        Raises:
            ValueError: there is no such id or key.
        """
        ids = np.atleast_1d(ids)
        if ids.size and isinstance(ids.flat[0], (str, os.PathLike)):
            now = self.snapshot
            ids = now.ids[has_key(now.keys, check_keys(ids.size, ids.ravel()))]
        if ids.dtype == bool:
            if ids.shape != (known := self.snapshot.ids).shape:
                raise ValueError(f"A mask needs one value for each of the {len(known)} candidates, not {ids.shape}.")
            ids = known[ids]
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"Candidates are removed by ids, by keys or by a mask, not by {ids.tolist()[0]!r}.")
        ids = np.unique(ids.astype(np.int64))
        with self._lock:
            state, now = self._state, self.current
            rows = self._rows_of(ids)
            if (missing := rows < 0).any():
                raise ValueError(f"There is no id {ids[missing][0]} in the index.")
            gone = now.gone.copy()
            np.bitwise_or.at(gone, rows >> 6, np.uint64(1) << (rows & 63).astype(np.uint64))
            total = None if state.total is None else state.total - column_sums(now.vectors[rows])
            after = replace(now, gone=gone, count=now.count - len(rows))
            # Removing the largest id alone makes the next addition look for another.
            largest = None if state.largest is None or state.largest in ids[-1:] else state.largest
            if len(after.ids) - after.count > MOST_GONE * len(after.ids):
                self._state = _State(settle(after), total, largest)
            else:
                self._state = _State(after, total, largest, state.order, state.added)

    def save(self, folder, manifest: dict) -> None:
        """Write all arrays and the manifest to a folder of their own, in place of an index that lies there."""
        snapshot = self.snapshot
        write_arrays(folder, manifest | {"count": len(snapshot)}, arrays_of(snapshot))

    @classmethod
    def load(cls, folder, settings: tuple[str, ...], mapped: bool = False) -> tuple[Candidates, dict]:
        """Read what `save` wrote, see `storage.read_arrays`.

        Returns:
            The candidates, and the manifest, which holds at least these settings.

        Raises:
            ValueError: the folder holds no index, or it is damaged.
        """
        manifest, arrays = read_arrays(folder, (*settings, "count"), ARRAYS, mapped)
        try:
            check_settings(manifest["hash_size"], manifest["num_tables"])
            if not isinstance(manifest["encoder"], dict):
                raise ValueError("its encoder is not described")
            sizes = [check_integer(manifest[name], name, 0) for name in ("count", "dim", "hash_size", "num_tables")]
            widths = [arrays[name].size // max(sizes[1], 1) for name in ("directions", "rotation")]
            for name, spec in array_specs(*sizes, *widths).items():
                if (arrays[name].dtype, arrays[name].shape) != spec:
                    raise ValueError(f"its manifest contradicts {name}")
            check_meaning(arrays, manifest["hash_size"], mapped)
            arrays["keys"] = unpack_keys(arrays["keys"], len(arrays["ids"]))
        except ValueError as error:
            raise ValueError(f"The index {str(Path(folder))!r} is damaged: {first_line(error)}.") from error
        directions = arrays["directions"] if arrays["directions"].shape[1] else None
        coder = Coder(Projection(arrays["planes"], arrays["mean"], directions), arrays["rotation"])
        tables = Tables(arrays["codes"], arrays["rows"], arrays["starts"])
        return cls(Snapshot.of_tables(coder, *(arrays[name] for name in BY_ROW), tables)), manifest


def settle(now: Snapshot) -> Snapshot:
    """Merge what was added into the large tables, and take out what was removed."""
    hash_size = now.projection.planes.shape[2]
    codes, rows = expand(now.tables, hash_size), now.tables.rows
    if now.added.rows.shape[1]:
        codes, rows = merge_tables(codes, rows, now.added.codes, now.added.rows)
    arrays = [getattr(now, name) for name in BY_ROW]
    if now.count < len(now.ids):
        left = now.live()
        codes, rows = take_rows(codes, rows, left)
        arrays = [array[left] for array in arrays]
    return Snapshot.of_tables(now.coder, *arrays, compress(codes, rows, hash_size))


def total_of(state: _State) -> np.ndarray:
    """Return the sum (d,) of all vectors."""
    if state.total is not None:
        return state.total
    now = state.snapshot
    return column_sums(now.vectors) - column_sums(now.vectors[~now.live()])


def is_gone(gone: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Tell which rows (n,) are marked as gone; a row of -1 is not."""
    if not len(gone):
        return np.zeros(len(rows), bool)
    bits = gone[rows >> 6] >> (rows & 63).astype(np.uint64) & np.uint64(1)
    return bits.astype(bool) & (rows >= 0)


def arrays_of(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Return the arrays of a settled snapshot by their names on disk, see `storage.array_specs`."""
    projection = snapshot.projection
    arrays = vars(snapshot) | vars(projection) | snapshot.tables._asdict() | {"rotation": snapshot.coder.rotation}
    if projection.directions is None:
        arrays["directions"] = np.empty((len(projection.mean), 0), np.float32)
    arrays["keys"] = pack_keys(snapshot.keys)
    return {name: arrays[name] for name in ARRAYS}


def check_entries(count: int, ids, labels, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and labels (n,) int64: ids are counted from `first` if they are None, labels are then -1.

    Raises:
        ValueError: there are not `count` of them, the ids are not different whole numbers from 0 on, or a label is
            neither a whole number from 0 on nor missing (None, NaN or -1).
    """
    if labels is not None and np.shape(labels) != (count,):
        raise ValueError(f"{count} embeddings need as many labels, not {np.shape(labels)}.")
    labels = np.full(count, -1) if labels is None else check_labels(labels)
    if ids is None:
        if first + count - 1 > MAX_ID:
            raise ValueError(f"There are no ids left behind {first - 1}: give the new entries ids of their own.")
        return np.arange(first, first + count, dtype=np.int64), labels
    ids = np.atleast_1d(ids)
    whole_numbers = ids.dtype.kind in "iu" and ids.astype(np.int64).min(initial=0) >= 0
    if not whole_numbers or ids.shape != np.unique(ids).shape or len(ids) != count:
        raise ValueError(f"{count} embeddings need as many different ids, whole numbers from 0 to 2^63 - 1.")
    return ids.astype(np.int64), labels


def check_labels(labels) -> np.ndarray:
    """Return labels (n,) as int64, -1 for those that are missing: None, NaN or -1.

    Raises:
        ValueError: a label is no whole number.
    """
    array = np.asarray(labels)
    if array.dtype.kind == "O":
        array = np.array([-1 if label is None else label for label in labels])
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array)
    numbers = array.dtype.kind in "iuf"
    right = (array == np.floor(array)) & (array >= -1) & (array <= MAX_ID) if numbers else np.zeros(len(array), bool)
    if not right.all():
        wrong = array[~right].tolist()[0]
        raise ValueError(f"Labels are whole numbers from 0 on, or None for none, not {wrong!r}.")
    return array.astype(np.int64)
