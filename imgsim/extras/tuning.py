"""Which settings find enough at the least cost? Measured on one's own candidates and queries."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from imgsim.evaluation import exact_neighbours, recall_at_k
from imgsim.hashing import Projection, normalise
from imgsim.search.snapshot import Snapshot

NUM_TABLES, PROBES, RERANK = (8, 16, 32, 64), (0, 2, 4, 8, 16, 32), (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Trial:
    """Settings as BuildLSHTable takes them, and what they gave: recall at top_k, mean candidates seen and compared
    exactly a query, what this should cost (see `cost`), and the time it took, in milliseconds a query."""

    settings: dict
    recall: float
    candidates: float
    compared: float
    cost: float
    milliseconds: float


@dataclass(frozen=True)
class Tuning:
    """All trials, and the cheapest that reached the recall asked for."""

    trials: list[Trial]
    best: Trial

    @property
    def rows(self) -> list[dict]:
        """One flat dictionary a trial, for a table."""
        return [trial.settings | {k: v for k, v in vars(trial).items() if k != "settings"} for trial in self.trials]


def cost(settings: dict, seen: float, compared: float, dim: int) -> float:
    """About how many microseconds a query takes: projection, look-ups, Hamming distances, exact cosines.

    The weights were fitted to times measured on one core. Unlike a time the estimate is the same on every run, so
    that the choice can be repeated.
    """
    bits = settings["hash_size"] * settings["num_tables"]
    lookups = settings["num_tables"] * min(1 + settings["probes"], 1 << settings["hash_size"])
    return 1.5 + bits * dim / 35000 + lookups / 40 + seen * (0.0047 + 0.00063 * bits / 64) + compared * dim / 9900


def tune(index, embeddings, recall: float = 0.9, top_k: int = 10) -> Tuning:
    """Try settings on a built index's candidates with queries (m, d) that are not among them.

    hash_size is tried around log2 of the number of candidates, num_tables and probes in doubling steps. Warns where
    nothing reaches the recall; best is then the trial with the highest.
    """
    points, queries = index.vectors, normalise(embeddings)
    true, _ = exact_neighbours(queries, points, top_k)
    usual = max(3, int(np.log2(len(points))))
    sizes = [size for size in (usual - 4, usual - 2, usual) if size >= 2]
    reranks = [rerank for rerank in RERANK if rerank * 4 <= len(points)] or [None]
    trials = []
    for hash_size, num_tables in tqdm([(k, tables) for k in sizes for tables in NUM_TABLES], "tuning"):
        projection = Projection.fit(points, hash_size, num_tables, index.seed)
        candidates = Snapshot.build(projection, points, index.ids, index.labels)
        for rerank in reranks:
            for probes in PROBES:
                settings = {"hash_size": hash_size, "num_tables": num_tables, "probes": probes, "rerank": rerank}
                start = time.perf_counter()
                rows, _, seen, compared = candidates.search(queries, top_k, probes, rerank)
                took = (time.perf_counter() - start) / len(queries) * 1000
                found, seen, compared = recall_at_k(rows, true), float(seen.mean()), float(compared.mean())
                steps = cost(settings, seen, compared, points.shape[1])
                trials.append(Trial(settings | {"seed": index.seed}, found, seen, compared, steps, took))
                if found >= recall:  # more probes would only cost more
                    break
    good = [trial for trial in trials if trial.recall >= recall]
    if not good:
        warnings.warn(f"No settings reached a recall of {recall}; the best found is given.", stacklevel=3)
        return Tuning(trials, max(trials, key=lambda trial: trial.recall))
    return Tuning(trials, min(good, key=lambda trial: trial.cost))
