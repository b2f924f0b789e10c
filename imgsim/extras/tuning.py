"""Find the cheapest settings that reach a target recall, measured on your own candidates."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

from imgsim.evaluation import exact_neighbours, recall_at_k
from imgsim.figures import INK, one_axis
from imgsim.hashing import Projection, normalise
from imgsim.search.snapshot import Snapshot

NUM_TABLES, PROBES, RERANK = (8, 16, 32, 64), (0, 2, 4, 8, 16, 32), (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Trial:
    """Settings as BuildLSHTable takes them, and what they gave: recall at top_k, means per query, estimated cost."""

    settings: dict
    recall: float
    candidates_seen: float
    compared_exactly: float
    cost: float


@dataclass(frozen=True)
class Tuning:
    """All trials, and the cheapest that reached the recall asked for."""

    trials: list[Trial]
    best: Trial


def estimate_cost(settings: dict, seen: float, compared: float, dim: int) -> float:
    """Estimate how many microseconds a query takes: projection, look-ups, Hamming distances, exact cosines.

    The weights were fitted to times measured on one core. Unlike a time the estimate is the same on every run, so
    that the choice can be repeated.
    """
    bits = settings["hash_size"] * settings["num_tables"]
    lookups = settings["num_tables"] * min(1 + settings["probes"], 1 << settings["hash_size"])
    return 1.5 + bits * dim / 35000 + lookups / 40 + seen * (0.0047 + 0.00063 * bits / 64) + compared * dim / 9900


def tune(index, queries, recall: float = 0.9, top_k: int = 10) -> Tuning:
    """Try settings on an index's candidates: hash_size around log2 of their number, the others in doubling steps.

    Args:
        index: a built BuildLSHTable.
        queries: embeddings (m, d) that are not among the candidates.
        recall: the share of the `top_k` true neighbours to find.
        top_k: neighbours per query.

    Returns:
        All trials, and the cheapest that reaches the recall; if none does, with a warning, that of the highest recall.
    """
    vectors, queries = index.vectors, normalise(queries)
    true, _ = exact_neighbours(queries, vectors, top_k)
    most_bits = max(3, int(np.log2(len(vectors))))
    sizes = [size for size in (most_bits - 4, most_bits - 2, most_bits) if size >= 2]
    reranks = [rerank for rerank in RERANK if rerank * 4 <= len(vectors)] or [None]
    trials = []
    for hash_size, num_tables in tqdm(list(product(sizes, NUM_TABLES)), "tuning"):
        projection = Projection.fit(vectors, hash_size, num_tables, index.seed)
        snapshot = Snapshot.build(projection, vectors, index.ids, index.labels)
        for rerank in reranks:
            for probes in PROBES:
                rows, _, seen, compared = snapshot.search(queries, top_k, probes, rerank)
                settings = {"hash_size": hash_size, "num_tables": num_tables, "probes": probes, "rerank": rerank}
                found, means = recall_at_k(rows, true), (float(seen.mean()), float(compared.mean()))
                cost = estimate_cost(settings, *means, vectors.shape[1])
                trials.append(Trial(settings | {"seed": index.seed}, found, *means, cost))
                if found >= recall:  # more probes would only cost more
                    break
    good = [trial for trial in trials if trial.recall >= recall]
    if not good:
        warnings.warn(f"No settings reached a recall of {recall}; the best found is given.", stacklevel=2)
        return Tuning(trials, max(trials, key=lambda trial: trial.recall))
    return Tuning(trials, min(good, key=lambda trial: trial.cost))


def plot_tradeoff(tuning: Tuning) -> Axes:
    """Plot recall over candidates seen for all trials, in a colour per hash_size, with a ring around the best."""
    axis, best = one_axis(), tuning.best
    for hash_size in sorted({trial.settings["hash_size"] for trial in tuning.trials}):
        points = [(t.candidates_seen, t.recall) for t in tuning.trials if t.settings["hash_size"] == hash_size]
        axis.plot(*zip(*points, strict=True), ".", label=f"{hash_size} bits")
    axis.plot(best.candidates_seen, best.recall, "o", markersize=13, fillstyle="none", color=INK, label="chosen")
    axis.set(xlabel="candidates seen", ylabel="recall")
    axis.legend(fontsize=8)
    return axis
