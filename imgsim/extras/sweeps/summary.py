"""What a sweep's table says: curves to compare, the settings no others beat, and a recommendation in words."""

from __future__ import annotations

import numpy as np
import pandas as pd

from imgsim.extras.runs.settings import DEFAULTS
from imgsim.sources.names import split_checkpoint

WITHIN = ("hash_size", "num_tables", "seed", "top_k", "batch_size")  # they vary along a curve, or do not matter


def short(values: pd.Series) -> pd.Series:
    """The last part of paths and Hub ids, where that still tells them apart."""

    def last_part(text: str) -> str:
        prefix, name = split_checkpoint(text)
        return prefix + name.rpartition("/")[2]

    last = values.astype(str).map(last_part)
    return last if last.nunique() == values.nunique() else values.astype(str)


def name_series(table: pd.DataFrame) -> pd.Series:
    """What tells curves apart: the checkpoint, and whatever else differs beside bits, tables and seed."""
    differs = [name for name in DEFAULTS if name in table and name not in WITHIN and table[name].nunique() > 1]
    parts = [short(table[name]) for name in differs if name in ("dataset", "checkpoint")]
    parts += [f"{name} " + table[name].astype(str) for name in differs if name not in ("dataset", "checkpoint")]
    names = (parts or [short(table["checkpoint"])])[0]
    for part in parts[1:]:
        names = names + ", " + part
    return names


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The measures averaged over seeds, a row for each curve, hash_size and num_tables; recall's range beside them."""
    table = table.assign(series=name_series(table))
    measures = {"recall": "recall_at_10", "seen": "candidate_fraction", "precision": "label_precision_at_5"}
    measures |= {"exact_precision": "exact_label_precision_at_5"}
    for name in measures.values():
        table[name] = table[name].astype(float)  # null where there are no labels
    groups = table.groupby(["dataset", "series", "hash_size", "num_tables"], as_index=False, sort=False)
    means = groups.agg(**{name: (column, "mean") for name, column in measures.items()})
    ranges = groups.agg(
        lowest=("recall_at_10", "min"), highest=("recall_at_10", "max"), seeds=("recall_at_10", "count")
    )
    return means.merge(ranges)


def on_front(cost, gain) -> np.ndarray:
    """Which points (n,) no other point beats, by giving as much for less or more for as much: (n,) bool."""
    cost, gain = np.asarray(cost), np.asarray(gain)
    cheaper, better = cost[:, None] >= cost, gain[:, None] <= gain
    strictly = (cost[:, None] > cost) | (gain[:, None] < gain)
    return ~(cheaper & better & strictly).any(axis=1)


def recommend(means: pd.DataFrame, recall: float) -> str:
    """The best checkpoint by the labels of exact neighbours, and with it the settings that look at the fewest
    candidates of those that reach this recall, in words; one sentence a data set. means: from `over_seeds`."""
    return "\n".join(f"{recommend_one(part, recall)}" for _, part in means.groupby("dataset", sort=False))


def recommend_one(means: pd.DataFrame, recall: float) -> str:
    worth = means.groupby("series", sort=False)["exact_precision"].first().sort_values(ascending=False, kind="stable")
    if worth.isna().any():
        text, chosen = "Without labels only the gallery tells which checkpoint is best; by the work alone, take ", means
    else:
        text, chosen = "Take ", means[means["series"].isin(worth.index[worth == worth.iloc[0]])]
    reach = chosen[chosen["recall"] >= recall]
    order = (["seen", "num_tables"], True) if len(reach) else (["recall", "seen"], [False, True])
    best = (reach if len(reach) else chosen).sort_values(order[0], ascending=order[1], kind="stable").iloc[0]
    text += f"{best.series} with {best.hash_size} bits and {best.num_tables} tables: it finds {best.recall:.0%} of the "
    text += f"true neighbours ({best.lowest:.0%} at worst, {best.seeds} seeds)" if best.seeds > 1 else "true neighbours"
    text += f", looking at {best.seen:.0%} of the candidates"
    if not worth.isna().any():
        text += f", and {best.precision:.0%} of its first five matches have the query's label"
        others = worth[worth < worth.iloc[0]]
        if len(others):
            text += f" (exact search: {worth.iloc[0]:.0%}, with {others.index[0]} {others.iloc[0]:.0%})"
    if not len(reach):
        text += f". No settings reach a recall of {recall:.0%}: try fewer bits, more tables or more probes"
    return text + "."
