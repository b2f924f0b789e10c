"""The one holder of an index's arrays: it adds, removes, saves and loads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from imgsim.hashing import Projection, column_sums
from imgsim.search.snapshot import Snapshot
from imgsim.search.storage import ARRAYS, array_specs, read_arrays, write_arrays


@dataclass(frozen=True)
class _State:
    """A snapshot, what was added since as parts (vectors, ids, labels, signatures), and the sum (d,) of all vectors."""

    snapshot: Snapshot
    added: tuple[tuple[np.ndarray, ...], ...] = ()
    total: np.ndarray | None = None  # taken when it is first asked for

    def merged(self) -> Snapshot:
        if not self.added:
            return self.snapshot
        before = self.snapshot
        parts = [(before.vectors, before.ids, before.labels, before.signatures), *self.added]
        return Snapshot.build(before.projection, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Candidates:
    """An index's candidates, for any number of threads.

    A change makes a new state beside the current one and publishes it in a single step: a search sees the index before
    an addition or after it, never between, and a change that is interrupted changes nothing.
    """

    def __init__(self, snapshot: Snapshot):
        self._lock = Lock()  # held while a new state is made
        self._state = _State(snapshot)

    @classmethod
    def build(cls, projection: Projection, vectors: np.ndarray, ids=None, labels=None) -> Candidates:
        """Hold vectors (n, d) float32 of length 1, with ids (n,), by default 0 to n - 1, and labels (n,) or None.

        Raises:
            ValueError: ids or labels do not fit.
        """
        return cls(Snapshot.build(projection, vectors, *check_entries(len(vectors), ids, labels)))

    @property
    def snapshot(self) -> Snapshot:
        """The arrays as they are now."""
        if self._state.added:  # sorted in once, by the first search after additions
            with self._lock:
                self._state = _State(self._state.merged(), total=self._state.total)
        return self._state.snapshot

    @property
    def ids(self) -> np.ndarray:
        """The ids (n,) of all candidates, by row."""
        state = self._state
        return np.concatenate([state.snapshot.ids, *(ids for _, ids, _, _ in state.added)])

    def add(self, vectors: np.ndarray, ids=None, labels=None) -> np.ndarray:
        """Add candidates under the projection as it is; they are sorted in by the next search.

        Args:
            vectors: (n, d) float32 of length 1.
            ids: (n,) different whole numbers; by default they continue from the largest.
            labels: (n,) whole numbers or None.

        Returns:
            The mean (d,) of all vectors, which additions move away from the projection's.

        Raises:
            ValueError: ids or labels do not fit, or an id is in the index already.
        """
        with self._lock:
            state, known = self._state, self.ids
            ids, labels = check_entries(len(vectors), ids, labels, first=known.max(initial=-1) + 1)
            if (taken := np.isin(ids, known)).any():
                raise ValueError(f"The id {ids[taken][0]} is in the index already; remove it first.")
            part = (vectors, ids, labels, state.snapshot.projection.signatures(vectors))
            total = column_sums(state.snapshot.vectors) if state.total is None else state.total
            total = total + column_sums(vectors)
            self._state = _State(state.snapshot, (*state.added, part), total)
            return total / (len(known) + len(ids))

    def remove(self, ids) -> None:
        """Remove candidates by their ids (n,).

        Raises:
            ValueError: there is no such id.
        """
        ids = np.atleast_1d(ids)
        with self._lock:
            before = self._state.merged()
            if (missing := ~np.isin(ids, before.ids)).any():
                raise ValueError(f"There is no id {ids[missing][0]} in the index.")
            left = ~np.isin(before.ids, ids)
            arrays = (before.vectors, before.ids, before.labels, before.signatures)
            self._state = _State(Snapshot.build(before.projection, *(array[left] for array in arrays)))

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
        manifest, arrays = read_arrays(folder, settings, ARRAYS, mapped)
        specs = array_specs(len(arrays["ids"]), *(manifest[name] for name in ("dim", "hash_size", "num_tables")))
        if wrong := [name for name, spec in specs.items() if (arrays[name].dtype, arrays[name].shape) != spec]:
            raise ValueError(f"The index {str(Path(folder))!r} is damaged: its manifest contradicts {wrong[0]}.")
        projection = Projection(arrays.pop("planes"), arrays.pop("mean"))
        return cls(Snapshot(projection, **arrays)), manifest


def arrays_of(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Return the arrays of a snapshot by their names on disk, see `storage.array_specs`."""
    arrays = vars(snapshot) | {"planes": snapshot.projection.planes, "mean": snapshot.projection.mean}
    return {name: arrays[name] for name in ARRAYS}


def check_entries(count: int, ids, labels, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and labels (n,) int64: ids are counted from `first` if they are None, labels are then -1.

    Raises:
        ValueError: there are not `count` of them, or the ids are not different whole numbers from 0 on.
    """
    if labels is not None and np.shape(labels) != (count,):
        raise ValueError(f"{count} embeddings need as many labels, not {np.shape(labels)}.")
    labels = np.full(count, -1) if labels is None else np.asarray(labels, np.int64)
    if ids is None:
        return np.arange(first, first + count), labels
    ids = np.atleast_1d(ids)
    whole_numbers = ids.dtype.kind in "iu" and ids.astype(np.int64).min(initial=0) >= 0
    if not whole_numbers or ids.shape != np.unique(ids).shape or len(ids) != count:
        raise ValueError(f"{count} embeddings need as many different ids, whole numbers from 0 to 2^63 - 1.")
    return ids.astype(np.int64), labels
