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
from imgsim.hashing import normalise
from imgsim.search.coder import Coder
from imgsim.search.principal import PLANES, fit_projection
from imgsim.search.snapshot import Snapshot

NUM_TABLES, RERANK = (8, 12, 16), (800, 400, 200, 120, 80, 60, 40)
PROBES = (3, 5, 7, 11, 15, 23, 31, 47, 63, 95, 127)
MAX_QUERIES = 400


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
    """Estimate how many microseconds a query takes: products, tables, look-ups, sketches, exact cosines.

    The weights were fitted to times measured on one core, with 20,000 to 200,000 candidates of 256 and 768 dimensions.
    Unlike a time the estimate is the same on every run, so that the choice can be repeated.
    """
    bits = settings["hash_size"] * settings["num_tables"]
    outer = settings["hash_size"] if settings["planes"] == "principal" else bits
    lookups = settings["num_tables"] * min(1 + settings["probes"], 1 << settings["hash_size"])
    products = 1 + dim * (outer + dim) / 50000
    return products + settings["num_tables"] / 2 + lookups / 29 + seen * (0.0065 + dim / 120000) + compared * dim / 6000


def tune(index, queries, recall: float = 0.9, top_k: int = 10) -> Tuning:
    """Try settings on an index's candidates: planes, bits, tables, probes and rerank, each in a few steps.

    Args:
        index: a built BuildLSHTable.
        queries: embeddings (m, d) that are not among the candidates; 400 of them, evenly taken, are used at most.
        recall: the share of the `top_k` true neighbours to find.
        top_k: neighbours per query.

    Returns:
        All trials, and the one of the least estimated cost that reaches the recall; if none does, with a warning, that
        of the highest recall.

    Raises:
        ValueError: there are no queries.
    """
    if not len(queries):
        raise ValueError("tune needs queries to choose settings by, and was given none.")
    queries, now = normalise(queries[:: -(-len(queries) // MAX_QUERIES)]), index.snapshot
    true, _ = exact_neighbours(queries, now.vectors, top_k)
    most_bits = max(3, int(np.log2(len(now))))
    sizes = sorted({size for size in (most_bits - 4, most_bits - 2, most_bits - 1) if size >= 2})
    reranks = [rerank for rerank in RERANK if rerank * 4 <= len(now)] or [None]
    trials = []
    for planes, hash_size, num_tables in tqdm(list(product(PLANES, sizes, NUM_TABLES)), "tuning"):
        projection = fit_projection(now.vectors, hash_size, num_tables, index.seed, planes)
        snapshot = Snapshot.build(Coder(projection, now.coder.rotation), now.vectors, now.ids, now.labels)
        fixed = {"planes": planes, "hash_size": hash_size, "num_tables": num_tables, "seed": index.seed}
        left = list(reranks)
        for probes in PROBES:
            while left:  # compare fewer as long as that reaches the recall, then look up more buckets
                rows, _, seen, compared = snapshot.search(queries, top_k, probes, left[0])
                settings = fixed | {"probes": probes, "rerank": left[0]}
                found, means = recall_at_k(rows, true), (float(seen.mean()), float(compared.mean()))
                trials.append(Trial(settings, found, *means, estimate_cost(settings, *means, now.vectors.shape[1])))
                if found < recall:
                    break
                left.pop(0)
    good = [trial for trial in trials if trial.recall >= recall]
    if not good:
        warnings.warn(f"No settings reached a recall of {recall}; the best found is given.", stacklevel=2)
        return Tuning(trials, max(trials, key=lambda trial: trial.recall))
    return Tuning(trials, min(good, key=lambda trial: trial.cost))


def plot_tradeoff(tuning: Tuning) -> Axes:
    """Plot recall over estimated cost for all trials, in a colour per bits and planes, with a ring around the best."""
    axis, best, groups = one_axis(), tuning.best, {}
    for trial in tuning.trials:
        group = f"{trial.settings['hash_size']} bits, {trial.settings['planes']} planes"
        groups.setdefault(group, []).append((trial.cost, trial.recall))
    for group, points in groups.items():
        axis.plot(*zip(*points, strict=True), ".", label=group)
    axis.plot(best.cost, best.recall, "o", markersize=13, fillstyle="none", color=INK, label="chosen")
    axis.set(xlabel="estimated µs per query", ylabel="recall")
    axis.legend(fontsize=8)
    return axis
